"""Configure Sphinx: the README, a page per method, and the API from docstrings."""

import sys
from pathlib import Path

import kdtoolbox

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))

import method_pages  # noqa: E402 - it is beside this file
import zoo  # noqa: E402

project = 'kdtoolbox'
author = project_copyright = 'the kdtoolbox authors'
release = kdtoolbox.__version__
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'links']
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = f'kdtoolbox {release}'
html_static_path = ['_static']
html_css_files = ['pages.css']
html_js_files = ['sort.js']
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
toc_object_entries_show_parents = 'hide'
# Otherwise the fields of a NamedTuple are described twice.
napoleon_use_ivar = True

method_pages.write()
(DOCS / 'zoo.md').write_text(zoo.page(), 'utf-8')
