"""The results of a suite in a JSON file; part of tools/run_benchmark.py."""

import importlib
import json
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmark_report import processor
from jobs import ROOT, lines_of
from suite_plan import Run

from kdtoolbox.checkpoints.writing import write_whole
from kdtoolbox.configuration import did_you_mean

PACKAGES = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'kdtoolbox')
TIMES = {'time', 'data_time', 'step'}
"""What the JSON of a test contains besides metrics."""

Key = tuple[str, float | None, int]


def read_results(path: Path) -> dict[Key, dict]:
    """Return the rows of a file of results; none if there is no file.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        rows = json.loads(path.read_text()) if path.exists() else []
    except json.JSONDecodeError as error:
        raise ValueError(
            f'{path}: expected the rows of a benchmark as JSON, but {error}; take the '
            f'last good one, `git checkout {path.name}`, or move it away to start anew'
        ) from error
    return {(row['row'], row.get('factor'), row['seed']): row for row in rows}


def keep(path: Path, row: dict, order: Sequence[str]) -> None:
    """Write a row into a file of results, in the place of an older one.

    The file is read again each time, since another process may run other rows.

    Args:
        path: The file.
        row: The row.
        order: Names of the suite's rows, in whose order the file is.
    """
    rows = read_results(path)
    rows[row['row'], row.get('factor'), row['seed']] = row
    places = {name: place for place, name in enumerate(order)}

    def place(item: dict) -> tuple:
        name = item['row']
        known = places.get(name, len(places))
        return known, name, item.get('factor') or 0.0, item['seed']

    # One row per line, so that a diff shows what has changed.
    lines = ',\n'.join(json.dumps(item) for item in sorted(rows.values(), key=place))
    with write_whole(path) as file:
        file.write(f'[\n{lines}\n]\n'.encode())


def result_of(
    run: Run, commit: str, failure: str = '', device: str = ''
) -> dict[str, Any]:
    """Return the row of a run that has ended.

    Args:
        run: The run.
        commit: What `commit` has returned when it started.
        failure: Why it failed, empty if it did not.
        device: What it ran on; by default that of this machine.
    """
    row: dict[str, Any] = dict(row=run.row.name, seed=run.seed)
    if run.factor is not None:
        row['factor'] = run.factor
    if not failure:
        try:
            row['score'] = score_of(run)
        except ValueError as error:
            failure = str(error)
    row |= dict(status='failed', reason=failure) if failure else dict(status='done')
    logged = training_lines(run.folder)
    seconds = [line['time'] for line in logged if 'time' in line]
    return row | dict(
        iterations=max((line['iter'] for line in logged), default=0),
        seconds_per_iteration=round(median(seconds), 5) if seconds else None,
        config_hash=run.config_hash,
        commit=commit,
        versions={name: version_of(name) for name in PACKAGES},
        device=device or device_here(),
        command=shlex.join(
            ['python', *train_command(run), '--work-dir', in_repository(run.folder)]
        ),
        log=in_repository(run.folder),
        date=time.strftime('%Y-%m-%d %H:%M'),
    )


def outcome(row: dict[str, Any]) -> str:
    """Return the score of a row, or why there is none, in words."""
    return str(row.get('score', f'failed: {row.get("reason")}'))


def device_here() -> str:
    """Return the name of the GPU, or of the processor if there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return processor()


def train_command(run: Run) -> list[str]:
    """Return the training's command, without ``--work-dir``."""
    return ['tools/train.py', *run.flags(), '--resume', *run.cfg_options()]


def in_repository(path: Path) -> str:
    """Return a path relative to the repository if it is inside."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def training_lines(folder: Path) -> list[dict]:
    """Return what a training has logged, those before it was resumed included."""
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    # Lines of validations have no `iter`.
    return [line for log in logs for line in lines_of(log) if 'iter' in line]


def score_of(run: Run) -> float:
    """Return the metric of a test in percent.

    Raises:
        ValueError: If the test has written none.
    """
    files = sorted((run.folder / 'test').glob('[0-9]*/[0-9]*.json'))
    if not files:
        raise ValueError(f'the test has written no metrics into {run.folder / "test"}')
    found = json.loads(files[-1].read_text().splitlines()[-1])
    metrics = sorted(found.keys() - TIMES)
    # mmdet reports no metric at all for a model that detects nothing.
    if metrics and run.suite.metric not in metrics:
        raise ValueError(
            f'{run.suite.path.name}: metric: the test has no {run.suite.metric!r}'
            f'{did_you_mean(run.suite.metric, metrics)}. Correct `metric` and call '
            'again with --retry, which trains nothing twice'
        )
    return round(found.get(run.suite.metric, 0.0) * run.suite.scale, 3)


def version_of(package: str) -> str | None:
    """Return the version of a package, None if it is not installed."""
    try:
        return importlib.import_module(package).__version__
    except ImportError:
        return None


def commit(ignored: Iterable[str] = ('configs/benchmarks', 'docs')) -> str:
    """Return the commit of the repository, with 'dirty' if the code is another.

    Args:
        ignored: Folders that do not count, since a benchmark writes to them.
    """
    git = shutil.which('git')
    if git is None or not (ROOT / '.git').exists():
        return 'unknown'

    def ask(*words: str) -> str:
        return subprocess.check_output([git, *words], cwd=ROOT, text=True).strip()

    paths = [f':!{folder}' for folder in ignored]
    changed = ask('status', '--porcelain', '--untracked-files=no', '--', '.', *paths)
    return ask('rev-parse', '--short=10', 'HEAD') + (' dirty' if changed else '')


def to_do(
    runs: Sequence[Run], results: Mapping[Key, dict], retry: bool
) -> dict[str, list[Run]]:
    """Return the runs by what has to happen with them.

    Args:
        runs: The planned runs.
        results: The rows that exist.
        retry: Whether failed runs are tried again.

    Returns:
        ``new`` runs and ``changed`` ones, which replace a row, have to run. ``done``
        and ``failed`` ones do not.
    """
    found: dict[str, list[Run]] = dict(new=[], changed=[], done=[], failed=[])
    for run in runs:
        row = results.get(run.key)
        if row is None or (row['status'] == 'failed' and retry):
            state = 'new'
        elif row['config_hash'] != run.config_hash:
            state = 'changed'
        else:
            state = row['status']
        found[state].append(run)
    return found
