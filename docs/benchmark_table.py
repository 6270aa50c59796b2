"""Write the tables of the benchmarks from the CSV beside their suites."""

from pathlib import Path

import tables

from kdtoolbox.recipes.results import benchmark_rows

ROOT = Path(__file__).resolve().parent.parent
START = '<!-- {name}: python docs/method_table.py -->'
END = '<!-- End of {name}. -->'


def table(name: str) -> str:
    """Return the table of a suite, the best difference first."""
    header = ['method', 'seeds', 'mean ± std', 'difference', '95 % interval', 'cost']
    rows = benchmark_rows(ROOT / 'configs', name)
    rows.sort(key=lambda row: -float(row['difference'] or 'inf'))
    return tables.table(header, [_cells(row) for row in rows])


def _cells(row: dict[str, str]) -> list[str]:
    folder = ROOT / 'configs' / row['row']
    name = f'[{row["row"]}](configs/{row["row"]})' if folder.is_dir() else row['row']
    spread = f' ± {float(row["std"]):.1f}' if row['std'] else ''
    ends = [f'{float(row[end]):+.1f}' for end in ('low', 'high') if row[end]]
    interval = ' to '.join(ends)
    # An interval above 0 is what the table is for.
    sure = len(ends) == 2 and float(row['low']) > 0
    gain = f'{float(row["difference"]):+.1f}' if row['difference'] else ''
    mean = f'{float(row["mean"]):.1f}{spread}'
    cost = f'{float(row["cost"]):.2f}' if row['cost'] else ''
    return [name, row['seeds'], mean, f'**{gain}**' if sure else gain, interval, cost]


def replaced(text: str, name: str) -> str:
    """Return a text with the present table of a suite between its two comments.

    Raises:
        ValueError: If a comment is missing.
    """
    start, end = (mark.format(name=name) for mark in (START, END))
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f'the lines {start!r} and {end!r} are missing')
    return f'{before}{start}\n\n{table(name)}\n\n{end}{after}'
