"""What a suite has found, printed and written; part of tools/run_benchmark.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs import ROOT, console
from rich.console import Console
from suite_cost import costs_of
from suite_file import Suite
from suite_plan import Run
from suite_plot import draw
from suite_preview import Plan
from suite_results import Key, in_repository, to_do
from suite_statistics import summaries
from suite_table import table_of, write_csv
from suite_tuning import best_of, line_to_paste, means_of, tuning_table


def picture_of(suite: Suite) -> Path:
    """Return the path of the picture: in docs/ for a suite of the repository."""
    if suite.path.is_relative_to(ROOT / 'configs'):
        return ROOT / f'docs/images/benchmark_{suite.path.stem}.png'
    return suite.path.with_suffix('.png')


def report(plan: Plan, results: Path) -> None:
    """Print the table of a suite or of its search; write the former and its picture."""
    if plan.tune:
        _report_tuning(plan, results)
        return
    suite = plan.suite
    costs = costs_of(suite, suite.path.with_suffix('.costs.json'))
    found = summaries(suite, plan.results_of(results), costs)
    # A file gets whole lines, however long.
    wide = console if console.is_terminal else Console(width=160)
    wide.print(table_of(suite, found))
    written = [suite.path.with_suffix('.csv')]
    write_csv(written[0], found)
    if draw(suite, found, picture_of(suite)):
        written.append(picture_of(suite))
    paths = ' and '.join(in_repository(path) for path in written)
    console.print(f'{paths} written', soft_wrap=True)


def _report_tuning(plan: Plan, results: Path) -> None:
    """Print the table of the search, and the lines to paste into the suite."""
    suite, rows = plan.suite, plan.results_of(results)
    console.print(tuning_table(suite, rows))
    planned = len(suite.tuning.factors) * len(suite.tuning.seeds)
    for name, factors in means_of(rows).items():
        done = sum(len(scores) for scores in factors.values())
        if done < planned:
            console.print(f'{name}: only {done} of {planned} runs are done:')
        line = line_to_paste(suite, name, plan.recipes[name], best_of(factors))
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def tell_failed(
    runs: Sequence[Run], results: Mapping[Key, dict], local: bool = True
) -> int:
    """Print why runs have no result; return the exit status: 1 if one has none.

    Args:
        runs: The runs.
        results: The rows that exist.
        local: Whether they ran on this machine; slurm may still run them.
    """
    states = to_do(runs, results, retry=False)
    for run in states['failed']:
        reason = results[run.key]['reason']
        console.print(f'{run.label} failed: {reason}', markup=False, soft_wrap=True)
    if states['failed']:
        console.print('Run them again with --retry.')
    for run in states['stuck']:
        told = f'{run.label}: its config has changed, and cannot start: {run.obstacle}'
        console.print(told, markup=False, soft_wrap=True)
    left = [*states['new'], *states['changed']] if local else []
    if left:
        console.print(f'{len(left)} runs have no result yet; call again')
    return int(bool(states['failed'] or states['stuck'] or left))
