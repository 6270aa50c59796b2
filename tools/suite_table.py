"""The table of a suite, on the console and as CSV; part of tools/run_benchmark.py."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from suite_file import Suite
from suite_statistics import Summary

from kdtoolbox.checkpoints.writing import write_whole

COLUMNS = (
    'row',
    'seeds',
    'mean',
    'std',
    'difference',
    'low',
    'high',
    'cost',
    'failed',
    'published_student',
    'published_distilled',
    'published_source',
    'note',
)
"""The columns of the CSV; `low` and `high` are the ends of the interval."""


def table_of(suite: Suite, found: Sequence[Summary]) -> Table:
    """Return the table for the console."""
    title = f'{suite.path.stem}: {suite.metric}, compared with {suite.baseline}'
    caption = (
        'difference: mean over the seeds that both have, and its 95 % interval; '
        "cost: time of a step in units of the student's, from --cost"
    )
    table = Table(title=title, caption=caption)
    table.add_column('row', no_wrap=True)
    for name in ('seeds', 'mean ± std', 'difference', '95 % interval', 'cost'):
        table.add_column(name, justify='right', no_wrap=True)
    table.add_column('failed', justify='right')
    if suite.published:
        table.add_column('published', no_wrap=True)
    for one in found:
        cells = [one.row, str(len(one.seeds)), _spread(one), _signed(one.difference)]
        cells += [_ends(one), _number(one.cost, 2), str(one.failed or '')]
        table.add_row(*cells, *([_published(one)] if suite.published else []))
    return table


def write_csv(path: Path, found: Sequence[Summary]) -> None:
    """Write the table as CSV; an empty cell is a number that does not exist."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(COLUMNS)
    for one in found:
        low, high = one.interval or (None, None)
        numbers = (one.mean, one.std, one.difference, low, high, one.cost)
        paper = one.published
        known = (paper.student, paper.distilled, paper.source) if paper else ('',) * 3
        cells = [_number(number, 3) for number in numbers]
        writer.writerow([one.row, len(one.seeds), *cells, one.failed, *known, one.note])
    with write_whole(path) as file:
        file.write(text.getvalue().encode())


def _number(value: float | None, digits: int) -> str:
    return '' if value is None else f'{value:.{digits}f}'


def _signed(value: float | None) -> str:
    return '' if value is None else f'{value:+.2f}'


def _spread(one: Summary) -> str:
    spread = '' if one.std is None else f' ± {one.std:.2f}'
    return f'{_number(one.mean, 2)}{spread}'


def _ends(one: Summary) -> str:
    return '' if one.interval is None else ' to '.join(map(_signed, one.interval))


def _published(one: Summary) -> str:
    paper = one.published
    if paper is None:
        return ''
    # A paper, or the repository that has reported it.
    kind = paper.source.split()[0].strip(',')
    return f'{paper.distilled - paper.student:+.1f} `{kind}`'
