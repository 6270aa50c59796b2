"""Write tables of Markdown."""

SORTABLE = """\
````{{table}}
:class: sortable

{table}
````"""


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


def sortable(header: list[str], rows: list[list[str]]) -> str:
    """Return a table that `_static/sort.js` sorts by the heading that is clicked."""
    return SORTABLE.format(table=table(header, rows))
