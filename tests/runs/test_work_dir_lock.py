import errno
import fcntl
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from kdtoolbox.runs import work_dir_lock
from kdtoolbox.runs.work_dir_lock import (
    end_with_parent,
    lock_work_dir,
    unlock_work_dir,
)


def hold(ready: Connection, folder: Path, with_child: bool = False) -> None:
    """Lock a folder and report it, as a training does, and stay."""
    os.setsid()
    lock_work_dir(config(folder))
    # A worker of a data loader that has not noticed the end of the training.
    worker = with_child and os.fork() == 0
    ready.send('child' if worker else 'held')
    time.sleep(100)
    os._exit(0)


def launch(ready: Connection) -> None:
    """Start a rank as a launcher does, and stay."""
    os.setsid()
    if os.fork() == 0:
        end_with_parent()
        ready.send(os.getpid())
    time.sleep(100)
    os._exit(0)


@pytest.fixture(autouse=True)
def unlock() -> Iterator[None]:
    yield
    unlock_work_dir()


@pytest.fixture
def start() -> Iterator[Callable]:
    """Run a function in a forked process; kill what is left of it and its children."""
    context = multiprocessing.get_context('fork')
    runs: list[Any] = []

    def run(function: Callable, *arguments: Any) -> tuple[Any, Connection]:
        here, there = context.Pipe(duplex=False)
        runs.append(context.Process(target=function, args=(there, *arguments)))
        runs[-1].start()
        return runs[-1], here

    yield run
    for one in runs:
        with suppress(ProcessLookupError):
            os.killpg(one.pid, signal.SIGKILL)
        one.join()


def wait_for(ready: Connection, *words: str) -> None:
    for _ in words:
        assert ready.poll(300)
        assert ready.recv() in words


def config(work_dir: Path, **entries: Any) -> Config:
    return Config(dict(work_dir=str(work_dir), **entries))


def test_a_work_dir_takes_one_training_at_a_time(
    start: Callable, tmp_path: Path
) -> None:
    folder = tmp_path / 'run'
    run, ready = start(hold, folder)
    wait_for(ready, 'held')
    with pytest.raises(ValueError, match=rf'still runs \(process {run.pid} on .*'):
        lock_work_dir(config(folder))
    lock_work_dir(config(tmp_path / 'another'))
    # Checkpoints of two work dirs may go to one folder.
    hooks = dict(checkpoint=dict(out_dir=str(tmp_path)))
    elsewhere = tmp_path / 'elsewhere' / 'run'
    with pytest.raises(ValueError, match='--work-dir'):
        lock_work_dir(config(elsewhere, default_hooks=hooks))


def test_a_killed_training_leaves_no_lock(start: Callable, tmp_path: Path) -> None:
    run, ready = start(hold, tmp_path, True)
    wait_for(ready, 'held', 'child')
    run.kill()
    run.join()
    lock_work_dir(config(tmp_path))
    # The same holds for a training that has ended in this process.
    lock_work_dir(config(tmp_path))
    unlock_work_dir()
    _, ready = start(hold, tmp_path)
    wait_for(ready, 'held')


@pytest.mark.parametrize('code', [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_logged(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    told: list[str] = []
    monkeypatch.setattr(fcntl, 'flock', refuse)
    monkeypatch.setattr(work_dir_lock, 'print_log', lambda text, *_: told.append(text))
    lock_work_dir(config(tmp_path))
    assert 'cannot be locked on this file system' in told[0]


def test_all_processes_fail_with_the_first(
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
    run, ready = start(launch)
    assert ready.poll(300)
    rank = ready.recv()
    os.kill(rank, 0)
    run.kill()
    run.join()
    end = time.monotonic() + 300
    while time.monotonic() < end and alive(rank):
        time.sleep(0.1)
    assert not alive(rank)


def alive(process: int) -> bool:
    status = Path(f'/proc/{process}/stat')
    try:
        # A dead process stays listed as a zombie until its new parent reads its status.
        return status.read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False
