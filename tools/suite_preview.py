"""The configs of a suite and the plan of its runs; part of tools/run_benchmark.py."""

import io
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from jobs import console
from rich.table import Table
from suite_expected import Expected
from suite_file import Suite
from suite_needs import needs_of, schedules_of
from suite_plan import Recipe, Run, recipe_of_row, runs_of
from suite_progress import duration
from suite_results import counted, read_results
from suite_tuning import tuning_runs, without_weights

from kdtoolbox.inspection.faults import find_faults
from kdtoolbox.runs.brief_errors import STATUS


@contextmanager
def quiet() -> Iterator[None]:
    """Hide what the libraries print and warn of while they build models."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        yield


@dataclass
class Plan:
    """The runs of a suite, and the configs of the rows for which they were asked.

    Attributes:
        suite: The suite.
        tune: Whether the runs are those of the search.
        folder: The folder of the runs.
        recipes: The configs that were made, by row.
    """

    suite: Suite
    tune: bool
    folder: Path
    recipes: dict[str, Recipe] = field(default_factory=dict)

    def recipes_of(self, names: Iterable[str]) -> dict[str, Recipe]:
        """Return the config of rows; a search has only rows with a method."""
        further = self.suite.tuning.options if self.tune else {}
        rows = {name: self.suite.rows[name] for name in names}
        if self.tune:
            rows = {k: without_weights(row) for k, row in rows.items() if row.method}
        for name, row in rows.items():
            if name not in self.recipes:
                console.print(f'make the config of {name} ...')
                with quiet():
                    self.recipes[name] = recipe_of_row(self.suite, row, further)
        return {name: self.recipes[name] for name in rows}

    def runs_of(self, names: Iterable[str]) -> list[Run]:
        """Return the runs of rows."""
        make_runs = tuning_runs if self.tune else runs_of
        recipes = self.recipes_of(names)
        with quiet():
            return make_runs(self.suite, recipes, self.folder)

    def results_of(self, results: Path) -> list[dict]:
        """Return the results of the planned runs; say how many others there are."""
        found = read_results(results)
        known = {row for row, *_ in found}
        runs = self.runs_of(name for name in self.suite.rows if name in known)
        rows = counted(runs, found)
        if len(rows) < len(found):
            console.print(
                f'{len(found) - len(rows)} rows of {results.name} do not count: the '
                'suite has no such run, or has it with another config or metric',
                soft_wrap=True,
            )
        return rows


def show_plan(
    states: Mapping[str, Sequence[Run]], expected: Expected, at_once: int
) -> None:
    """Print what will run, what is done, and for how long."""
    waiting = [*states['new'], *states['changed']]
    titles = ('to run', 'done', 'failed', 'iterations', '× student', 'time of a run')
    table = Table('row', *titles)
    every = [run for runs in states.values() for run in runs]
    for name in dict.fromkeys(run.row.name for run in every):
        counts = [
            str(sum(run.row.name == name for run in runs))
            for runs in (waiting, states['done'], states['failed'] + states['stuck'])
        ]
        run = next(run for run in every if run.row.name == name)
        seconds, ratio = expected.run(run), expected.ratio(run)
        time = '?' if seconds is None else duration(seconds)
        times = '?' if ratio is None else f'{ratio:.2f}'
        table.add_row(name, *counts, str(run.iterations or '?'), times, time)
    console.print(table)
    for note in expected.notes(every):
        console.print(note, markup=False, soft_wrap=True)
    times = [expected.run(run) for run in waiting]
    known = sum(seconds for seconds in times if seconds is not None)
    unknown = sum(seconds is None for seconds in times)
    total = duration(known / at_once) if known or not unknown else '?'
    more = f', and {unknown} runs of unknown length' if unknown and known else ''
    console.print(f'{len(waiting)} runs, {at_once} at once: about {total}{more}')


def show_checks(
    plan: Plan, names: Sequence[str], left: Collection[str], local: bool
) -> int:
    """Print how rows train, what they need and what is wrong; return the status.

    Args:
        plan: The plan.
        names: The names of the rows.
        left: The names of those that have runs left to do.
        local: Whether their runs would start on this machine.
    """
    suite, recipes = plan.suite, plan.recipes_of(names)
    schedules = schedules_of(recipes, suite.gpus)
    for schedule, rows in schedules.items():
        which = 'each run' if len(schedules) == 1 else ', '.join(rows)
        console.print(f'{which}: {schedule}', markup=False, soft_wrap=True)
    to_run = {name: recipe for name, recipe in recipes.items() if name in left}
    needs = needs_of(suite, to_run, local) if to_run else []
    if needs:
        lines = '\n  '.join(['before the first run:', *needs])
        console.print(lines, markup=False, soft_wrap=True)
    faults = faults_of(recipes)
    for name, lines in faults.items():
        console.print(f'{name}:', *lines, sep='\n', markup=False, soft_wrap=True)
    return STATUS if faults else 0


def faults_of(recipes: Mapping[str, Recipe]) -> dict[str, list[str]]:
    """Return what is wrong with the config of each row; no weights are read."""
    found = {}
    for name, recipe in recipes.items():
        console.print(f'check {name} ...')
        with quiet():
            faults = [] if recipe.config is None else find_faults(recipe.config)
        found[name] = [str(fault) for fault in faults]
        if recipe.error:
            found[name].append(recipe.error)
    return {name: faults for name, faults in found.items() if faults}


def tell_changed(runs: Sequence[Run], results: Path) -> None:
    """Say which rows of the results will be replaced."""
    for run in runs:
        console.print(
            f'{run.label}: its config has changed, so its row of {results.name} will '
            'be replaced'
        )
