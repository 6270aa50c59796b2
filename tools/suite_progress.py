"""Show how far a benchmark is; part of tools/run_benchmark.py."""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from statistics import mean
from typing import Any

from jobs import Job, console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from suite_plan import Run
from suite_results import outcome

LINE_SECONDS = 60.0
"""Seconds between the lines in a log file."""

Seconds = Callable[[Run], float | None]


class Board:
    """Bars of the running jobs on a terminal, or now and then a line in a log file.

    Args:
        runs: All runs that are to be made.
        seconds: Returns the expected time of a step, None if unknown.
        at_once: Number of runs at the same time.
    """

    def __init__(self, runs: Sequence[Run], seconds: Seconds, at_once: int) -> None:
        self._runs = {run.key: run for run in runs if not run.obstacle}
        self._total = len(self._runs)
        self._seconds, self._at_once = seconds, at_once
        self._measured: dict[str, list[float]] = {}
        self._bars: dict[str, TaskID] = {}
        self._printed = time.monotonic()
        self._progress = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            TextColumn('{task.fields[at]}'),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> 'Board':
        self._progress.start()
        self._all = self._progress.add_task('all runs', total=self._total, at='')
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, running: Sequence[Job]) -> None:
        """Show the running jobs."""
        at = {job.label: job.iteration() for job in running}
        left = self._left(at)
        done = f'{self._total - len(self._runs)}/{self._total} done, {left} left'
        self._progress.update(self._all, at=done)
        for label in self._bars.keys() - at.keys():
            self._progress.remove_task(self._bars.pop(label))
        for job in running:
            if job.label not in self._bars:
                total = job.iterations or None
                self._bars[job.label] = self._progress.add_task(
                    job.label, total=total, at=''
                )
            self._progress.update(
                self._bars[job.label], completed=at[job.label], at=_place(job, at)
            )
        if not console.is_terminal and time.monotonic() - self._printed > LINE_SECONDS:
            self._printed = time.monotonic()
            jobs = ', '.join(
                f'{job.label} {_place(job, at)}'.strip() for job in running
            )
            console.print(f'{done}; running: {jobs}')

    def finished(self, run: Run, row: dict[str, Any]) -> None:
        """Print the result of a run."""
        del self._runs[run.key]
        if row['seconds_per_iteration']:
            steps = self._measured.setdefault(run.row.name, [])
            steps.append(row['seconds_per_iteration'])
        done = self._total - len(self._runs)
        self._progress.update(self._all, completed=done)
        console.print(f'{done}/{self._total} {run.label}: {outcome(row)}', markup=False)

    def _left(self, at: dict[str, int]) -> str:
        """Return the time left for all runs, by their iterations."""
        total = 0.0
        for run in self._runs.values():
            step = self._step(run)
            if step is None or not run.iterations:
                return '?'
            if f'test of {run.label}' not in at:
                total += step * (run.iterations - at.get(run.label, 0))
        return duration(total / max(1, min(self._at_once, len(self._runs))))

    def _step(self, run: Run) -> float | None:
        own = self._measured.get(run.row.name)
        every = [value for values in self._measured.values() for value in values]
        if own:
            return mean(own)
        return self._seconds(run) or (mean(every) if every else None)


def duration(seconds: float) -> str:
    """Return a duration in hours and minutes, or in seconds below a minute.

    Example:
        >>> duration(3725), duration(42.3)
        ('1:02 h', '42 s')
    """
    if seconds < 60:
        return f'{seconds:.0f} s'
    return f'{str(timedelta(minutes=round(seconds / 60)))[:-3]} h'


def _place(job: Job, at: dict[str, int]) -> str:
    done = at[job.label]
    if not done and not job.iterations:
        # A test, or a training that has not logged anything yet.
        return ''
    return f'iteration {done}' + (f'/{job.iterations}' if job.iterations else '')
