"""What pyproject.toml cannot say: the description of the package is README with absolute links."""

import pathlib
import re
import tomllib

from setuptools import setup

_RELATIVE = re.compile(r"(!?)(\[[^\[\]]*\])\((?!https?:|#)([^()\s]+)\)")
ROOT = pathlib.Path(__file__).parent


def description(readme: str, repository: str) -> str:
    """The text with links into the repository; unchanged while the repository has no address."""
    if "/OWNER/" in repository:
        return readme
    kinds = {"": "blob", "!": "raw"}
    return _RELATIVE.sub(
        lambda link: f"{link[1]}{link[2]}({repository}/{kinds[link[1]]}/main/{link[3]})", readme
    )


project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
setup(
    long_description=description(
        (ROOT / "README.md").read_text(encoding="utf-8"), project["urls"]["Repository"]
    ),
    long_description_content_type="text/markdown",
)
