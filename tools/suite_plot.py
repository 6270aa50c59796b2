"""The picture of a suite's results; part of tools/run_benchmark.py."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from suite_file import Suite
from suite_statistics import Summary

from kdtoolbox.checkpoints.writing import write_whole

# Okabe and Ito's blue and vermilion, which colour-blind readers can tell apart.
BETTER, WORSE, OPEN = '#0072B2', '#D55E00', '#6b6b6b'
WIDTH = 8.0
"""Inches, of 100 pixels each."""


def draw(suite: Suite, found: Sequence[Summary], path: Path) -> bool:
    """Draw the difference of each row to the baseline, with its 95 % interval.

    Returns:
        Whether there was a difference to draw.
    """
    shown = [one for one in found if one.difference is not None]
    if not shown:
        # A picture of earlier results would contradict the table.
        path.unlink(missing_ok=True)
        return False
    shown.sort(key=lambda one: one.difference)
    figure = Figure(figsize=(WIDTH, 1.3 + 0.32 * len(shown)), dpi=100)
    axes = figure.add_subplot()
    for place, one in enumerate(shown):
        _draw_row(axes, place, one)
    alone = next(one for one in found if one.row == suite.baseline)
    axes.axvline(0, color='black', linewidth=1)
    axes.set_yticks(range(len(shown)), [_label(one) for one in shown])
    axes.set_ylim(-0.6, len(shown) - 0.2)
    axes.set_xlim(*_limits(shown))
    axes.set_xlabel(
        f'difference to {suite.baseline} ({alone.mean:.1f}) in {suite.metric}, points\n'
        'filled: the interval leaves out 0',
        fontsize=9,
    )
    axes.set_title(
        f'{suite.path.stem}: mean over n seeds and its 95 % interval', fontsize=10
    )
    axes.grid(axis='x', color='#dddddd', linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ('top', 'right', 'left'):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis='y', length=0)
    figure.tight_layout()
    image = BytesIO()
    # Without the version of matplotlib in it, equal pictures are equal files.
    figure.savefig(image, format='png', metadata=dict(Software=None))
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as file:
        file.write(image.getvalue())
    return True


def _limits(shown: Sequence[Summary]) -> tuple[float, float]:
    """Return the range of the axis, which the wide intervals of two seeds may leave."""
    intervals = [one.interval for one in shown if one.interval and one.pairs > 2]
    ends = [0.0, *(end for ends in intervals for end in ends)]
    ends += [one.difference for one in shown]
    margin = 0.06 * (max(ends) - min(ends)) or 1.0
    return min(ends) - margin, max(ends) + margin


def _draw_row(axes: Axes, place: int, one: Summary) -> None:
    """Draw one row: filled where the interval leaves out zero, else hollow."""
    low, high = one.interval or (one.difference, one.difference)
    sure = one.interval is not None and not low <= 0 <= high
    colour = OPEN if not sure else BETTER if one.difference > 0 else WORSE
    axes.plot([low, high], [place, place], color=colour, linewidth=2)
    face = colour if sure else 'white'
    axes.plot(
        one.difference, place, 'o', color=colour, markerfacecolor=face, markersize=7
    )
    axes.annotate(
        f'{one.difference:+.1f}',
        (one.difference, place),
        (0, 6),
        textcoords='offset points',
        ha='center',
        fontsize=8,
        bbox=dict(facecolor='white', edgecolor='none', pad=0.5),
    )


def _label(one: Summary) -> str:
    return f'{one.row} (n={one.pairs})'
