"""How long the runs of a suite will take; part of tools/run_benchmark.py."""

import json
from collections.abc import Iterable
from statistics import mean

from jobs import ROOT
from suite_plan import Run

from kdtoolbox.configuration import load_config

COSTS = ROOT / 'docs/performance.json'


class Expected:
    """The expected time of a step of each run.

    It is the time measured for the row. Else it is the baseline's, times the ratio in
    docs/performance.json if that was measured for the same pair.

    Args:
        rows: Rows of results.
    """

    def __init__(self, rows: Iterable[dict]) -> None:
        self._measured: dict[str, list[float]] = {}
        self._iterations: dict[str, int] = {}
        for row in rows:
            if row['status'] == 'done':
                self._iterations[row['row']] = row['iterations']
            if row['seconds_per_iteration']:
                steps = self._measured.setdefault(row['row'], [])
                steps.append(row['seconds_per_iteration'])
        costs = json.loads(COSTS.read_text()) if COSTS.exists() else []
        self._ratios = {cost['config']: cost['vs_student'] for cost in costs}

    def set_iterations(self, runs: Iterable[Run]) -> None:
        """Give runs whose length is in epochs the iterations that their row has had."""
        for run in runs:
            run.iterations = run.iterations or self._iterations.get(run.row.name, 0)

    def step(self, run: Run) -> float | None:
        """Return the seconds of a step, None if nothing is known."""
        own = self._measured.get(run.row.name)
        if own:
            return mean(own)
        alone = self._measured.get(run.suite.baseline)
        ratio = self._ratios.get(run.template)
        if alone and ratio and _is_pair_of(run):
            return mean(alone) * ratio
        return None

    def run(self, run: Run) -> float | None:
        """Return the seconds of a run, None if nothing is known."""
        step = self.step(run)
        return step * run.iterations if step and run.iterations else None


def _is_pair_of(run: Run) -> bool:
    """Return whether the shipped recipe is for the models of the suite."""
    path = ROOT / run.template
    base = f"_base_ = '{run.suite.student}'" in path.read_text()
    teacher = load_config(path).model.teacher.config
    return base and teacher == run.suite.teacher.config
