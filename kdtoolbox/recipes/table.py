"""The catalogue of methods as a table."""

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.table import Table

from kdtoolbox.recipes.kinds import PAIRS
from kdtoolbox.recipes.method import Method
from kdtoolbox.recipes.results import Gain

HEADERS = (
    'method',
    'learns from',
    'fits',
    'recipes for',
    'cost',
    'published gain',
    'our gain',
)
CAPTION = """\
fits: kinds of pairs for which new_config.py writes a recipe; "any" needs maps only.
cost: the time of a distilled step in units of the student's own, on DigitScenes
(docs/costs.md); otherwise that of its losses on feature maps, in units of a plain MSE
(docs/losses.md).
published gain: a reported score minus that of the student's own config in the library.
our gain: on DigitScenes (docs/benchmark.md). "-": no number.
"""


def table_of(methods: Iterable[Method]) -> Table:
    """Return a table with one row for each method; `CAPTION` explains its columns."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for header in HEADERS:
        shown.add_column(header, overflow='fold')
    for method in methods:
        shown.add_row(*_cells(method))
    return shown


def _cells(method: Method) -> list[str]:
    return [
        method.folder,
        ', '.join(method.learns_from),
        'any' if method.pairs == PAIRS else ', '.join(method.pairs),
        ', '.join(method.students),
        _cost(method),
        _ranges(method.published),
        ', '.join(map(_ours, method.ours)) or '-',
    ]


def _cost(method: Method) -> str:
    if method.step_ratios:
        ratios = method.step_ratios.values()
        return f'step × {_range([f"{x:.1f}" for x in sorted(ratios)])}'
    ratios = method.loss_ratios.values()
    return f'loss × {" + ".join(f"{x:.3g}" for x in ratios)}' if ratios else '-'


def _ranges(gains: Iterable[Gain]) -> str:
    """Return the range of the gains in each metric."""
    points: dict[str, list[float]] = {}
    for gain in gains:
        points.setdefault(gain.metric, []).append(gain.points)
    cells = [
        f'{_range([f"{x:+.1f}" for x in sorted(values)])} {metric}'
        for metric, values in points.items()
    ]
    return ', '.join(cells) or '-'


def _ours(gain: Gain) -> str:
    seeds = 'one seed' if gain.seeds == 1 else f'{gain.seeds} seeds'
    return f'{gain.points:+.1f} {gain.metric} ({seeds})'


def _range(ordered: list[str]) -> str:
    return ordered[0] if ordered[0] == ordered[-1] else f'{ordered[0]} to {ordered[-1]}'
