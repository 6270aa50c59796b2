"""Run the trainings and tests of a suite; part of tools/run_benchmark.py."""

import math
import os
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jobs import ROOT, Job, console, ended_jobs
from suite_plan import Run, check_unchanged
from suite_preview import quiet
from suite_progress import Board
from suite_results import note_commit, result_of, train_command

STILL_RUNS = 'belongs to a training that still runs'
"""What ``train.py`` says about a work dir that another process uses."""


@dataclass
class RunJob(Job):
    """A training or a test of a run.

    Attributes:
        run: The run.
        devices: The GPUs that are free, a value of CUDA_VISIBLE_DEVICES for each job.
        is_test: Whether it is the test.
        begin: Where its output begins in the log, which earlier processes have written.
    """

    run: Run | None = None
    devices: list[str] = field(default_factory=list)
    is_test: bool = False
    begin: int = 0

    def start(self) -> None:
        """Start the process on GPUs that are free, if there are some.

        Raises:
            ValueError: If the files of the run have changed since it was planned.
        """
        with quiet():
            check_unchanged(self.run)
        note_commit(self.run)
        if self.devices:
            self.variables = dict(CUDA_VISIBLE_DEVICES=self.devices.pop(0))
        self.begin = self.log.stat().st_size if self.log.exists() else 0
        super().start()

    def release(self) -> None:
        """Give the GPUs back."""
        self.devices += self.variables.values()
        self.variables = {}


def run_all(
    runs: Sequence[Run],
    seconds: Callable[[Run], float | None],
    write: Callable[[dict], None],
    at_once: int,
    gpus: int,
) -> None:
    """Train and test runs; each that has ended becomes a row, whether it failed or not.

    Args:
        runs: The runs, in their order.
        seconds: Returns the expected time of a step of a run, None if unknown.
        write: Gets the row of each run.
        at_once: Number of runs at the same time.
        gpus: Number of GPUs, and of processes, of each run.
    """
    groups = device_groups(gpus, os.environ)
    # With more runs than groups, several share one.
    devices = groups * math.ceil(at_once / len(groups)) if groups else []
    waiting = deque(_training(run, gpus, devices) for run in runs if not run.obstacle)
    for run in runs:
        if run.obstacle:
            write(result_of(run, run.obstacle))
    with (
        Board(runs, seconds, at_once) as board,
        closing(ended_jobs(waiting, at_once, board.show)) as ended,
    ):
        for job in ended:
            job.release()
            if not job.failed() and not job.is_test:
                waiting.appendleft(_test(job, gpus))
                continue
            failure = _failure(job)
            # The other process writes to the same log, so any line may be the last.
            if failure and STILL_RUNS in output_of(job.log, job.begin):
                told = f'{job.label}: {job.work_dir} {STILL_RUNS}'
                console.print(told, markup=False, soft_wrap=True)
                continue
            row = result_of(job.run, failure)
            write(row)
            board.finished(job.run, row)


def jobs_of(gpus: int) -> int:
    """Return how many runs fit at the same time: by the GPUs, or else by the cores."""
    return len(device_groups(gpus, os.environ)) or os.cpu_count() or 1


def device_groups(gpus: int, variables: Mapping[str, str]) -> list[str]:
    """Return the GPUs in groups, as values of CUDA_VISIBLE_DEVICES.

    Example:
        >>> device_groups(2, dict(CUDA_VISIBLE_DEVICES='4,5,6,7'))
        ['4,5', '6,7']
    """
    count = torch.cuda.device_count()
    given = variables.get('CUDA_VISIBLE_DEVICES')
    names = given.split(',') if given else [str(index) for index in range(count)]
    whole = len(names) // gpus * gpus
    return [','.join(names[i : i + gpus]) for i in range(0, whole, gpus)]


def output_of(log: Path, begin: int = 0) -> str:
    """Return what a log contains behind a position."""
    return log.read_bytes()[begin:].decode(errors='replace')


def cause(log: Path, begin: int = 0) -> str:
    """Return the line of an output that tells why its process failed.

    Args:
        log: The file of the output.
        begin: Where that process began to write.
    """
    lines = output_of(log, begin).splitlines()
    told = [line.strip() for line in lines[-40:] if line.strip()]
    # torchrun prints a report of its own after the traceback.
    errors = [line for line in told if re.match(r'[\w.]*(Error|Exception)\b', line)]
    return [*(told or ['no output']), *errors][-1]


def _failure(job: RunJob) -> str:
    """Return why a job failed, empty if it did not."""
    if not job.failed():
        return ''
    code = job.process.returncode
    return cause(job.log, job.begin) if code > 0 else f'killed by signal {-code}'


def _launched(command: Sequence[str], gpus: int) -> list[str]:
    tool, *arguments = command
    command = [str(ROOT / tool), *arguments]
    if gpus == 1:
        return command
    # As dist_train.sh does, with a free port for each of the runs.
    launch = ['-m', 'torch.distributed.run', '--standalone']
    return [*launch, f'--nproc_per_node={gpus}', *command, '--launcher', 'pytorch']


def _training(run: Run, gpus: int, devices: list[str]) -> RunJob:
    command = _launched(train_command(run), gpus)
    iterations = run.iterations
    return RunJob(
        run.label,
        run.folder,
        command,
        iterations,
        cwd=Path.cwd(),
        run=run,
        devices=devices,
    )


def _test(training: RunJob, gpus: int) -> RunJob:
    run = training.run
    weights = str(run.folder / run.weights)
    command = ['tools/test.py', run.recipe, weights, *run.cfg_options()]
    return RunJob(
        f'test of {run.label}',
        run.folder / 'test',
        _launched(command, gpus),
        cwd=training.cwd,
        run=run,
        devices=training.devices,
        is_test=True,
    )
