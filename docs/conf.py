"""Sphinx: the site of `make site`, from pages laid out by scripts/build_site.py. Nothing is run."""

import re

project = "U-MAE Notebooks"
author = "the U-MAE Notebooks authors"
copyright = "the U-MAE Notebooks authors, MIT licence"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx-mathjax-offline",  # MathJax from the package: no request to another host
]
exclude_patterns = ["_build"]

nb_execution_mode = "off"
nb_ipywidgets_js = {}  # widgets need a kernel; the pages show the static figure
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
# Executed cells print ANSI colours and lines that no lexer knows: neither is a fault of a page.
suppress_warnings = ["mystnb.unknown_mime_type", "misc.highlighting_failure"]

default_role = "code"  # docstrings write `name`
autodoc_member_order = "bysource"
autodoc_typehints = "signature"

html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {
    "use_download_button": False,
    "show_navbar_depth": 1,
    "navbar_persistent": [],
}
html_context = {"default_mode": "auto"}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False


def escape_docstring(app, what, name, obj, options, lines):
    """Docstrings are plain text: |f|^2, x_ and * mean themselves, `name` is code."""
    for i, line in enumerate(lines):
        parts = re.split(r"(`[^`]*`)", line)
        plain = [re.sub(r"([|*]|_(?!\w))", r"\\\1", part) for part in parts[::2]]
        parts[::2] = plain
        lines[i] = "".join(parts)


def setup(app):
    app.connect("autodoc-process-docstring", escape_docstring)
