"""Write the student of a distillation checkpoint as mmdet and mmseg load it."""

import os
from collections import OrderedDict
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from mmengine.logging import print_log
from torch import Tensor

from kdtoolbox.checkpoints.digests import DIGEST_KEY, tensor_digest
from kdtoolbox.checkpoints.plain_values import plain
from kdtoolbox.checkpoints.state_dicts import strip_prefix
from kdtoolbox.checkpoints.weights import load_checkpoint
from kdtoolbox.checkpoints.writing import write_whole


def export_student(
    source: str | os.PathLike, target: str | os.PathLike, trust_pickle: bool = False
) -> None:
    """Write the student of a distillation checkpoint as mmdet and mmseg load it.

    Args:
        source: Checkpoint, as for ``load_checkpoint``.
        target: File to write, ``.pth`` or ``.safetensors``. A failed call leaves it
            unchanged.
        trust_pickle: As for ``load_checkpoint``.

    Raises:
        ValueError: If the checkpoint cannot be read or contains no student.
        OSError: If the file cannot be written.
    """
    write_student(load_distillation(source, trust_pickle), target)


def load_distillation(
    source: str | os.PathLike, trust_pickle: bool = False
) -> dict[str, Any]:
    """Return the result of ``load_checkpoint`` for a checkpoint with a student.

    Raises:
        ValueError: If the checkpoint cannot be read or contains no student.
    """
    checkpoint = load_checkpoint(source, trust_pickle)
    state = checkpoint['state_dict']
    if not any(key.startswith('student.') for key in state):
        parts = sorted({key.partition('.')[0] for key in state})
        raise ValueError(
            f'checkpoint {str(source)!r} holds no student: expected keys that begin '
            f'with `student.`, got {", ".join(parts[:5])}{", ..." * (len(parts) > 5)}. '
            'Name a checkpoint that a distillation wrote; one of a plain model needs '
            'no export'
        )
    return checkpoint


def write_student(checkpoint: Mapping[str, Any], target: str | os.PathLike) -> None:
    """Write the student of a checkpoint's content, like `export_student`.

    Args:
        checkpoint: A mapping with ``state_dict`` and optionally ``meta``.
        target: As for `export_student`.
    """
    state = _on_cpu(select_student(checkpoint['state_dict']))
    if Path(target).suffix == '.safetensors':
        content = _safetensors(state)
    else:
        content = _pickle(state, checkpoint.get('meta'), target)
    with write_whole(target, len(content)) as file:
        file.write(content)


def select_student(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the student's part of a distillation state dict; a plain one unchanged.

    Example:
        >>> weight = torch.ones(1)
        >>> list(select_student({'student.neck.weight': weight, 'losses.a': weight}))
        ['neck.weight']
    """
    has_student = any(key.startswith('student.') for key in state)
    return strip_prefix(state, 'student.') if has_student else state


def _safetensors(state: Mapping[str, Tensor]) -> bytes:
    # The format rejects tensors that share memory, such as tied weights, and tensors
    # in another memory format, such as channels_last.
    tensors = {
        key: value.clone(memory_format=torch.contiguous_format)
        for key, value in state.items()
    }
    return safetensors.torch.save(tensors, {DIGEST_KEY: tensor_digest(tensors)})


def _pickle(state: Mapping[str, Tensor], meta: Any, target: str | os.PathLike) -> bytes:
    kept = dict(meta) if isinstance(meta, Mapping) else {}
    # A model that is built from the distiller's config would not be the student.
    kept.pop('cfg', None)
    dropped: list[str] = []
    # Any version of mmdet and mmseg can read a file of plain torch values.
    content = dict(meta=plain(kept, 'meta', dropped, arrays=False))
    if dropped:
        print_log(f"'{target}': left out {', '.join(dropped)}", 'current')
    buffer = BytesIO()
    torch.save(content | dict(state_dict=state), buffer)
    return buffer.getvalue()


def _on_cpu(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    moved = OrderedDict((key, value.cpu()) for key, value in state.items())
    metadata = getattr(state, '_metadata', None)
    if metadata is not None:
        moved._metadata = metadata  # type: ignore[attr-defined]
    return moved
