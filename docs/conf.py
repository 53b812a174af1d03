"""The documentation site: python -m sphinx -W -c docs . build/docs

The source folder is the repository's root, so that links between documents, code and results are
the same here and where the repository is browsed.
"""

import inspect
import pathlib
import re
from typing import Any

from sphinx.addnodes import pending_xref

from manas_jax import __version__
from manas_jax import config as manas_config
from manas_jax.space import SearchSpace

project = "manas_jax"
release = version = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
include_patterns = [
    "docs/**",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmarks/README.md",
    "launch/README.md",
    "web/README.md",
]
root_doc = "docs/index"
html_theme = "furo"
html_title = f"manas_jax {release}"
html_show_copyright = False  # LICENSE says it

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # links such as data.md#score-restored-pictures

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"


def _unlink_folders(app: Any, document: Any) -> None:
    """Makes text of links to folders of the repository: the site has no page of them."""
    here = pathlib.Path(document["source"]).parent
    for link in list(document.findall(pending_xref)):
        if link["reftype"] == "myst" and (here / link["reftarget"]).is_dir():
            link.replace_self(link.children)


def _config_keys() -> str:
    """A Markdown table of all keys of a config, made of its defaults, ranges and comments."""
    meanings = _comments(inspect.getsource(manas_config))
    meanings |= {f"space.{k}": text for k, text in _attributes(SearchSpace).items()}
    losses = _attributes(manas_config.LossWeights)
    meanings |= {f"objectives.{k}": text for k, text in losses.items()}
    defaults = {f"space.{k}": (v, "see `SearchSpace`") for k, v in vars(SearchSpace()).items()}
    for key, (value, allowed) in manas_config._KEYS.items():
        any_value = allowed is manas_config.ANY
        allowed = manas_config._type_of(value) if any_value else allowed
        defaults[key] = value, allowed.description
    lines = ["| key | default | values | meaning |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{key}` | `{value!r}` | {allowed} | {_sentence(meanings.get(key, ''))} |"
        for key, (value, allowed) in sorted(defaults.items(), key=lambda item: "." in item[0])
    ]
    return "\n".join(lines)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].removesuffix(".")


def _comments(source: str) -> dict[str, str]:
    """By key the comment behind it or above it, in the source of `manas_jax.config`."""
    found, above = {}, []
    for line in source.partition("\n_KEYS")[2].partition("\n}")[0].splitlines():
        if comment := re.fullmatch(r" *# (.*)", line):
            above.append(comment[1])
            continue
        if key := re.match(r' *"([\w.]+)": ', line):
            behind = re.search(r"\),  # (.*)", line)
            found[key[1]] = " ".join(above) or (behind[1] if behind else "")
        above = []
    return found


def _attributes(documented: type) -> dict[str, str]:
    """By name the attributes that a docstring describes."""
    text = inspect.getdoc(documented).partition("Attributes:\n")[2].partition("\n\n")[0]
    parts = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", text, re.M)
    return {name: " ".join(text.split()) for name, text in parts}


def _insert_config_keys(app: Any, name: str, source: list[str]) -> None:
    """Fills the table of keys in."""
    if name == "docs/api":
        source[0] = source[0].replace("<!-- config keys -->", _config_keys())


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _insert_config_keys)
    app.connect("doctree-read", _unlink_folders)
