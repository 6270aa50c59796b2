"""Write files whole or not at all, also those that mmengine writes."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from mmengine.fileio import LocalBackend, register_backend

_SUFFIX = '.partial'


@contextmanager
def write_whole(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a hidden file that takes the place of ``path`` when the block succeeds.

    Whenever the process or the machine dies, ``path`` is the old file or the new one.

    Args:
        path: File to write; its folder has to exist.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with write_whole(f'{folder}/a.txt') as file:
        ...         _ = file.write(b'all of it')
        ...     os.listdir(folder)
        ['a.txt']
    """
    path = Path(path)
    partial = path.with_name(f'.{path.name}.{uuid4().hex[:8]}{_SUFFIX}')
    try:
        with partial.open('xb') as file:
            # The lock tells `remove_partials` that the writer lives. Some network
            # drives have none; what a killed writer leaves there stays.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network drives sync no folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def remove_partials(folder: Path) -> None:
    """Remove what killed writers of ``write_whole`` have left in a folder."""
    for partial in folder.glob(f'.*{_SUFFIX}'):
        # An empty one may have been opened just now and be locked in a moment.
        with suppress(OSError), partial.open('r+b') as file:
            if partial.stat().st_size:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                partial.unlink()


class WholeFileBackend(LocalBackend):
    """mmengine's local files, written whole or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file and make its folder if need be."""
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as file:
            file.write(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text to a file and make its folder if need be."""
        self.put(obj.encode(encoding), filepath)


def use_whole_files() -> None:
    """Let mmengine write its local files, such as checkpoints, through this module."""
    register_backend('local', WholeFileBackend, force=True, prefixes='')
