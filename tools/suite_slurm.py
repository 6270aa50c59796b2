"""Submit the runs of a suite to slurm and collect them; part of tools/run_benchmark.py.

Each run is a training and then a test, by slurm_train.sh and slurm_test.sh. They go on
when the benchmark has ended. The last command writes its exit status into a file of the
run's folder, where a later call of the benchmark finds it.
"""

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs import ROOT, Job, console
from suite_plan import Run
from suite_results import note_commit, outcome, result_of
from suite_running import STILL_RUNS, cause, output_of

from kdtoolbox.checkpoints.writing import write_whole

SUBMITTED, ENDED = 'submitted.json', 'exit_status'


def submit_all(
    runs: Sequence[Run], write: Callable[[dict], None], partition: str, gpus: int
) -> None:
    """Collect the runs that have ended and submit those that were not yet.

    Args:
        runs: The runs without a result.
        write: Gets the row of each run that has ended.
        partition: Slurm's partition.
        gpus: GPUs of each run.
    """
    for run in runs:
        if run.obstacle:
            write(result_of(run, run.obstacle))
        elif (run.folder / ENDED).exists():
            _collect(run, write, partition)
        elif _is_alive(run):
            at = Job(run.label, run.folder, ()).iteration()
            console.print(f'{run.label}: submitted, iteration {at}')
        else:
            submit(run, partition, gpus)
            console.print(f'{run.label}: submitted now')


def submit(run: Run, partition: str, gpus: int) -> None:
    """Start the two scripts in a session of their own, which outlives this one."""
    note_commit(run)
    process = subprocess.Popen(
        ['bash', '-c', script_of(run, partition)],  # noqa: S607  so do the scripts
        env=os.environ | dict(GPUS=str(gpus), PYTHON=sys.executable),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    note = dict(host=socket.gethostname(), boot=_boot(), pid=process.pid)
    with write_whole(run.folder / SUBMITTED) as file:
        file.write(json.dumps(note).encode())


def _is_alive(run: Run) -> bool:
    """Return whether a run was submitted and its scripts have not died."""
    note = run.folder / SUBMITTED
    if not note.exists():
        return False
    submitted = json.loads(note.read_text())
    if submitted['host'] != socket.gethostname():
        console.print(
            f'{run.label} was submitted on {submitted["host"]}; if its job is gone, '
            f'remove {note}',
            soft_wrap=True,
        )
        return True
    if submitted.get('boot') != _boot():
        return False
    try:
        os.kill(submitted['pid'], 0)
    except (ProcessLookupError, PermissionError):
        # It has ended; the number may belong to another user's process by now.
        return False
    return True


def _boot() -> str:
    """Return what identifies the time since the machine was started."""
    return Path('/proc/sys/kernel/random/boot_id').read_text().strip()


def script_of(run: Run, partition: str) -> str:
    """Return the commands of a run."""
    name = f'{run.suite.path.stem}_{run.row.name}_{run.seed}'
    options = run.cfg_options()
    # The script takes a config first; the flags of a pair are in its place.
    flags = run.flags()
    first, others = (flags[0], []) if len(flags) == 1 else _joined(flags)
    train = [
        str(ROOT / 'tools/slurm_train.sh'),
        partition,
        name,
        first,
        str(run.folder),
    ]
    train += [*others, '--resume', *options]
    weights = str(run.folder / run.weights)
    test = [str(ROOT / 'tools/slurm_test.sh'), partition, f'{name}_test']
    test += [run.recipe, weights]
    test += ['--work-dir', str(run.folder / 'test'), *options]
    train, test = (shlex.join(['bash', *command]) for command in (train, test))
    log, status = (
        shlex.quote(str(run.folder / name)) for name in ('output.log', ENDED)
    )
    return f'exec >> {log} 2>&1; {train} && {test}; echo $? > {status}'


def _joined(flags: Sequence[str]) -> tuple[str, list[str]]:
    """Return the first flag and its value as one word, and the rest."""
    return f'{flags[0]}={flags[1]}', list(flags[2:])


def _collect(run: Run, write: Callable[[dict], None], partition: str) -> None:
    """Write the row of a run that has ended, and forget that it was submitted."""
    status = (run.folder / ENDED).read_text().strip()
    failure = '' if status == '0' else cause(run.folder / 'output.log')
    if failure and STILL_RUNS in output_of(run.folder / 'output.log')[-2000:]:
        # It was submitted twice, and the first job goes on.
        console.print(f'{run.label}: {run.folder} {STILL_RUNS}', markup=False)
    else:
        row = result_of(run, failure, f'slurm, partition {partition}')
        write(row)
        console.print(f'{run.label}: {outcome(row)}', markup=False)
    for name in (SUBMITTED, ENDED):
        (run.folder / name).unlink(missing_ok=True)
