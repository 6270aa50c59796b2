import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from kdtoolbox.runs import work_dir_lock
from kdtoolbox.runs.work_dir_lock import lock_work_dir, unlock_work_dir

HOLD = """
import os, sys, time
from mmengine.config import Config
from kdtoolbox.runs.work_dir_lock import lock_work_dir
lock_work_dir(Config(dict(work_dir=sys.argv[1])))
if sys.argv[2:] and os.fork() == 0:
    # As a worker of the data loader that has not noticed yet.
    print('child', os.getpid(), flush=True)
    time.sleep(100)
print('held', flush=True)
time.sleep(100)
"""
RANK = """
import os, subprocess, sys, time
if len(sys.argv) == 1:
    subprocess.Popen([sys.executable, sys.argv[0], 'rank'])
else:
    from kdtoolbox.runs.work_dir_lock import end_with_parent
    end_with_parent()
    print(os.getpid(), flush=True)
time.sleep(100)
"""


@pytest.fixture(autouse=True)
def unlock() -> Iterator[None]:
    yield
    unlock_work_dir()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable]:
    """Start a python program; kill what is left of it and its children."""
    runs: list[subprocess.Popen] = []

    def run(program: str, *arguments: Any) -> subprocess.Popen:
        script = tmp_path / 'program.py'
        script.write_text(program)
        runs.append(
            subprocess.Popen(
                [sys.executable, str(script), *map(str, arguments)],
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return runs[-1]

    yield run
    for one in runs:
        with suppress(ProcessLookupError):
            os.killpg(one.pid, signal.SIGKILL)
        one.communicate()


def wait_for(run: subprocess.Popen, word: str) -> str:
    assert run.stdout is not None
    for line in run.stdout:
        if word in line:
            return line
    raise AssertionError(f'ended without {word}')


def config(work_dir: Path, **entries: Any) -> Config:
    return Config(dict(work_dir=str(work_dir), **entries))


def test_a_work_dir_takes_one_training_at_a_time(
    start: Callable, tmp_path: Path
) -> None:
    folder = tmp_path / 'run'
    run = start(HOLD, folder)
    wait_for(run, 'held')
    with pytest.raises(ValueError, match=rf'still runs \(process {run.pid} on .*'):
        lock_work_dir(config(folder))
    lock_work_dir(config(tmp_path / 'another'))
    # Checkpoints of two work dirs may go to one folder.
    hooks = dict(checkpoint=dict(out_dir=str(tmp_path)))
    elsewhere = tmp_path / 'elsewhere' / 'run'
    with pytest.raises(ValueError, match='--work-dir'):
        lock_work_dir(config(elsewhere, default_hooks=hooks))


def test_a_killed_training_leaves_no_lock(start: Callable, tmp_path: Path) -> None:
    run = start(HOLD, tmp_path, 'with a child')
    wait_for(run, 'held')
    run.send_signal(signal.SIGKILL)
    run.wait()
    lock_work_dir(config(tmp_path))
    # Nor does one that has ended in this process.
    lock_work_dir(config(tmp_path))
    unlock_work_dir()
    run = start(HOLD, tmp_path)
    wait_for(run, 'held')


@pytest.mark.parametrize('code', [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_told(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    told: list[str] = []
    monkeypatch.setattr(fcntl, 'flock', refuse)
    monkeypatch.setattr(work_dir_lock, 'print_log', lambda text, *_: told.append(text))
    lock_work_dir(config(tmp_path))
    assert 'cannot be locked on this file system' in told[0]


def test_the_other_processes_end_with_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def receive(outcome: list) -> None:
        outcome[0] = 'theirs'

    monkeypatch.setattr(work_dir_lock, 'is_main_process', lambda: False)
    monkeypatch.setattr(work_dir_lock, 'broadcast_object_list', receive)
    with pytest.raises(ValueError, match='theirs'):
        lock_work_dir(config(tmp_path / 'not made'))
    assert not (tmp_path / 'not made').exists()


def test_a_rank_ends_when_its_launcher_is_killed(start: Callable) -> None:
    run = start(RANK)
    rank = int(wait_for(run, ''))
    os.kill(rank, 0)
    run.send_signal(signal.SIGKILL)
    run.wait()
    end = time.monotonic() + 20
    while time.monotonic() < end and alive(rank):
        time.sleep(0.1)
    assert not alive(rank)


def alive(process: int) -> bool:
    status = Path(f'/proc/{process}/stat')
    try:
        # An ended one stays listed until its new parent has asked for it.
        return status.read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False
