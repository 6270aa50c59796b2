"""How long the runs of a suite will take; part of tools/run_benchmark.py."""

import json
from collections.abc import Iterable
from functools import cache
from statistics import mean

from jobs import ROOT
from suite_plan import Run

from kdtoolbox.configuration import load_config

COSTS = ROOT / 'docs/performance.json'


class Expected:
    """The expected time of a step of each run.

    It is the time measured for the row. Else it is the student's, times the ratio in
    docs/performance.json if that was measured for the same pair.

    Args:
        rows: Rows of results.
        student_step: Seconds of a step of the student alone, unless a row has them.
    """

    def __init__(self, rows: Iterable[dict], student_step: float | None = None) -> None:
        self._student_step = student_step
        self._measured: dict[str, list[float]] = {}
        self._iterations: dict[str, int] = {}
        for row in rows:
            if row['status'] == 'done':
                self._iterations[row['row']] = row['iterations']
            if row['seconds_per_iteration']:
                steps = self._measured.setdefault(row['row'], [])
                steps.append(row['seconds_per_iteration'])
        costs = json.loads(COSTS.read_text()) if COSTS.exists() else []
        self._costs = {cost['config']: cost for cost in costs}

    def set_iterations(self, runs: Iterable[Run]) -> None:
        """Give runs whose length is in epochs the iterations that their row has had."""
        for run in runs:
            run.iterations = run.iterations or self._iterations.get(run.row.name, 0)

    def ratio(self, run: Run) -> float | None:
        """Return the time of a step in units of the student's, None if unknown."""
        own, alone = self._of(run.row.name), self._of(run.suite.baseline)
        if own and alone:
            return own / alone
        if run.row.name == run.suite.baseline:
            return 1.0
        cost = self._cost(run)
        return cost['vs_student'] if cost else None

    def step(self, run: Run) -> float | None:
        """Return the seconds of a step, None if nothing is known."""
        own = self._of(run.row.name)
        if own:
            return own
        student = self._of(run.suite.baseline) or self._student_step
        ratio = self.ratio(run)
        return student * ratio if student and ratio else None

    def notes(self, runs: Iterable[Run]) -> list[str]:
        """Return what to know about these figures."""
        runs = list(runs)
        costs = [self._cost(run) for run in runs if not self._of(run.row.name)]
        known = [cost for cost in costs if cost]
        places = dict.fromkeys(
            f'{cost["device"]}, images of {" x ".join(map(str, cost["size"]))}'
            for cost in known
        )
        notes = []
        if known:
            notes.append(
                f'× student: docs/performance.json, measured on {"; ".join(places)}. '
                'It may differ on a GPU: docs/performance.md shows how to measure it.'
            )
        if not all(self.step(run) for run in runs if self.ratio(run)):
            notes.append(
                "time of a run = iterations * × student * seconds of the student's "
                'step; --student-step gives these seconds, or train the student first'
            )
        return notes

    def _of(self, row: str) -> float | None:
        """Return the measured seconds of a step of a row."""
        return mean(self._measured[row]) if row in self._measured else None

    def _cost(self, run: Run) -> dict | None:
        """Return the line of docs/performance.json for the pair of a run."""
        cost = self._costs.get(run.template)
        pair = run.suite.student, run.suite.teacher.config
        return cost if cost and _is_pair(run.template, *pair) else None

    def run(self, run: Run) -> float | None:
        """Return the seconds of a run, None if nothing is known."""
        step = self.step(run)
        return step * run.iterations if step and run.iterations else None


@cache
def _is_pair(template: str, student: str, teacher: str) -> bool:
    """Return whether a shipped recipe is for these models."""
    path = ROOT / template
    base = f"_base_ = '{student}'" in path.read_text()
    return base and load_config(path).model.teacher.config == teacher
