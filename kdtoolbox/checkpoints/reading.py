"""Read checkpoint files without running code that they may contain."""

import os
import pickle
import re
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from safetensors import safe_open
from torch import Tensor

from kdtoolbox.checkpoints.digests import (
    DIGEST_KEY,
    file_digest,
    hash_in_name,
    tensor_digest,
)
from kdtoolbox.checkpoints.locations import locate

# All schemes that mmengine has loaders for. The empty one stands for local paths.
_SCHEMES = [
    '',
    'http://',
    'https://',
    'modelzoo://',
    'torchvision://',
    'open-mmlab://',
    'openmmlab://',
    'mmcls://',
    'pavi://',
    r'(\S+\:)?s3://',
    r'(\S+\:)?petrel://',
]


class UntrustedError(ValueError):
    """A checkpoint is undamaged but cannot be read without running its code."""


def read_checkpoint(source: str | os.PathLike, trust_pickle: bool = False) -> Any:
    """Return the content of a checkpoint file, on the CPU.

    The file is compared with its checksum: that of torch's archives, the digest that
    ``export_student`` writes to ``.safetensors``, or else a hash at the end of its
    name, as in names of OpenMMLab. Other files have no checksum.

    Args:
        source: A ``.pth`` or ``.safetensors`` file, as for ``locate``.
        trust_pickle: Allow pickles of any content. They can run any code.

    Raises:
        UntrustedError: If the file contains more than weights and mmengine's records
            of a run, and ``trust_pickle`` is False.
        ValueError: If the file is missing or damaged.
        MemoryError: If the free memory is too small for the file.
    """
    path = locate(str(source))
    try:
        if path.suffix == '.safetensors':
            return _read_safetensors(path)
        _check_sums(path)
        return unpickle(path, trust_pickle)
    except PermissionError:
        raise
    except MemoryError as error:
        raise _memory_error(path) from error
    except Exception as error:
        # Damaged files raise errors of many types.
        refused = isinstance(error, pickle.UnpicklingError) and not trust_pickle
        fetched = '://' in str(source)
        raise _read_error(path, error, refused, fetched) from error


def unpickle(file: str | os.PathLike | BinaryIO, trust_pickle: bool = False) -> Any:
    """Return the content of a file of `torch.save`, with the errors of `torch.load`.

    Args:
        file: A path, or a file opened for reading.
        trust_pickle: As for `read_checkpoint`.
    """
    with torch.serialization.safe_globals(_harmless_globals()):
        return torch.load(file, map_location='cpu', weights_only=not trust_pickle)


def _check_sums(path: Path) -> None:
    """Compare the checksums that torch writes to its archives but never reads.

    Pickles without an archive may only have a hash in their name.
    """
    with path.open('rb') as file:
        if file.read(2) != b'PK':
            _check_name(path)
            return
        try:
            damaged = zipfile.ZipFile(file).testzip()
        except Exception as error:
            raise zipfile.BadZipFile(str(error)) from error
    if damaged is not None:
        raise zipfile.BadZipFile(f'{damaged} does not match its checksum')


def _check_name(path: Path) -> None:
    expected = hash_in_name(path.name)
    if expected is not None and not file_digest(path).startswith(expected):
        raise ValueError(
            f'its name ends with the hash {expected}, but its content has another; if '
            'it was changed on purpose, rename it without the hash'
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework='pt') as file:
        expected = (file.metadata() or {}).get(DIGEST_KEY)
        keys = file.keys()
        state = {key: file.get_tensor(key) for key in keys}
    if expected is None:
        _check_name(path)
    elif tensor_digest(state) != expected:
        raise ValueError(
            f'its tensors do not match {DIGEST_KEY} in its metadata; if they were '
            'changed on purpose, write the file without that entry'
        )
    return state


def _history_method(owner: object, name: str) -> object:
    """Replace ``getattr``, which the pickle of mmengine's log history calls."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is refused')
    return getattr(owner, name)


def _harmless_globals() -> list:
    """Return the types and functions in pickles of mmengine's records of a run."""
    core = 'numpy.core' if np.__version__.startswith('1.') else 'numpy._core'
    multiarray = import_module(f'{core}.multiarray')
    codes = '?' + np.typecodes['AllInteger'] + np.typecodes['Float']
    dtypes = {type(np.dtype(code)) for code in codes}
    rebuild = [multiarray._reconstruct, multiarray.scalar]
    plain = [HistoryBuffer, ConfigDict, np.ndarray, np.dtype, *rebuild, *dtypes]
    # The real `getattr` would give a pickle access to any module.
    return [*plain, (_history_method, 'builtins.getattr')]


def _memory_error(path: Path) -> Exception:
    """Return an error for a lack of memory, or for a file that requests too much."""
    size = path.stat().st_size
    free = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    if 4 * size > free:
        return MemoryError(
            f"checkpoint '{path}' has {size} bytes, and there is not enough memory to "
            'read it'
        )
    return ValueError(
        f"checkpoint '{path}' is damaged: it has {size} bytes and requests more memory "
        'than is available; copy or fetch it again'
    )


def _read_error(
    path: Path, error: Exception, refused: bool, fetched: bool
) -> ValueError:
    with path.open('rb') as file:
        # The first bytes of a pickle, and of the archives that torch stores it in.
        is_pickle = file.read(2).startswith((b'\x80', b'PK'))
    if not (is_pickle and refused):
        reason = str(error).partition('\n')[0] or type(error).__name__
        return ValueError(
            f"checkpoint '{path}' is damaged or not a checkpoint ({reason}); "
            + ('remove it to fetch it again' if fetched else 'copy or fetch it again')
        )
    name = re.search(
        r'unsupported (?:global: )?GLOBAL (\S+)', str(error), re.IGNORECASE
    )
    return UntrustedError(
        f"checkpoint '{path}' holds more than weights"
        f'{f" ({name.group(1)})" if name else ""}, and unpickling it could run code. '
        'If you trust its source, extract its weights: python -c "import torch; '
        f"state = torch.load('{path}', weights_only=False)['state_dict']; "
        f"torch.save(dict(state_dict=state), '{path.stem}_weights.pth')\", "
        'or, if it is a teacher, set `trust_pickle=True` beside `checkpoint`'
    )


def _load(name: str, map_location: object = None) -> Any:
    """Load a checkpoint for mmengine, always on the CPU.

    mmengine copies the weights from there, and the states of random generators must
    not move to another device.
    """
    checkpoint = read_checkpoint(name)
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict):
        # Older versions saved the config as text, which mmengine runs as Python code
        # when it resumes.
        meta.pop('config', None)
    if name.startswith('mmcls://'):
        state = checkpoint.get('state_dict', checkpoint)
        keys = [key for key in state if key.startswith('backbone.')]
        return dict(state_dict={key.partition('.')[2]: state[key] for key in keys})
    return checkpoint


def use_safe_loaders() -> None:
    """Make mmengine read all checkpoints by ``read_checkpoint``.

    If `weights_only=True` fails, mmengine's own loaders unpickle without restriction.
    """
    CheckpointLoader.register_scheme(_SCHEMES, loader=_load, force=True)
