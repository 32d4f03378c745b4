"""The book: guide, executed notebooks, ledger, API. Nothing is run, nothing needs a network."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

from nvret import __version__  # noqa: E402

project = "nvret"
author = "The nvret authors"
copyright = "The nvret authors. Code: Apache-2.0"
version = release = __version__
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "docstrings",
    "gather",  # notebooks, ledger and API pages from the repository
    "mathml",  # formulas without MathJax, which comes from a network
]
exclude_patterns = ["_build", "_ext"]
results = Path(__file__).parents[1] / "results"
# Whose results are shown, if there are any; tests build one: -D profiles=quick
profiles = [name for name in ("quick", "cpu") if (results / name / "claims.json").is_file()]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
nb_ipywidgets_js = {}  # progress bars of a run, which would load their scripts from a network

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "code"
suppress_warnings = ["ref.python"]  # two classes with a field of the same name
python_maximum_signature_line_length = 100

html_theme = "sphinx_book_theme"
html_title = "nvret"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_show_sourcelink = html_copy_source = False
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "max_navbar_depth": 2,
    "navbar_persistent": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
