"""Read the weights of a checkpoint without running what it may hold, and load them."""

import os
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from mmengine.dist import barrier, get_local_rank
from mmengine.logging import HistoryBuffer
from safetensors import SafetensorError
from torch import Tensor, nn

_BROKEN = (pickle.UnpicklingError, EOFError, RuntimeError, SafetensorError)
_FILE_HASH = re.compile(r'-([a-f0-9]{8,})\.(?:pth|pt|safetensors)$')


def _history_method(owner: object, name: str) -> object:
    """Stand in for ``getattr``, which mmengine's log history is pickled with."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is refused')
    return getattr(owner, name)


def _harmless_globals() -> list:
    """Return what mmengine's log history in a checkpoint is made of."""
    core = 'numpy.core' if np.__version__.startswith('1.') else 'numpy._core'
    multiarray = import_module(f'{core}.multiarray')
    dtypes = {
        type(np.dtype(name)) for name in ('float32', 'float64', 'int64', 'uint32')
    }
    rebuild = [multiarray._reconstruct, multiarray.scalar]
    plain = [HistoryBuffer, np.ndarray, np.dtype, *rebuild, *dtypes]
    # A real `getattr` would let a pickle reach into any module.
    return [*plain, (_history_method, 'builtins.getattr')]


def _fetch(url: str) -> Path:
    """Download into the cache that torch and mmengine share, once per node."""
    name = url.rpartition('/')[2].partition('?')[0]
    path = Path(torch.hub.get_dir()) / 'checkpoints' / name
    if get_local_rank() == 0 and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = _FILE_HASH.search(name)
        torch.hub.download_url_to_file(
            url, str(path), hash_prefix=digest.group(1) if digest else None
        )
    barrier()
    return path


def _locate(source: str) -> Path:
    if source.startswith('https://'):
        return _fetch(source)
    if '://' in source:
        raise ValueError(
            f'checkpoint {source!r}: only https:// is fetched; download it and give '
            'its path'
        )
    path = Path(source).expanduser()
    if not path.is_file():
        raise ValueError(f'checkpoint {source!r}: there is no such file')
    return path


def load_checkpoint(source: str | os.PathLike, trust_pickle: bool = False) -> dict:
    """Return ``dict(state_dict=..., meta=...)`` of a checkpoint, on the CPU.

    Args:
        source: Path or https URL of a ``.pth`` or ``.safetensors`` file. URLs go to
            torch's cache; a hash in the file name, as OpenMMLab's have, is checked.
        trust_pickle: Allow pickles of any content. They can run any code.

    Raises:
        ValueError: If the file is missing, or holds more than weights and
            ``trust_pickle`` is not set, or holds no state dict.
    """
    path = _locate(str(source))
    try:
        if path.suffix == '.safetensors':
            checkpoint: Any = safetensors.torch.load_file(path)
        else:
            with torch.serialization.safe_globals(_harmless_globals()):
                checkpoint = torch.load(
                    path, map_location='cpu', weights_only=not trust_pickle
                )
    except _BROKEN as error:
        raise ValueError(_why_unread(path, error)) from error
    state = checkpoint
    if isinstance(checkpoint, Mapping):
        state = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state, Mapping) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        kind = list(state) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f'checkpoint {str(source)!r} holds no state dict, but {kind}')
    if not state:
        raise ValueError(
            f'checkpoint {str(source)!r} holds no state dict but an empty one'
        )
    meta: dict = {} if state is checkpoint else checkpoint.get('meta', {})
    return dict(state_dict=state, meta=meta)


def _why_unread(path: Path, error: Exception) -> str:
    with path.open('rb') as file:
        # The first byte of a pickle and of the archives that torch keeps it in.
        is_pickle = file.read(1) in (b'\x80', b'P')
    if not (is_pickle and isinstance(error, pickle.UnpicklingError)):
        reason = str(error).partition('\n')[0]
        return f"checkpoint '{path}' is damaged or no checkpoint at all ({reason})"
    found = re.search(
        r'unsupported (?:global: )?GLOBAL (\S+)', str(error), re.IGNORECASE
    )
    return (
        f"checkpoint '{path}' holds more than weights"
        f'{f" ({found.group(1)})" if found else ""}, and unpickling it could run code. '
        'If you trust its source, set `trust_pickle=True` beside `checkpoint`'
    )


def export_student(
    source: str | os.PathLike, target: str | os.PathLike, trust_pickle: bool = False
) -> None:
    """Write the student of a distillation checkpoint as mmdet and mmseg load it.

    Args:
        source: Checkpoint as ``load_checkpoint`` takes it.
        target: File to write, ``.pth`` or ``.safetensors``; it appears whole or not at
            all.
        trust_pickle: As for ``load_checkpoint``.
    """
    checkpoint = load_checkpoint(source, trust_pickle)
    state = select_student(checkpoint['state_dict'])
    target = Path(target)
    partial = target.with_name(f'.{target.name}.{os.getpid()}')
    try:
        if target.suffix == '.safetensors':
            # The format takes no tensors that share memory, as tied weights do.
            tensors = {key: value.clone() for key, value in state.items()}
            partial.write_bytes(safetensors.torch.save(tensors))
        else:
            # The distiller's config would mislead whoever builds a model from it.
            meta = {k: v for k, v in checkpoint['meta'].items() if k != 'cfg'}
            torch.save(dict(meta=meta, state_dict=state), partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def select_student(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the student's part of a distillation checkpoint, or a plain state as is.

    Example:
        >>> weight = torch.ones(1)
        >>> list(select_student({'student.neck.weight': weight, 'losses.a': weight}))
        ['neck.weight']
    """
    if not any(key.startswith('student.') for key in state):
        return state
    student = OrderedDict(
        (key.removeprefix('student.'), value)
        for key, value in state.items()
        if key.startswith('student.')
    )
    metadata = getattr(state, '_metadata', None)
    if metadata is not None:
        # Modules such as DCN read the version of their own layout from it.
        student._metadata = {  # type: ignore[attr-defined]
            key.removeprefix('student.'): value
            for key, value in metadata.items()
            if key == '' or key.startswith('student.')
        }
    return student


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load ``state`` into ``model``, every key accounted for.

    Args:
        model: The model to fill.
        state: A plain mmdet or mmseg state dict.
        name: What errors call the checkpoint.

    Raises:
        ValueError: If keys are missing, unexpected or of another shape; it counts them
            by submodule.
    """
    expected = model.state_dict()
    misshapen = [
        f'{key} {tuple(state[key].shape)} for {tuple(expected[key].shape)}'
        for key in state
        if key in expected and state[key].shape != expected[key].shape
    ]
    fitting = state
    wrong = {line.partition(' ')[0] for line in misshapen}
    if wrong:
        fitting = {key: value for key, value in state.items() if key not in wrong}
    missing, unexpected = model.load_state_dict(fitting, strict=False)
    missing = [key for key in missing if key not in wrong]
    faults = dict(missing=missing, unexpected=unexpected, misshapen=misshapen)
    if any(faults.values()):
        lines = [
            f'  {len(keys)} {kind} ({_count(keys)}), such as {keys[0]}'
            for kind, keys in faults.items()
            if keys
        ]
        raise ValueError(
            f'checkpoint {name} does not fit {type(model).__name__}:\n'
            + '\n'.join(lines)
            + '\nName the config that the checkpoint was trained with'
        )


def _count(keys: list[str]) -> str:
    counts = Counter('.'.join(key.split('.')[:2]) for key in keys)
    return ', '.join(f'{part}: {number}' for part, number in counts.most_common(6))
