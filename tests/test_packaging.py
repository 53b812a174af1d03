"""The description of the package, which setup.py makes of README."""

import re
import runpy

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()


@pytest.fixture
def run_setup(monkeypatch):
    """Runs setup.py without building anything; its functions, and what it gives to setuptools."""
    setuptools = pytest.importorskip("setuptools")
    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    return runpy.run_path(str(ROOT / "setup.py")), given


def test_links_are_absolute_and_lead_to_files(run_setup):
    here = "https://github.com/somebody/manas_jax"
    text = run_setup[0]["description"](README, here)
    links = re.findall(r"(!?)\[[^\[\]]*\]\(([^()\s]+)\)", text)
    assert len(links) > 30 and {image for image, _ in links} == {"", "!"}
    for image, link in links:
        assert link.startswith(("https://", "#"))
        if link.startswith(here):
            kind, branch, path = link.removeprefix(f"{here}/").split("/", 2)
            assert (kind, branch) == ("raw" if image else "blob", "main")
            assert (ROOT / path.partition("#")[0]).exists()


def test_without_an_address_it_is_the_readme(run_setup):
    functions, given = run_setup
    assert functions["description"](README, "https://github.com/OWNER/manas_jax") == README
    assert given["long_description_content_type"] == "text/markdown"
    assert given["long_description"].startswith("# manas_jax\n")
