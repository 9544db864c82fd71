"""Settings of the documentation, which `sphinx-build -W --keep-going -n -b html docs docs/_build/html` builds.

The theme is sphinx-book-theme because readers know it from JAX, Flax and Optax, and it loads nothing from the network.
"""

import pathlib
import sys

DOCS = pathlib.Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_extensions")]

import hmt_jax  # noqa: E402

project = "hmt_jax"
author = "the authors of hmt_jax"
project_copyright = "the authors of hmt_jax"
version = release = hmt_jax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "generated",
]
exclude_patterns = ["_build"]
nitpicky = True

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "sphinx_book_theme"
html_title = "hmt_jax"
html_theme_options = {"show_toc_level": 2, "navbar_persistent": []}  # the sidebar has the search
html_static_path = ["_static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

# In docstrings, single backticks are code. What the site knows becomes a link, and the rest stays code. Types of other
# libraries are no links, because the site is built without the network, and neither are types that are not public.
default_role = "py:obj"
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    ("py:class", r"(?!hmt_jax\.).*"),
    (
        "py:class",
        r"hmt_jax\.(training\._train\.Module|training\._state\.Sums|models\._torch_skeleton\.Skeleton|margins\._store_files\.Files|_images\.ImageSource)",
    ),
]

autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes in a table: entries of their own would be there twice
