"""Write the tables of the benchmarks from the files beside their suites."""

import json
import sys
from pathlib import Path
from statistics import mean

import tables

from kdtoolbox.recipes.results import benchmark_rows

ROOT = Path(__file__).resolve().parent.parent
# The tool imports its parts from its own folder.
sys.path.append(str(ROOT / 'tools'))

from suite_tuning import best_of, means_of  # noqa: E402

START = '<!-- {name}: python docs/method_table.py -->'
END = '<!-- End of {name}. -->'


def table(name: str, root: str = '') -> str:
    """Return the table of a suite, the best difference first, and its notes.

    Args:
        name: The name of the suite.
        root: The path from the page to the root of the repository, as in ``../``.
    """
    header = ['method', 'seeds', 'mean ± std', 'difference', '95 % interval', 'cost']
    rows = benchmark_rows(ROOT / 'configs', name)
    rows.sort(key=lambda row: -float(row['difference'] or 'inf'))
    notes = [f'- {row["row"]}: {row["note"]}' for row in rows if row['note']]
    shown = tables.table(header, [_cells(row, root) for row in rows])
    if not notes:
        return shown
    lines = ['', '<details><summary>Notes</summary>', '', *notes, '', '</details>']
    return '\n'.join([shown, *lines])


def _cells(row: dict[str, str], root: str) -> list[str]:
    folder = ROOT / 'configs' / row['row']
    name = row['row']
    if folder.is_dir():
        name = f'[{name}]({root}configs/{name})'
    spread = f' ± {float(row["std"]):.1f}' if row['std'] else ''
    ends = [f'{float(row[end]):+.1f}' for end in ('low', 'high') if row[end]]
    interval = ' to '.join(ends)
    # An interval above 0 is what the table is for.
    sure = len(ends) == 2 and float(row['low']) > 0
    gain = f'{float(row["difference"]):+.1f}' if row['difference'] else ''
    mean = f'{float(row["mean"]):.1f}{spread}'
    cost = f'{float(row["cost"]):.2f}' if row['cost'] else ''
    return [name, row['seeds'], mean, f'**{gain}**' if sure else gain, interval, cost]


def search(name: str) -> str:
    """Return the mean score of each method and factor in the search of a suite.

    The factor that the search chooses is bold.
    """
    path = ROOT / f'configs/benchmarks/{name}.tuning.json'
    found = means_of(json.loads(path.read_text()))
    factors = sorted({factor for scores in found.values() for factor in scores})
    header = ['method', *(f'x {factor:g}' for factor in factors)]
    return tables.table(header, [[row, *_scores(found[row], factors)] for row in found])


def _scores(found: dict[float, list[float]], factors: list[float]) -> list[str]:
    texts = {factor: f'{mean(scores):.1f}' for factor, scores in found.items()}
    texts[best_of(found)] = f'**{texts[best_of(found)]}**'
    return [texts.get(factor, '') for factor in factors]


def replaced(text: str, name: str, table: str) -> str:
    """Return a text with another table between its two comments.

    Args:
        text: The text.
        name: The name in the comments.
        table: The table.

    Raises:
        ValueError: If a comment is missing.
    """
    start, end = (mark.format(name=name) for mark in (START, END))
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f'the lines {start!r} and {end!r} are missing')
    return f'{before}{start}\n\n{table}\n\n{end}{after}'
