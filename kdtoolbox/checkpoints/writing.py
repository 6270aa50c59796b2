"""Write files atomically, including the files that mmengine writes."""

import errno
import fcntl
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from mmengine.fileio import LocalBackend, register_backend

_SUFFIX = '.partial'
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def write_whole(path: str | os.PathLike, size: int | None = None) -> Iterator[BinaryIO]:
    """Open a hidden file that replaces ``path`` when the block succeeds.

    If the process or the machine dies, ``path`` is either the old file or the new one.

    Args:
        path: File to write. Its folder has to exist.
        size: Size of the new file in bytes, for error messages. None if unknown.

    Raises:
        OSError: If the file cannot be written. The message names ``path`` and, for a
            full disk, the needed and the free space.

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
            # The lock shows `remove_partials` that the writer is alive. Some network
            # drives have no locks; files of killed writers stay there.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)
    except Exception as error:
        needed = f'more than {_size(partial):,}' if size is None else f'{size:,}'
        _remove(partial)
        cause = _cause(error, partial)
        if cause is None:
            raise
        raise _clear_error(cause, path, needed) from error
    finally:
        _remove(partial)
    _sync_folder(path.parent)


def _cause(error: BaseException | None, partial: Path) -> OSError | None:
    """Return the `OSError` of this file or of a full disk that caused an error.

    torch's writer raises a `RuntimeError` while it handles the `OSError`.
    """
    while error is not None:
        if isinstance(error, OSError) and (
            error.errno in _DISK_FULL or str(error.filename) == str(partial)
        ):
            return error
        error = error.__context__ if isinstance(error, RuntimeError) else None
    return None


def _clear_error(error: OSError, path: Path, needed: str) -> OSError:
    """Return the error with the path of the final file and with the missing space."""
    reason = error.strerror or str(error)
    if error.errno == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        reason += f'; it takes {needed} bytes, `ulimit -f` and the file system allow '
        reason += 'fewer' if limit == resource.RLIM_INFINITY else f'{limit:,}'
    elif error.errno in _DISK_FULL:
        free = shutil.disk_usage(path.parent).free
        reason += (
            f'; it takes {needed} bytes and {free:,} are free in its folder; remove '
            'files there or name another folder'
        )
    elif error.errno == errno.ENOENT:
        reason = f'there is no folder {str(path.parent)!r}; make it first'
    return OSError(error.errno, reason, str(path))


def _size(partial: Path) -> int:
    with suppress(OSError):
        return partial.stat().st_size
    return 0


def _remove(partial: Path) -> None:
    # The folder may not exist. The error that is being handled says so.
    with suppress(OSError):
        partial.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network drives cannot sync folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def remove_partials(folder: Path) -> None:
    """Remove the hidden files that killed calls of ``write_whole`` left in a folder."""
    for partial in folder.glob(f'.*{_SUFFIX}'):
        # The writer of an empty file may not have locked it yet.
        with suppress(OSError), partial.open('r+b') as file:
            if partial.stat().st_size:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                partial.unlink()


class WholeFileBackend(LocalBackend):
    """mmengine's backend for local files with atomic writes."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file, and make its folder if necessary."""
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path, len(obj)) as file:
            file.write(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text to a file, and make its folder if necessary."""
        self.put(obj.encode(encoding), filepath)


def use_whole_files() -> None:
    """Make mmengine write local files, such as checkpoints, through this module."""
    register_backend('local', WholeFileBackend, force=True, prefixes='')
