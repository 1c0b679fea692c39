"""Sphinx configuration: `make docs` builds the documents into build/docs; the demo bundle draws their pictures."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

import pictures  # noqa: E402

import runtime  # noqa: E402

project = "patchcaption"
release = version = runtime.__version__
html_title = f"patchcaption {release}"
html_theme = "furo"
html_show_copyright = False
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["attrs_block"]
myst_heading_anchors = 3
# Links to files in the repository; a test follows them.
suppress_warnings = ["myst.xref_missing"]
exclude_patterns = ["_pictures"]

default_role = "py:obj"
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False


def _draw(_: Sphinx) -> None:
    pictures.draw(DOCS / "_pictures")


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", _draw)
