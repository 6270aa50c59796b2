"""Write files whole or not at all, also those that mmengine writes."""

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
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def write_whole(path: str | os.PathLike, size: int | None = None) -> Iterator[BinaryIO]:
    """Open a hidden file that takes the place of ``path`` when the block succeeds.

    Whenever the process or the machine dies, ``path`` is the old file or the new one.

    Args:
        path: File to write; its folder has to exist.
        size: How many bytes it will have, if that is known; errors tell it.

    Raises:
        OSError: If it cannot be written; it names ``path`` and what a full disk lacks.

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
    except Exception as error:
        needed = f'more than {_size(partial):,}' if size is None else f'{size:,}'
        _remove(partial)
        found = _cause(error, partial)
        if found is None:
            raise
        raise _told(found, path, needed) from error
    finally:
        _remove(partial)
    _sync_folder(path.parent)


def _cause(error: BaseException | None, partial: Path) -> OSError | None:
    """Return the failure of this file or of the disk behind an error, if that is it.

    An error of torch's writer hides it.
    """
    while error is not None:
        if isinstance(error, OSError) and (
            error.errno in _FULL or str(error.filename) == str(partial)
        ):
            return error
        error = error.__context__ if isinstance(error, RuntimeError) else None
    return None


def _told(error: OSError, path: Path, needed: str) -> OSError:
    """Return the error with the name that the user knows, and with what is lacking."""
    reason = error.strerror or str(error)
    if error.errno == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        reason += f'; it takes {needed} bytes, `ulimit -f` and the file system allow '
        reason += 'fewer' if limit == resource.RLIM_INFINITY else f'{limit:,}'
    elif error.errno in _FULL:
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
    # Its folder may be a file or gone, which the error that led here says.
    with suppress(OSError):
        partial.unlink()


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
        with write_whole(path, len(obj)) as file:
            file.write(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text to a file and make its folder if need be."""
        self.put(obj.encode(encoding), filepath)


def use_whole_files() -> None:
    """Let mmengine write its local files, such as checkpoints, through this module."""
    register_backend('local', WholeFileBackend, force=True, prefixes='')
