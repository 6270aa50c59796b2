"""The weights of a checkpoint: load them, keep the student's, fit them to a model."""

import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from kdtoolbox.checkpoints.digests import DIGEST_KEY, tensor_digest
from kdtoolbox.checkpoints.misfits import Misfit, cure_of
from kdtoolbox.checkpoints.plain_values import plain
from kdtoolbox.checkpoints.reading import read_checkpoint
from kdtoolbox.checkpoints.state_dicts import averages_beside, below, unwrap, without
from kdtoolbox.checkpoints.writing import write_whole

_MISMATCH = re.compile(
    r'size mismatch for (\S+): .*?Size\(\[([\d, ]*)\]\).*?Size\(\[([\d, ]*)\]\)'
)
"""How torch tells of a tensor that does not fit: the checkpoint's shape comes first."""


def load_checkpoint(source: str | os.PathLike, trust_pickle: bool = False) -> dict:
    """Return ``dict(state_dict=..., meta=...)`` of a checkpoint, on the CPU.

    Where a moving average left two copies of the weights, it is the one that mmengine
    and mmdet load too; the log says which that is and how to take the other.

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
        raise ValueError(
            f'checkpoint {str(source)!r} holds no state dict, but {_kind_of(state)}. '
            'Name a file with the weights of a model under `state_dict`'
        )
    if not state:
        raise ValueError(
            f'checkpoint {str(source)!r} holds no state dict but an empty one'
        )
    meta = {} if state is checkpoint else checkpoint.get('meta') or {}
    copies = averages_beside(state)
    if copies:
        state = without(state, copies)
    if copies or 'ema_state_dict' in checkpoint:
        print_log(_two_copies(str(source), trust_pickle, bool(copies)), 'current')
    return dict(state_dict=state, meta=meta)


def class_names(meta: Any) -> tuple[str, ...] | None:
    """Return the classes that a checkpoint's meta names, as mmengine or mmcv 1 do.

    Example:
        >>> class_names(dict(dataset_meta=dict(classes=['cat', 'dog'])))
        ('cat', 'dog')
    """
    if not isinstance(meta, Mapping):
        return None
    found = {**meta, **(meta.get('dataset_meta') or {})}
    names = found.get('classes') or found.get('CLASSES')
    if not names:
        return None
    return (names,) if isinstance(names, str) else tuple(map(str, names))


def _kind_of(content: Any) -> str:
    if not isinstance(content, Mapping):
        return type(content).__name__
    if 'param_groups' in content or content.keys() <= {'meta', 'optimizer'}:
        return 'the state of an optimizer'
    return str(list(content))


def _two_copies(source: str, trust_pickle: bool, underscored: bool) -> str:
    """Say which of two copies was taken, and how to take the other."""
    read = f'c = read_checkpoint({source!r}{", True" if trust_pickle else ""})'
    if underscored:
        taken = (
            'those that mmdet loads, as a rule the average, and not those that its '
            'keys call `ema_...`'
        )
        other = (
            "s = c.get('state_dict', c); s = {k: s.get('ema_' + k.replace('.', '_'), "
            "v) for k, v in s.items() if k[:4] != 'ema_'}"
        )
    else:
        taken = (
            'the average under `state_dict`, and not those of the last step, which '
            'mmengine keeps under `ema_state_dict`'
        )
        other = "s = c['ema_state_dict']"
    return (
        f'checkpoint {source!r} holds two copies of the weights; taken were {taken}. '
        'For the other write a file and name that: python -c "import torch; '
        f'from kdtoolbox.checkpoints.reading import read_checkpoint; {read}; {other}; '
        f"torch.save(dict(meta=c.get('meta'), state_dict=s), "
        f"'{Path(source).stem}_other.pth')\""
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

    Raises:
        ValueError: If the checkpoint cannot be read or holds no student.
        OSError: If the file cannot be written.
    """
    write_student(load_distillation(source, trust_pickle), target)


