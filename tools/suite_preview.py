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
            recipes[name] = recipe_of_row(suite, row, further)
    return recipes


def show_plan(
    states: Mapping[str, Sequence[Run]], expected: Expected, at_once: int
) -> None:
    """Print what will run, what is done, and for how long."""
    waiting = [*states['new'], *states['changed']]
    table = Table('row', 'to run', 'done', 'failed', 'iterations', 'time of a run')
    every = [run for runs in states.values() for run in runs]
    for name in dict.fromkeys(run.row.name for run in every):
        counts = [
            str(sum(run.row.name == name for run in runs))
            for runs in (waiting, states['done'], states['failed'])
        ]
        run = next(run for run in every if run.row.name == name)
        seconds = expected.run(run)
        time = '?' if seconds is None else duration(seconds)
        table.add_row(name, *counts, str(run.iterations or '?'), time)
    console.print(table)
    times = [expected.run(run) for run in waiting]
    known = sum(seconds for seconds in times if seconds is not None)
    unknown = sum(seconds is None for seconds in times)
    total = duration(known / at_once) if known or not unknown else '?'
    more = f', and {unknown} runs of unknown length' if unknown and known else ''
    console.print(f'{len(waiting)} runs, {at_once} at once: about {total}{more}')


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
