"""Sphinx's settings for the book. tools/book.py lays out its pages, and calls Sphinx."""

from docutils import nodes
from sphinx.application import Sphinx

project = "Cifar Diffusion"
html_title = "Cifar Diffusion"
extensions = ["myst_nb"]
nb_execution_mode = "off"  # the notebooks are shown as they are saved
nb_mime_priority_overrides = [("html", "text/html", 0)]
myst_enable_extensions = ["amsmath", "dollarmath", "html_image"]
myst_dmath_allow_labels = False
myst_heading_anchors = 4

mathjax_path = "mathjax.js"  # with the pages: no network
mathjax3_config = {"svg": {"scale": 0.9}}

html_context = {"default_mode": "auto"}  # the theme of the reader's system
html_theme = "sphinx_book_theme"
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "navbar_persistent": [],  # one search field is enough
    "footer_content_items": [],
}
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_js_files = [("slider.js", {"defer": "defer"})]
html_copy_source = False


def as_in_jupyter(app: Sphinx, page: nodes.document) -> None:
    """Hand equations to MathJax as they are: Sphinx puts those of several lines into a split, which takes no tag."""
    for equation in page.findall(nodes.math_block):
        if not equation.get("no-wrap", equation.get("nowrap")):  # the attribute's name since Sphinx 8.2, and before
            equation.children = [nodes.Text(rf"\[{equation.astext()}\]")]
            equation["no-wrap"] = equation["nowrap"] = True


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", as_in_jupyter)