def load_distillation(
    source: str | os.PathLike, trust_pickle: bool = False
) -> dict[str, Any]:
    """Return what ``load_checkpoint`` does, of a checkpoint that holds a student.

    Raises:
        ValueError: If the checkpoint cannot be read or holds no student.
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
    """Write the student of what a distillation saves, as `export_student` does.

    Args:
        checkpoint: A mapping with ``state_dict`` and, if there is one, ``meta``.
        target: As for `export_student`.
    """
    state = _on_cpu(select_student(checkpoint['state_dict']))
    if Path(target).suffix == '.safetensors':
        # The format takes no tensors that share memory, as tied weights do, and none in
        # another order, as those of a model in channels_last.
        tensors = {
            key: value.clone(memory_format=torch.contiguous_format)
            for key, value in state.items()
        }
        metadata = {DIGEST_KEY: tensor_digest(tensors)}
        written = safetensors.torch.save(tensors, metadata)
    else:
        meta = checkpoint.get('meta')
        # The distiller's config would mislead whoever builds a model from it. What is
        # plain to torch is read by mmdet and mmseg of any version.
        known = dict(meta) if isinstance(meta, Mapping) else {}
        known.pop('cfg', None)
        dropped: list[str] = []
        content = dict(meta=plain(known, 'meta', dropped, arrays=False))
        if dropped:
            print_log(f"'{target}': left out {', '.join(dropped)}", 'current')
        buffer = BytesIO()
        torch.save(content | dict(state_dict=state), buffer)
        written = buffer.getvalue()
    with write_whole(target, len(written)) as file:
        file.write(written)


def _on_cpu(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    moved = OrderedDict((key, value.cpu()) for key, value in state.items())
    metadata = getattr(state, '_metadata', None)
    if metadata is not None:
        moved._metadata = metadata  # type: ignore[attr-defined]
    return moved


def select_student(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the student's part of a distillation checkpoint, or a plain state as is.

    Example:
        >>> weight = torch.ones(1)
        >>> list(select_student({'student.neck.weight': weight, 'losses.a': weight}))
        ['neck.weight']
    """
    is_ours = any(key.startswith('student.') for key in state)
    return below(state, 'student.') if is_ours else state


def load_strictly(
    model: nn.Module,
    state: Mapping[str, Tensor],
    name: str,
    config: str | None = None,
) -> None:
    """Load ``state`` into ``model``, every key accounted for.

    What other tools wrap around a model, such as ``module.``, is removed where all keys
    have it, and of a distillation the student is taken. The log says so.

    Args:
        model: The model to fill.
        state: A state dict of mmdet or mmseg.
        name: What errors call the checkpoint.
        config: What errors call the config of the model.

    Raises:
        ValueError: If keys are missing, unexpected or of another shape; it counts them
            by submodule and says what mends it.
    """
    state, told = unwrap(state, model.state_dict().keys())
    if told:
        print_log(f'checkpoint {name}: {"; ".join(told)}', 'current')
    misfit = _load(model, state)
    if misfit:
        of = f' of {config}' if config else ''
        raise ValueError(
            f'checkpoint {name} does not fit {type(model).__name__}{of}'
            + (f' ({"; ".join(told)})' if told else '')
            + f':\n{misfit.describe()}\n{cure_of(misfit, config)}'
        )


def _load(model: nn.Module, state: Mapping[str, Tensor]) -> Misfit:
    """Load what fits and return what does not."""
    expected = model.state_dict()
    misfit = Misfit(model, state)
    misfit.misshapen = {
        key: (tuple(state[key].shape), tuple(expected[key].shape))
        for key in state
        if key in expected and state[key].shape != expected[key].shape
    }
    fitting = without(state, misfit.misshapen) if misfit.misshapen else state
    try:
        missing, misfit.unexpected = model.load_state_dict(fitting, strict=False)
    except RuntimeError as error:
        # mmdet gives keys other names while it loads, behind the comparison above.
        found = _MISMATCH.findall(str(error))
        if not found:
            raise
        for key, theirs, mine in found:
            misfit.misshapen[key] = _shape(theirs), _shape(mine)
        missing = [key for key in expected if key not in fitting]
        misfit.unexpected = [key for key in fitting if key not in expected]
    misfit.missing = [key for key in missing if key not in misfit.misshapen]
    return misfit


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(',') if size.strip())
