"""Configuration of the documentation; nothing here reaches for the network."""

import os
import sys
from pathlib import Path

import covpool

EXTENSIONS = str(Path(__file__).parent / "_extensions")
sys.path.insert(0, EXTENSIONS)
# The cells' own process finds `covpool_pictures` there, too.
os.environ["PYTHONPATH"] = os.pathsep.join([EXTENSIONS, os.environ.get("PYTHONPATH", "")])
# tqdm's, which timm brings, of bars in notebooks; none is drawn.
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"

project = "covpool"
author = "The covpool authors"
project_copyright = "The covpool authors"
release = covpool.__version__

extensions = [
    *("myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"),
    *("covpool_tables", "covpool_math"),
]
exclude_patterns = ["_build", "_generated"]
html_theme = "furo"
html_title = f"covpool {release}"
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["covpool.css"]
html_math_renderer = "mathml"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# Every build runs every cell in this environment's interpreter. An exception or a line on stderr
# (a warning of PyTorch's, say) is a warning of the build, which -W makes an error.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "remove-warn"
nb_merge_streams = True
nb_render_markdown_format = "gfm"  # with tables

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints = "none"  # the signature's names without their hints; docstrings give the shapes
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# In docstrings, `name` is a link where it names something of covpool, else plain code.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", r".*"),
    ("py:exc", r"(torch|covpool\.(train|data))\..*"),  # these of covpool are not in the reference
    ("py:class", r"(torch|collections|typing|types|abc|enum|dataclasses|pathlib)\..*"),
    ("py:class", r"(Tensor|Module|Mapping|optional)"),
]
