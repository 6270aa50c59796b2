"""Lock the work dir of a run, and end ranks whose launcher is gone."""

import fcntl
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log

from kdtoolbox.checkpoints.resuming import checkpoint_folders

_NAME = '.lock'
_POLL_SECONDS = 0.5
_ORPHANED = b'the launcher of this process is gone, so the process ends\n'

_held: dict[Path, TextIO] = {}


def lock_work_dir(cfg: Config) -> None:
    """Lock the folders that a run writes to, until the process ends or unlocks them.

    The operating system releases the lock when the process dies, even by SIGKILL. With
    several processes, the first one holds the lock for all.

    Args:
        cfg: A config with ``work_dir``.

    Raises:
        ValueError: If another run holds one of the folders.
    """
    outcome: list[str | None] = [None]
    if is_main_process():
        outcome[0] = _lock_all(cfg)
    # If the first process fails, all others have to fail too.
    broadcast_object_list(outcome)
    if outcome[0] is not None:
        raise ValueError(outcome[0])


def unlock_work_dir() -> None:
    """Release all locks of this process."""
    while _held:
        _held.popitem()[1].close()


# A worker may outlive a killed run. It must not inherit the lock.
os.register_at_fork(after_in_child=unlock_work_dir)


def _lock_all(cfg: Config) -> str | None:
    """Lock all folders of a run; return an error message, or None."""
    for folder in checkpoint_folders(cfg):
        if ':/' not in str(folder) and folder not in _held:
            fault = _lock(folder)
            if fault is not None:
                return fault
    return None


def _lock(folder: Path) -> str | None:
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / _NAME).open('a+')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            file.seek(0)
            owner = file.read().strip() or 'another process'
        return (
            f'{folder} belongs to a training that still runs ({owner}); wait for it, '
            'end it, or name another --work-dir'
        )
    except OSError as error:
        file.close()
        print_log(
            f'{folder} cannot be locked on this file system ({error}), so nothing '
            'prevents a second training from writing to it',
            'current',
            logging.WARNING,
        )
        return None
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
    file.flush()
    _held[folder] = file
    return None


def end_with_parent() -> None:
    """End this process at once when its parent process is gone.

    A killed launcher cannot end its ranks. Without this, they would go on writing to a
    folder from which the next run may already resume.
    """
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    # The reader of the output may be gone too.
    with suppress(OSError):
        os.write(2, _ORPHANED)
    os._exit(1)
