"""The weights of a checkpoint: load them, keep the student's, fit them to a model."""

import os
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from kdtoolbox.safe_loading import read_checkpoint
from kdtoolbox.whole_files import write_whole


def load_checkpoint(source: str | os.PathLike, trust_pickle: bool = False) -> dict:
    """Return ``dict(state_dict=..., meta=...)`` of a checkpoint, on the CPU.

    Args:
        source: As ``read_checkpoint`` takes it.
        trust_pickle: Allow pickles of any content. They can run any code.

    Raises:
        ValueError: If the file cannot be read, as ``read_checkpoint`` says, or holds no
            state dict.
    """
    checkpoint = read_checkpoint(source, trust_pickle)
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
    if Path(target).suffix == '.safetensors':
        # The format takes no tensors that share memory, as tied weights do.
        tensors = {key: value.clone() for key, value in state.items()}
        with write_whole(target) as file:
            file.write(safetensors.torch.save(tensors))
    else:
        # The distiller's config would mislead whoever builds a model from it.
        meta = {k: v for k, v in checkpoint['meta'].items() if k != 'cfg'}
        with write_whole(target) as file:
            torch.save(dict(meta=meta, state_dict=state), file)


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
