"""Run the tools in processes of their own; demo, make_teachers and soak use it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
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
    """

    label: str
    work_dir: Path
    command: Sequence[str]
    iterations: int = 0
    process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start the process from the root of the repository."""
        self.work_dir.mkdir(parents=True, exist_ok=True)
        # One thread each: two runs share two cores better than they split one. It also
        # fixes the order of sums, so that a machine with more cores gets equal weights.
        environment = dict(
            os.environ, OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', PYTHONUNBUFFERED='1'
        )
        # The child has another working folder.
        folder = str(self.work_dir.resolve())
        command = [sys.executable, *self.command, '--work-dir', folder]
        with self.log.open('a') as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
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
        assert self.process is not None  # noqa: S101  start has made it
        if self.process.poll():
            tail = '\n'.join(self.log.read_text().splitlines()[-15:])
            raise RuntimeError(f'{self.label} failed; the end of {self.log}:\n{tail}')
        return self.process.returncode is None

    def stop(self) -> None:
        """Kill the process if it still runs; workers of its loaders end with it."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def logged(work_dir: Path) -> list[dict]:
    """Return the lines that the newest training in a folder has logged."""
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    # The run may be in the middle of its last line.
    lines = logs[-1].read_text().rpartition('\n')[0].splitlines() if logs else []
    return [json.loads(line) for line in lines]


def run_jobs(jobs: Sequence[Job], title: str) -> None:
    """Run the jobs, as many at a time as there are cores.

    Raises:
        RuntimeError: If one fails; the others are stopped.
    """
    waiting, running = list(jobs), []
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
        try:
            while waiting or running:
                while waiting and len(running) < (os.cpu_count() or 1):
                    running.append(waiting.pop(0))
                    running[-1].start()
                    progress.start_task(bars[running[-1].label])
                time.sleep(_POLL_SECONDS)
                for job in running:
                    _show(progress, bars[job.label], job)
                # In a log file the bars show only when they are full.
                if not console.is_terminal and time.monotonic() - printed > 20:
                    printed = time.monotonic()
                    tasks = (progress.tasks[bars[job.label]] for job in running)
                    console.print(*(f'{t.description} {t.fields["at"]}' for t in tasks))
                running = [job for job in running if job.running()]
        finally:
            for job in running:
                job.stop()


def _show(progress: Progress, bar: int, job: Job) -> None:
    if not job.running():
        progress.update(bar, total=1, completed=1, at='done')
        progress.stop_task(bar)
    elif job.iterations:
        at = job.iteration()
        progress.update(
            bar, total=job.iterations, completed=at, at=f'{at}/{job.iterations}'
        )
