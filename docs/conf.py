"""Settings of the documentation. `make docs` builds it: no network, and every warning is an error."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch and NumPy are imported, by what follows

import mlot  # noqa: E402

project = "mlot"
author = "The mlot developers"
copyright = f"2026, {author}"  # noqa: A001
version = release = mlot.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.bibtex",
    "benchmark_results",
    "drawn_figures",
    "gallery_figures",
    "interface",
    "local_inventories",
    "local_mathjax",
    "shown_tests",
]

nitpicky = True
# Types that are private to a module of this library, and have no page for that reason.
nitpick_ignore_regex = [
    ("py:class", r"(mlot\..*\._.*|Document|Example|Keep|Strings|(np|numpy)\.int32|types\._LossArguments)")
]
keep_warnings = False
exclude_patterns = ["README.md", "_build", "_ext", "_inventories", "gallery/*.rst"]
templates_path = []
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
default_role = "py:obj"  # docstrings name what they speak of in single backticks
add_module_names = False
toc_object_entries_show_parents = "hide"

# Markdown
myst_enable_extensions = [
    "amsmath",
    "attrs_block",
    "attrs_inline",
    "colon_fence",
    "deflist",
    "dollarmath",
    "fieldlist",
    "substitution",
    "tasklist",
]
myst_heading_anchors = 4
myst_dmath_double_inline = True
myst_links_external_new_tab = False

# Mathematics: MathJax from the built pages themselves (`_ext/local_mathjax.py`)
numfig = True
math_numfig = False
math_eqref_format = "({number})"
mathjax3_config = {
    "tex": {
        # What is not defined is an error, which `docs/check.py` finds, rather than red text.
        "packages": {"[-]": ["noundefined", "require", "autoload"]},
        "macros": {
            "R": r"\mathbb{R}",
            "HAD": r"\mathrm{HAD}",
            "SL": r"\mathrm{SL}",
            "SD": r"\mathrm{SD}",
            "ULD": r"\mathrm{ULD}",
            "CE": r"\mathrm{CE}",
            "KL": r"\mathrm{KL}",
            "argmin": r"\operatorname*{arg\,min}",
            "argmax": r"\operatorname*{arg\,max}",
            "diag": r"\operatorname{diag}",
            "softmax": r"\operatorname{softmax}",
            "lse": r"\operatorname{lse}",
            "ones": r"\mathbf{1}",
            "inner": [r"\langle #1, #2 \rangle", 2],
        },
    },
    "options": {"enableMenu": False},
}

# Interface
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "exclude-members": "extra_repr"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_use_param = True
napoleon_attr_annotations = False

# Bibliography
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"
bibtex_reference_style = "author_year"

# Gallery
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "examples",
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": 10_000,
    "remove_config_comments": True,
    "abort_on_example_error": False,
    "only_warn_on_example_error": False,
    "capture_repr": (),
    "matplotlib_animations": False,
    "backreferences_dir": None,
    "reset_modules": ("gallery_figures.reset",),
    "image_scrapers": ("gallery_figures.scrape",),
}

# Pages
html_theme = "furo"
html_title = f"mlot {release}"
html_static_path = ["_static"]
html_css_files = ["mlot.css"]
html_domain_indices = False
html_show_sourcelink = False
html_copy_source = False
html_last_updated_fmt = None
pygments_style = "github-light"
pygments_dark_style = "github-dark"
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#0b5cad", "color-brand-content": "#0b5cad"},
    "dark_css_variables": {"color-brand-primary": "#7cb8f2", "color-brand-content": "#7cb8f2"},
}
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
