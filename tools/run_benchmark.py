"""Compare distillation methods under one recipe, over several seeds.

SUITE is a file of configs/benchmarks. The results are written beside it: NAME.json with
one row per run, NAME.csv with means and differences, docs/images/benchmark_NAME.png.
A call runs only what has no result yet.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jobs import ROOT, console
from suite_cost import measure_costs, read_costs
from suite_expected import Expected
from suite_file import Suite, check_names, read_suite
from suite_needs import missing_data, missing_place, preset_of
from suite_plan import Run
from suite_preview import Plan, show_checks, show_plan, tell_changed
from suite_report import report, tell_failed
from suite_results import check_writable, keep, read_results, to_do
from suite_running import jobs_of, run_all
from suite_slurm import submit_all

from kdtoolbox.checkpoints.reading import use_safe_loaders
from kdtoolbox.datasets import PRESETS, make_digit_scenes
from kdtoolbox.runs.brief_errors import add_traceback, brief_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('suite', type=Path, help='a file of configs/benchmarks')
    parser.add_argument('--rows', nargs='+', metavar='ROW', help='only these rows')
    parser.add_argument('--seeds', nargs='+', type=int, help='only these seeds')
    parser.add_argument(
        '--factors', nargs='+', type=float, help='with --tune: only these factors'
    )
    parser.add_argument('--jobs', type=int, help='runs at once; as many as cores')
    parser.add_argument('--launcher', choices=['none', 'slurm'], default='none')
    parser.add_argument('--partition', help="slurm's partition")
    parser.add_argument('--retry', action='store_true', help='run failed runs again')
    parser.add_argument(
        '--student-step', type=float, metavar='S', help='seconds, for the expected time'
    )
    parser.add_argument('--work-dir', type=Path, help='work_dirs/benchmarks/NAME')
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--dry-run', action='store_true', help='check and show the plan')
    what.add_argument('--table', action='store_true', help='run nothing')
    what.add_argument(
        '--cost', action='store_true', help='measure a step of each row, train nothing'
    )
    parser.add_argument(
        '--tune',
        action='store_true',
        help="search the factor of each method's weights, by `tuning` of the suite",
    )
    add_traceback(parser)
    args = parser.parse_args()
    if args.launcher == 'slurm' and not args.partition:
        parser.error('--launcher slurm needs --partition NAME')
    if args.cost and args.tune:
        parser.error('--cost measures the rows, not their search; leave out --tune')
    if args.factors and not args.tune:
        parser.error('--factors needs --tune')
    if args.jobs is not None and args.jobs < 1:
        parser.error('--jobs: expected at least 1')
    if args.student_step is not None and args.student_step <= 0:
        parser.error('--student-step: expected seconds above 0')
    if args.table and (args.rows or args.seeds):
        parser.error('--table shows all rows and seeds; leave out --rows and --seeds')
    return args


def read(args: argparse.Namespace, path: Path) -> Suite:
    """Return the suite, checked together with the flags.

    Raises:
        ValueError: If something does not fit.
    """
    suite = read_suite(path)
    check_names(args.rows or [], suite.rows, '--rows')
    if args.tune:
        _check_tuning(suite, args.rows or [])
    own = {seed for row in suite.rows.values() for seed in row.seeds}
    _check_among('seeds', args.seeds, {*suite.tuning.seeds} if args.tune else own, path)
    if args.factors:
        _check_among('factors', args.factors, {*suite.tuning.factors}, path)
    return suite


def _check_tuning(suite: Suite, rows: Sequence[str]) -> None:
    name = suite.path.name
    if suite.tuning is None:
        raise ValueError(
            f'--tune: {name} has no `tuning`; write '
            '`tuning = dict(seeds=[100], factors=[0.3, 1, 3], options={})`'
        )
    for row in rows:
        if not suite.rows[row].method:
            raise ValueError(
                f'--tune: expected rows with a `method`, and {row!r} of {name} has '
                f'none; leave out {row!r}'
            )


def _check_among(
    name: str, given: list[float] | None, known: set[float], path: Path
) -> None:
    unknown = sorted({*(given or [])} - known)
    if unknown:
        raise ValueError(
            f'--{name}: expected some of {sorted(known)}, got {unknown}; add them to '
            f'`{name}` in {path.name}'
        )


def prepare(suite: Suite, local: bool) -> None:
    """Make DigitScenes if a suite needs them.

    Args:
        suite: The suite.
        local: Whether the runs start on this machine.

    Raises:
        ValueError: If other data are missing, or GPUs, or slurm.
    """
    missing = missing_data(suite) or missing_place(suite, local)
    if missing:
        raise ValueError(missing)
    preset = suite.data and preset_of(suite.data)
    if preset:
        tuning = suite.data.endswith('_tuning')
        make_digit_scenes(Path('data', suite.data), PRESETS[preset], tuning=tuning)


def is_chosen(run: Run, args: argparse.Namespace) -> bool:
    """Return whether the flags leave a run in."""
    flags = (args.rows, args.factors, args.seeds)
    return all(
        not flag or part in flag for flag, part in zip(flags, run.key, strict=True)
    )


def run(args: argparse.Namespace, plan: Plan, results: Path) -> int:
    """Plan, run and report; return the exit status."""
    suite = plan.suite
    names = [name for name in suite.rows if not args.rows or name in args.rows]
    if args.cost:
        costs = suite.path.with_suffix('.costs.json')
        failures = measure_costs(suite, plan.recipes_of(names), costs)
        report(plan, results)
        for failure in failures:
            console.print(failure, markup=False, soft_wrap=True)
        return int(bool(failures))
    runs = [run for run in plan.runs_of(names) if is_chosen(run, args)]
    found = read_results(results)
    states = to_do(runs, found, args.retry)
    expected = Expected(found.values(), args.student_step)
    expected.set_iterations(runs)
    at_once = args.jobs or jobs_of(suite.gpus)
    tell_changed(states['changed'], results)
    show_plan(states, expected, at_once)
    keys = {one.key for state in ('new', 'changed') for one in states[state]}
    if args.dry_run:
        left = {name for name, *_ in keys} | {one.row.name for one in states['stuck']}
        return show_checks(plan, names, left, args.launcher == 'none')
    waiting = [one for one in runs if one.key in keys]
    write = partial(keep, results, order=[*suite.rows])
    try:
        if args.launcher == 'slurm':
            submit_all(waiting, write, args.partition, suite.gpus)
        else:
            run_all(waiting, expected.step, write, at_once, suite.gpus)
    finally:
        report(plan, results)
    return tell_failed(runs, read_results(results), args.launcher == 'none')


def main() -> int:
    args = parse_args()
    path = args.suite.resolve()
    if args.work_dir:
        args.work_dir = args.work_dir.resolve()
    if path.is_relative_to(ROOT):
        # The shipped configs name their data from the root of the repository. Others
        # name them from where their user stands, as for `tools/train.py`.
        os.chdir(ROOT)
    folder = args.work_dir or Path('work_dirs/benchmarks', path.stem).resolve()
    use_safe_loaders()
    # So that its runs end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with brief_errors(args.traceback):
        suite = read(args, path)
        results = path.with_suffix('.json')
        if args.tune:
            suite.data = suite.tuning.data
            results, folder = path.with_suffix('.tuning.json'), folder / 'tuning'
        plan = Plan(suite, args.tune, folder)
        # Before hours of training whose results would have no place.
        read_results(results)
        read_costs(path.with_suffix('.costs.json'))
        if not args.dry_run:
            check_writable(path.parent, 'copy the suite, whose results go beside it')
        if args.table:
            report(plan, results)
            return 0
        if not (args.dry_run or args.cost):
            check_writable(folder, 'give another folder as --work-dir')
            prepare(suite, args.launcher == 'none')
        return run(args, plan, results)


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit('Stopped. The same call goes on with it.')
