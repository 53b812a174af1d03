"""The documentation site: python -m sphinx -W -c docs . build/docs

The source folder is the repository's root, so that links between documents, code and results are
the same here and where the repository is browsed.
"""

import pathlib
from typing import Any

from sphinx.addnodes import pending_xref

from manas_jax import __version__

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


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("doctree-read", _unlink_folders)
