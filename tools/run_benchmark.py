"""Compare distillation methods under one recipe, over several seeds.

SUITE is a file of configs/benchmarks. The results are written beside it: NAME.json with
one row per run, NAME.csv with means and differences, docs/images/benchmark_NAME.png.
A call runs only what has no result yet.
"""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path

from jobs import ROOT, console
from rich.console import Console
from rich.table import Table
from suite_expected import Expected
from suite_file import Suite, check_names, read_suite
from suite_plan import Recipe, Run, recipe_of_row, runs_of
from suite_plot import draw
from suite_progress import duration
from suite_results import in_repository, keep, read_results, to_do
from suite_running import jobs_of, run_all
from suite_slurm import submit_all
from suite_statistics import summaries
from suite_table import table_of, write_csv
from suite_tuning import (
    best_of,
    line_to_paste,
    means_of,
    tuning_runs,
    tuning_table,
)

from kdtoolbox.checkpoints.reading import use_safe_loaders
from kdtoolbox.datasets import PRESETS, make_digit_scenes
from kdtoolbox.inspection.faults import find_faults
from kdtoolbox.runs.brief_errors import STATUS, add_traceback, brief_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('suite', type=Path, help='a file of configs/benchmarks')
    parser.add_argument('--rows', nargs='+', metavar='ROW', help='only these rows')
    parser.add_argument('--seeds', nargs='+', type=int, help='only these seeds')
    parser.add_argument('--jobs', type=int, help='runs at once; as many as cores')
    parser.add_argument('--gpus', type=int, default=1, help='GPUs of each run')
    parser.add_argument('--launcher', choices=['none', 'slurm'], default='none')
    parser.add_argument('--partition', help="slurm's partition")
    parser.add_argument('--retry', action='store_true', help='run failed runs again')
    parser.add_argument('--work-dir', type=Path, help='work_dirs/benchmarks/NAME')
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--dry-run', action='store_true', help='check and show the plan')
    what.add_argument('--table', action='store_true', help='run nothing')
    parser.add_argument(
        '--tune',
        action='store_true',
        help="search the factor of each method's weights, by `tuning` of the suite",
    )
    add_traceback(parser)
    args = parser.parse_args()
    if args.launcher == 'slurm' and not args.partition:
        parser.error('--launcher slurm needs --partition NAME')
    return args


@contextmanager
def quiet() -> Iterator[None]:
    """Hide what the libraries print and warn of while they build models."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        yield


def read(args: argparse.Namespace, path: Path) -> Suite:
    """Return the suite, checked together with the flags.

    Raises:
        ValueError: If something does not fit.
    """
    suite = read_suite(path)
    check_names(args.rows or [], suite.rows, '--rows')
    if args.tune and suite.tuning is None:
        raise ValueError(
            f'--tune: {path.name} has no `tuning`; write '
            '`tuning = dict(seeds=[100], factors=[0.3, 1, 3], options={})`'
        )
    own = {seed for row in suite.rows.values() for seed in row.seeds}
    known = own if not args.tune else {*suite.tuning.seeds}
    unknown = sorted({*(args.seeds or [])} - known)
    if unknown:
        raise ValueError(
            f'--seeds: expected some of {sorted(known)}, got {unknown}; add them to '
            f'`seeds` in {path.name}'
        )
    return suite


def prepare_data(suite: Suite) -> None:
    """Make DigitScenes if the suite needs them.

    Raises:
        ValueError: If other data are missing.
    """
    if suite.data is None:
        return
    folder = Path('data', suite.data)
    preset = suite.data.removeprefix('digits_')
    if preset in PRESETS and suite.data != preset:
        make_digit_scenes(folder, PRESETS[preset])
    elif not folder.is_dir():
        raise ValueError(
            f'{suite.path.name}: data: expected the folder {folder.resolve()}, and it '
            f'does not exist; link it: `ln -s /path/to/{suite.data} {folder}`'
        )


def recipes_of(suite: Suite, args: argparse.Namespace) -> dict[str, Recipe]:
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


def picture_of(suite: Suite) -> Path:
    """Return the path of the picture: in docs/ for a suite of the repository."""
    if suite.path.is_relative_to(ROOT / 'configs'):
        return ROOT / f'docs/images/benchmark_{suite.path.stem}.png'
    return suite.path.with_suffix('.png')


def report(suite: Suite, results: Path) -> None:
    """Print the table; write it and the picture."""
    found = summaries(suite, read_results(results).values())
    # A file gets whole lines, however long.
    wide = console if console.is_terminal else Console(width=160)
    wide.print(table_of(suite, found))
    written = [suite.path.with_suffix('.csv')]
    write_csv(written[0], found)
    if draw(suite, found, picture_of(suite)):
        written.append(picture_of(suite))
    paths = ' and '.join(in_repository(path) for path in written)
    console.print(f'{paths} written', soft_wrap=True)


def report_tuning(suite: Suite, results: Path, recipes: Mapping[str, Recipe]) -> None:
    """Print the table of the search, and the lines to paste into the suite."""
    rows = read_results(results).values()
    console.print(tuning_table(suite, rows))
    for name, factors in means_of(rows).items():
        if name in recipes:
            line = line_to_paste(suite, name, recipes[name], best_of(factors))
            console.print(line, soft_wrap=True, markup=False, highlight=False)


def run(args: argparse.Namespace, suite: Suite, results: Path, folder: Path) -> int:
    """Plan, run and report; return the exit status."""
    recipes = recipes_of(suite, args)
    make_runs = tuning_runs if args.tune else runs_of
    with quiet():
        runs = make_runs(suite, recipes, args.seeds, folder)
    found = read_results(results)
    states = to_do(runs, found, args.retry)
    expected = Expected(found.values())
    at_once = args.jobs or jobs_of(args.gpus)
    tell_changed(states['changed'], results)
    show_plan(states, expected, at_once)
    if args.dry_run:
        faults = faults_of(recipes)
        for name, lines in faults.items():
            console.print(f'{name}:', *lines, sep='\n', markup=False, soft_wrap=True)
        return STATUS if faults else 0
    keys = {one.key for state in ('new', 'changed') for one in states[state]}
    waiting = [one for one in runs if one.key in keys]
    write = partial(keep, results, order=[*suite.rows])
    try:
        if args.launcher == 'slurm':
            submit_all(waiting, write, args.partition, args.gpus, args.retry)
        else:
            run_all(waiting, expected.step, write, at_once, args.gpus)
    finally:
        if args.tune:
            report_tuning(suite, results, recipes)
        else:
            report(suite, results)
    failed = to_do(runs, read_results(results), retry=False)['failed']
    for one in failed:
        reason = read_results(results)[one.key]['reason']
        console.print(f'{one.label} failed: {reason}', markup=False, soft_wrap=True)
    if failed:
        console.print('Run them again with --retry.')
    return int(bool(failed))


def main() -> int:
    args = parse_args()
    path = args.suite.resolve()
    folder = args.work_dir or ROOT / 'work_dirs/benchmarks' / path.stem
    folder = folder.resolve()
    # The configs name data and teachers from the root of the repository.
    os.chdir(ROOT)
    use_safe_loaders()
    with brief_errors(args.traceback):
        suite = read(args, path)
        if not args.table:
            prepare_data(suite)
    results = path.with_suffix('.tuning.json' if args.tune else '.json')
    if args.table:
        report(suite, path.with_suffix('.json'))
        return 0
    return run(args, suite, results, folder / 'tuning' if args.tune else folder)


if __name__ == '__main__':
    sys.exit(main())
