"""What a method gained and what it costs: published scores and our own runs."""

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

COSTS = 'costs.json'
"""The file in configs/ that `tools/benchmark.py` writes."""

BENCHMARKS = dict(digits_det='box AP', digits_frcnn='box AP', digits_seg='mIoU')
"""The tables of our own runs in configs/benchmarks, and their metrics."""


@dataclass(frozen=True)
class Gain:
    """A distilled student's score compared with the student alone.

    Attributes:
        metric: 'box AP', 'mask AP' or 'mIoU', in percent.
        student: Score of the student alone.
        distilled: Score of the distilled student.
        dataset: Such as 'COCO' or 'DigitScenes'.
        source: Who measured it: 'paper', 'reported by ...' or the command of our run.
        seeds: Number of seeds over which our own scores are means; None if unknown.
    """

    metric: str
    student: float
    distilled: float
    dataset: str
    source: str
    seeds: int | None = None

    @property
    def points(self) -> float:
        """Return the gain in points; negative if the student was better alone."""
        return round(self.distilled - self.student, 2)


def published_gains(metafile: Mapping[str, Any]) -> list[Gain]:
    """Return the gains that the metafile of a method reports, without unrun recipes.

    The score of the student alone is that of its own config in mmdet or mmseg, which
    may differ from the baseline of the paper.
    """
    return [
        Gain(metric, alone[metric], score, result['Dataset'], result['Source'])
        for model in metafile['Models']
        for alone in [model['Metadata'].get('Student', {}).get('Metrics', {})]
        for result in model['Results']
        for metric, score in result['Metrics'].items()
        if metric in alone
    ]


def benchmark_rows(configs: Path, suite: str) -> list[dict[str, str]]:
    """Return the rows of a benchmark's table that have a result, as text.

    Args:
        configs: The folder configs/.
        suite: One of `BENCHMARKS`.
    """
    path = configs / f'benchmarks/{suite}.csv'
    with path.open(encoding='utf-8', newline='') as file:
        return [row for row in csv.DictReader(file) if int(row['seeds'])]


@cache
def benchmark_gains(configs: Path) -> dict[str, dict[str, Gain]]:
    """Return the gains in the benchmarks of DigitScenes, by suite and row.

    The student's score is the one that gives the difference in the table, which is a
    mean over the seeds that both have.
    """
    return {
        suite: {
            row['row']: Gain(
                metric,
                round(float(row['mean']) - float(row['difference']), 2),
                float(row['mean']),
                'DigitScenes',
                f'tools/run_benchmark.py configs/benchmarks/{suite}.py',
                int(row['seeds']),
            )
            for row in benchmark_rows(configs, suite)
            if row['difference']
        }
        for suite, metric in BENCHMARKS.items()
    }


def own_gains(configs: Path, method: str) -> list[Gain]:
    """Return the gains of a method in the benchmarks of DigitScenes.

    Args:
        configs: The folder configs/.
        method: Its folder, which is the name of its row.
    """
    found = benchmark_gains(configs).values()
    return [gains[method] for gains in found if method in gains]


def step_ratios(configs: Path, recipes: Iterable[str]) -> dict[str, float]:
    """Return the time of a distilled step in units of the student's own, if measured.

    Args:
        configs: The folder configs/.
        recipes: Names of files in configs/digits, without ``.py``.
    """
    steps = _read(configs / COSTS)['steps']['values']
    return {name: steps[name]['ratio'] for name in recipes if name in steps}


def loss_ratios(configs: Path, losses: Iterable[str]) -> dict[str, float]:
    """Return the time of each loss in units of a plain mean squared error.

    Losses on other wires than feature maps have none.
    """
    values = _read(configs / COSTS)['losses']['values']
    return {name: values[name] for name in losses if name in values}


@cache
def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding='utf-8'))
