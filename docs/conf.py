"""Configure Sphinx: the README, a page per method, and the API from docstrings."""

import re
import shutil
import sys
from pathlib import Path

import kdtoolbox

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))

import method_table  # noqa: E402 - it is beside this file

ROOT = DOCS.parent
PAGES = DOCS / 'methods'

project = 'kdtoolbox'
author = 'the kdtoolbox authors'
release = kdtoolbox.__version__
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = f'kdtoolbox {release}'
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
# Otherwise the fields of a NamedTuple are described twice.
napoleon_use_ivar = True
# Sphinx cannot resolve the folders that a README links to.
suppress_warnings = ['myst.xref_missing']


def write_method_pages() -> None:
    """Copy each method's README, and let its links lead to the recipes in configs/."""
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir()
    for readme in sorted(ROOT.glob('configs/*/README.md')):
        folder = readme.parent.name
        text = re.sub(
            r'\]\(([\w.-]+\.py)\)',
            rf'](../../configs/{folder}/\1)',
            readme.read_text(encoding='utf-8'),
        )
        (PAGES / f'{folder}.md').write_text(text, encoding='utf-8')


write_method_pages()
(DOCS / 'all_methods.md').write_text(method_table.page(), encoding='utf-8')
