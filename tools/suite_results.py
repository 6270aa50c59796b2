"""The results of a suite in a JSON file; part of tools/run_benchmark.py."""

import fcntl
import importlib
import json
import math
import os
import re
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile
from typing import Any

import torch
from benchmark_report import commit, processor
from jobs import ROOT, lines_of
from suite_plan import Run

from kdtoolbox.checkpoints.writing import write_whole
from kdtoolbox.configuration import did_you_mean

PACKAGES = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'kdtoolbox')
TIMES = {'time', 'data_time', 'step'}
"""What the JSON of a test contains besides metrics."""

OF_DETECTIONS = r'coco/(bbox|segm)_mAP(_50|_75|_s|_m|_l)?'
"""The metrics that are 0 if there is no detection."""

COMMITS = 'commits'
"""The file in the folder of a run that has the commits of its code."""

Key = tuple[str, float | None, int]


def read_results(path: Path) -> dict[Key, dict]:
    """Return the rows of a file of results; none if there is no file.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        rows = json.loads(path.read_text()) if path.exists() else []
        return {(row['row'], row.get('factor'), row['seed']): row for row in rows}
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: expected the rows of a benchmark as JSON, but {error!r}; take '
            f'the last good one, `git checkout {path.name}`, or move it away to start '
            'anew'
        ) from error


def keep(path: Path, row: dict, order: Sequence[str]) -> None:
    """Write a row into a file of results, in the place of an older one.

    The file is read again each time, since another process may run other rows.

    Args:
        path: The file.
        row: The row.
        order: Names of the suite's rows, in whose order the file is.
    """
    places = {name: place for place, name in enumerate(order)}

    def place(item: dict) -> tuple:
        name = item['row']
        known = places.get(name, len(places))
        return known, name, item.get('factor') or 0.0, item['seed']

    with _locked(path.parent):
        rows = read_results(path)
        rows[row['row'], row.get('factor'), row['seed']] = row
        # One row per line, so that a diff shows what has changed.
        lines = [json.dumps(item) for item in sorted(rows.values(), key=place)]
        with write_whole(path) as file:
            file.write('[\n{}\n]\n'.format(',\n'.join(lines)).encode())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process has locked the folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def check_writable(folder: Path, mend: str) -> None:
    """Check that files can be written into a folder, which is made if need be.

    Args:
        folder: The folder.
        mend: What to do if it cannot.

    Raises:
        ValueError: If it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f'{folder}: expected a folder that can be written, got {error}; {mend}'
        ) from error


def result_of(run: Run, failure: str = '', device: str = '') -> dict[str, Any]:
    """Return the row of a run that has ended.

    Args:
        run: The run.
        failure: Why it failed, empty if it did not.
        device: What it ran on; by default that of this machine.
    """
    row: dict[str, Any] = dict(row=run.row.name, seed=run.seed)
    row |= dict(metric=run.suite.metric, scale=run.suite.scale)
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
        iterations=run.iterations * (not failure)
        or max((line['iter'] for line in logged), default=0),
        seconds_per_iteration=round(median(seconds), 5) if seconds else None,
        config_hash=run.config_hash,
        commit=', '.join(commits_of(run) or [commit()]),
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
    """Return the training's command, without ``--work-dir``.

    It works in the folder in which the benchmark was called.
    """
    tool = 'tools/train.py'
    tool = tool if Path.cwd() == ROOT else str(ROOT / tool)
    return [tool, *run.flags(), '--resume', *run.cfg_options()]


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
    metrics, metric = sorted(found.keys() - TIMES), run.suite.metric
    where = f'{run.suite.path.name}: metric'
    if not metrics:
        # mmdet reports no metric at all for a model that detects nothing.
        if re.fullmatch(OF_DETECTIONS, metric):
            return 0.0
        raise ValueError(
            f'{where}: the test has no metrics, and COCO has no {metric!r}; correct '
            "it, as in `metric = 'coco/bbox_mAP'`, and call again"
        )
    if metric not in metrics:
        raise ValueError(
            f'{where}: correct it and call again, which trains nothing twice: the test '
            f'has no {metric!r}{did_you_mean(metric, metrics)}'
        )
    score = found[metric]
    # COCO has -1 for a size or a class without any object.
    absent = score == -1 and metric.startswith('coco/')
    if absent or not (isinstance(score, int | float) and math.isfinite(score)):
        raise ValueError(
            f'{where}: expected a score, got {metric} = {score}; take another metric, '
            'or data in which it exists'
        )
    return round(score * run.suite.scale, 3)


def version_of(package: str) -> str | None:
    """Return the version of a package, None if it is not installed."""
    try:
        return importlib.import_module(package).__version__
    except ImportError:
        return None


def note_commit(run: Run) -> None:
    """Note in the folder of a run which code it goes on with."""
    run.folder.mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys([*commits_of(run), commit()])
    with write_whole(run.folder / COMMITS) as file:
        file.write(''.join(f'{name}\n' for name in names).encode())


def commits_of(run: Run) -> list[str]:
    """Return the commits whose code a run had, the first one first."""
    notes = run.folder / COMMITS
    return notes.read_text().splitlines() if notes.exists() else []


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
        and ``failed`` ones do not. ``stuck`` ones cannot run; their row is that of
        another config, and stays.
    """
    names = ('new', 'changed', 'done', 'failed', 'stuck')
    found: dict[str, list[Run]] = {name: [] for name in names}
    for run in runs:
        row = results.get(run.key)
        if row is None or (row['status'] == 'failed' and retry):
            state = 'new'
        elif is_of(run, row):
            state = row['status']
        else:
            state = 'stuck' if run.obstacle and row['status'] == 'done' else 'changed'
        found[state].append(run)
    return found


def is_of(run: Run, row: Mapping[str, Any]) -> bool:
    """Return whether a row is the result of a run as it is planned now.

    The digest contains the weights. If they are missing, a result is taken as it is.
    """
    # Files of 0.9.0 do not name the metric.
    measure = row.get('metric'), row.get('scale')
    if measure != (run.suite.metric, run.suite.scale):
        return False
    if run.missing and not run.error and row['status'] == 'done':
        return True
    return row['config_hash'] == run.config_hash


def counted(runs: Iterable[Run], results: Mapping[Key, dict]) -> list[dict]:
    """Return the rows of the planned runs, without those of another config."""
    found = ((run, results.get(run.key)) for run in runs)
    return [row for run, row in found if row is not None and is_of(run, row)]
