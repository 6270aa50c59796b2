"""Let links to files of the repository lead to their pages."""

import os
from pathlib import Path, PurePosixPath

from docutils import nodes
from sphinx.addnodes import download_reference, pending_xref
from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PAGES = {
    'README.md': 'index',
    'CHANGELOG.md': 'changelog',
    'CONTRIBUTING.md': 'contributing',
}
"""The pages that include a file of the root."""


def page_of(path: PurePosixPath) -> str | None:
    """Return the page that shows a file or folder of the repository, if one does."""
    folder = path.parent if path.name == 'README.md' else path
    if len(folder.parts) == 2 and folder.parts[0] == 'configs':
        name = f'methods/{folder.name}'
        return name if (DOCS / f'{name}.md').exists() else None
    if path.parts[0] == 'docs' and path.suffix == '.md':
        return '/'.join(path.with_suffix('').parts[1:])
    return PAGES.get(path.as_posix())


def path_of(node: nodes.Element, page: str) -> PurePosixPath | None:
    """Return the path in the repository to which a link of a page leads."""
    target = node['reftarget'].partition('#')[0]
    # MyST drops the suffix of Markdown outside of docs/.
    suffix = '.md' if node.get('refdomain') == 'doc' else ''
    # Pages that include a file of the root contain its links.
    for folder in ((DOCS / page).parent, ROOT):
        path = Path(os.path.normpath(folder / f'{target}{suffix}'))
        if target and path.exists() and path.is_relative_to(ROOT):
            return PurePosixPath(path.relative_to(ROOT).as_posix())
    return None


def lead_to_pages(app: Sphinx, document: nodes.document) -> None:
    """Replace links to files and folders by links to their pages.

    A link to a folder without a page becomes plain text. What is left, such as a link
    to a missing file, is for MyST's own warning.
    """
    page = app.env.docname
    for node in [*document.findall(download_reference), *unresolved(document)]:
        path = path_of(node, page)
        name = page_of(path) if path else None
        if name:
            node.replace_self(link_to(name, page, node))
        elif path and (ROOT / path).is_dir():
            node.replace_self(node.children)


def unresolved(document: nodes.document) -> list[pending_xref]:
    """Return the links of MyST that do not lead to pages."""
    return [
        node
        for node in document.findall(pending_xref)
        if node['reftype'] == 'myst'
        and (node.get('refdomain') != 'doc' or Path(node['reftarget']).is_absolute())
    ]


def link_to(name: str, page: str, node: nodes.Element) -> pending_xref:
    """Return a link to a page, as MyST makes it."""
    link = pending_xref(
        refdomain='doc',
        reftype='myst',
        reftarget=name,
        reftargetid=anchor_of(node),
        refexplicit=True,
        refdoc=page,
    )
    link.source, link.line = node.source, node.line
    inner = nodes.inline('', '', classes=['xref', 'myst'])
    inner.extend(node.children[0].children if node.children else [])
    link.append(inner)
    return link


def anchor_of(node: nodes.Element) -> str | None:
    """Return the anchor of a link."""
    return node.get('reftargetid') or node['reftarget'].partition('#')[2] or None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the extension."""
    app.connect('doctree-read', lead_to_pages)
    return {'parallel_read_safe': True, 'parallel_write_safe': True}
