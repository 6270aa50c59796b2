"""Run the tools in processes of their own, for demo, make_teachers, soak and others."""

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

ROOT = Path(__file__).resolve().parent.parent
console = Console()
_POLL_SECONDS = 1.0


@dataclass
class Job:
    """One run of a tool in a process of its own.

    Args:
        label: Name of the job for the progress bar and for errors.
        work_dir: Folder of the run; the output goes to ``output.log`` in it.
        command: The tool and its arguments, without ``--work-dir``.
        iterations: Length of the training, for the progress bar. 0 for a test.
        variables: Environment variables of the process beside those of this one.
        cwd: The working folder of the process.
    """

    label: str
    work_dir: Path
    command: Sequence[str]
    iterations: int = 0
    variables: Mapping[str, str] = field(default_factory=dict)
    cwd: Path = ROOT
    process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start the process."""
        self.work_dir.mkdir(parents=True, exist_ok=True)
        # One thread each: two runs share two cores better than they split one. It also
        # fixes the order of sums, so that a machine with more cores gets equal weights.
        threads = dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1')
        environment = os.environ | threads | dict(PYTHONUNBUFFERED='1')
        # The child has another working folder.
        folder = str(self.work_dir.resolve())
        command = [sys.executable, *self.command, '--work-dir', folder]
        with self.log.open('a') as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.cwd,
                env=environment | dict(self.variables),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> Path:
        """Return the file that receives the output."""
        return self.work_dir / 'output.log'

    def iteration(self) -> int:
        """Return the last iteration that the run has logged."""
        return max((line.get('iter', 0) for line in logged(self.work_dir)), default=0)

    def running(self) -> bool:
        """Return whether the process still runs.

        Raises:
            RuntimeError: If it failed; the message contains the end of its output.
        """
        if self.failed():
            tail = '\n'.join(self.log.read_text().splitlines()[-15:])
            raise RuntimeError(f'{self.label} failed; the end of {self.log}:\n{tail}')
        return not self.ended()

    def ended(self) -> bool:
        """Return whether the process has ended, by itself or not."""
        assert self.process is not None  # noqa: S101  start has made it
        return self.process.poll() is not None

    def failed(self) -> bool:
        """Return whether the process has ended with an error."""
        return self.ended() and self.process.returncode != 0

    def stop(self) -> None:
        """Kill the process if it still runs; workers of its loaders end with it."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def logged(work_dir: Path) -> list[dict]:
    """Return the lines that the newest training in a folder has logged."""
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    return lines_of(logs[-1]) if logs else []


def lines_of(log: Path) -> list[dict]:
    """Return the whole lines of a log; the run may be in the middle of its last one."""
    lines = log.read_text().rpartition('\n')[0].splitlines()
    return [json.loads(line) for line in lines]


def ended_jobs(
    waiting: deque[Job], at_once: int, show: Callable[[Sequence[Job]], None]
) -> Iterator[Job]:
    """Run jobs and yield each that has ended, with or without an error.

    If the iteration stops early, the jobs that still run are stopped. Use `closing`,
    so that this happens at once.

    Args:
        waiting: The jobs. It is emptied, and may be given further ones meanwhile.
        at_once: The most jobs that run at the same time.
        show: Gets the running jobs about once a second.
    """
    running: list[Job] = []
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(waiting.popleft())
                running[-1].start()
            time.sleep(_POLL_SECONDS)
            show(running)
            ended, still = [], []
            for job in running:
                (ended if job.ended() else still).append(job)
            running = still
            yield from ended
    finally:
        for job in running:
            job.stop()


def run_jobs(jobs: Sequence[Job], title: str) -> None:
    """Run the jobs, as many at a time as there are cores.

    Raises:
        RuntimeError: If one fails; the others are stopped.
    """
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        TextColumn('{task.fields[at]}'),
    )
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        bars = {
            job.label: progress.add_task(f'{title} {job.label}', start=False, at='')
            for job in jobs
        }
        printed = time.monotonic()

        def show(running: Sequence[Job]) -> None:
            nonlocal printed
            for job in running:
                _show(progress, bars[job.label], job)
            # In a log file the bars show only when they are full.
            if not console.is_terminal and time.monotonic() - printed > 20:
                printed = time.monotonic()
                tasks = (progress.tasks[bars[job.label]] for job in running)
                console.print(*(f'{t.description} {t.fields["at"]}' for t in tasks))

        at_once = os.cpu_count() or 1
        with closing(ended_jobs(deque(jobs), at_once, show)) as ended:
            for job in ended:
                # It raises an error if the job failed.
                job.running()


def _show(progress: Progress, bar: int, job: Job) -> None:
    progress.start_task(bar)
    if job.ended() and not job.failed():
        progress.update(bar, total=1, completed=1, at='done')
        progress.stop_task(bar)
    elif job.iterations:
        at = job.iteration()
        progress.update(
            bar, total=job.iterations, completed=at, at=f'{at}/{job.iterations}'
        )
