"""The configs of a suite and the plan of its runs; part of tools/run_benchmark.py."""

import io
import warnings
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from jobs import console
from rich.table import Table
from suite_expected import Expected
from suite_file import Suite
from suite_plan import Recipe, Run, recipe_of_row
from suite_progress import duration
from suite_tuning import without_weights

from kdtoolbox.inspection.faults import find_faults


@contextmanager
def quiet() -> Iterator[None]:
    """Hide what the libraries print and warn of while they build models."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        yield


def recipes_of(suite: Suite, args: Namespace) -> dict[str, Recipe]:
    """Return the config of each row to run, in the order of the suite."""
    further = suite.tuning.options if args.tune else {}
    recipes = {}
    for name, row in suite.rows.items():
        if (args.rows and name not in args.rows) or (args.tune and not row.method):
            continue
        console.print(f'make the config of {name} ...')
        with quiet():
            chosen = without_weights(row) if args.tune else row
            recipes[name] = recipe_of_row(suite, chosen, further)
    return recipes


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
            for runs in (waiting, states['done'], states['failed'])
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


def show_schedules(rows: Mapping[str, Sequence[str]]) -> None:
    """Print how the rows train, and which rows train in another way."""
    for schedule, names in rows.items():
        which = 'each run' if len(rows) == 1 else ', '.join(names)
        console.print(f'{which}: {schedule}', markup=False, soft_wrap=True)


def show_needs(needs: Sequence[str]) -> None:
    """Print what the runs need and a plan does not."""
    if needs:
        lines = '\n  '.join(['before the first run:', *needs])
        console.print(lines, markup=False, soft_wrap=True)


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
