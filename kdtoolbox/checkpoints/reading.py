"""Read checkpoint files without running what they may hold."""

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

# All that mmengine knows; '' is a path.
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
    """A checkpoint is whole and holds more than can be read without running it."""


def read_checkpoint(source: str | os.PathLike, trust_pickle: bool = False) -> Any:
    """Return the whole content of a checkpoint file, on the CPU.

    Args:
        source: A ``.pth`` or ``.safetensors`` file, as ``locate`` takes it. It is
            compared with its checksums: those of torch's archives, the digest that
            ``export_student`` writes into ``.safetensors``, else a hash at the end of
            its name such as OpenMMLab's. Other files have none.
        trust_pickle: Allow pickles of any content. They can run any code.

    Raises:
        UntrustedError: If it holds more than weights and mmengine's records of a run,
            and ``trust_pickle`` is not set.
        ValueError: If the file is missing or damaged.
        MemoryError: If there is too little memory for a file of this size.
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
        raise _too_large(path) from error
    except Exception as error:
        # Garbage fails in many ways.
        refused = isinstance(error, pickle.UnpicklingError) and not trust_pickle
        fetched = '://' in str(source)
        raise _unread(path, error, refused, fetched) from error


def unpickle(file: str | os.PathLike | BinaryIO, trust_pickle: bool = False) -> Any:
    """Return what torch saved, read as `read_checkpoint` does, errors left as they are.

    Args:
        file: A path, or a file opened for reading.
        trust_pickle: As for `read_checkpoint`.
    """
    with torch.serialization.safe_globals(_harmless_globals()):
        return torch.load(file, map_location='cpu', weights_only=not trust_pickle)


def _check_sums(path: Path) -> None:
    """Compare the checksums that torch writes into its archives and never reads.

    Other pickles have none but, at best, the one in the name.
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
            f'its name ends with the hash {expected}, which is not its own; if it was '
            'changed on purpose, rename it without the hash'
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
            'changed on purpose, write it without that entry'
        )
    return state


def _history_method(owner: object, name: str) -> object:
    """Stand in for ``getattr``, which mmengine's log history is pickled with."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is refused')
    return getattr(owner, name)


def _harmless_globals() -> list:
    """Return what mmengine's records of a run in a checkpoint are made of."""
    core = 'numpy.core' if np.__version__.startswith('1.') else 'numpy._core'
    multiarray = import_module(f'{core}.multiarray')
    codes = '?' + np.typecodes['AllInteger'] + np.typecodes['Float']
    dtypes = {type(np.dtype(code)) for code in codes}
    rebuild = [multiarray._reconstruct, multiarray.scalar]
    plain = [HistoryBuffer, ConfigDict, np.ndarray, np.dtype, *rebuild, *dtypes]
    # A real `getattr` would let a pickle reach into any module.
    return [*plain, (_history_method, 'builtins.getattr')]


def _too_large(path: Path) -> Exception:
    """Tell a file that asks for more than it can hold from a lack of memory."""
    size = path.stat().st_size
    free = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    if 4 * size > free:
        return MemoryError(
            f"checkpoint '{path}' has {size} bytes, and there is no memory for it"
        )
    return ValueError(
        f"checkpoint '{path}' is damaged: it has {size} bytes and asks for more memory "
        'than there is; copy or fetch it again'
    )


def _unread(path: Path, error: Exception, refused: bool, fetched: bool) -> ValueError:
    with path.open('rb') as file:
        # How a pickle begins, and the archives that torch keeps it in.
        is_pickle = file.read(2).startswith((b'\x80', b'PK'))
    if not (is_pickle and refused):
        reason = str(error).partition('\n')[0] or type(error).__name__
        return ValueError(
            f"checkpoint '{path}' is damaged or no checkpoint at all ({reason}); "
            + ('remove it to fetch it again' if fetched else 'copy or fetch it again')
        )
    found = re.search(
        r'unsupported (?:global: )?GLOBAL (\S+)', str(error), re.IGNORECASE
    )
    return UntrustedError(
        f"checkpoint '{path}' holds more than weights"
        f'{f" ({found.group(1)})" if found else ""}, and unpickling it could run code. '
        'If you trust its source, keep its weights alone: python -c "import torch; '
        f"state = torch.load('{path}', weights_only=False)['state_dict']; "
        f"torch.save(dict(state_dict=state), '{path.stem}_weights.pth')\", "
        'or, if it is a teacher, set `trust_pickle=True` beside `checkpoint`'
    )


def _load(name: str, map_location: object = None) -> Any:
    """Load for mmengine: on the CPU whatever it asks for, since it copies from there.

    The state of random generators must not move to another device.
    """
    checkpoint = read_checkpoint(name)
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict):
        # What older versions saved as text; to resume, mmengine runs it as Python.
        meta.pop('config', None)
    if name.startswith('mmcls://'):
        state = checkpoint.get('state_dict', checkpoint)
        keys = [key for key in state if key.startswith('backbone.')]
        return dict(state_dict={key.partition('.')[2]: state[key] for key in keys})
    return checkpoint


def use_safe_loaders() -> None:
    """Let mmengine read checkpoints by ``read_checkpoint`` wherever it reads any.

    Its own loaders unpickle without restriction what a restricted reading refuses.
    """
    CheckpointLoader.register_scheme(_SCHEMES, loader=_load, force=True)
