"""Read a checkpoint and check that a run can resume from it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from kdtoolbox.checkpoints.finite_values import listed, non_finite
from kdtoolbox.checkpoints.reading import read_checkpoint

_REQUIRED = ('meta', 'state_dict', 'message_hub', 'optimizer')
"""The entries that mmengine reads when it resumes."""


class Checkpoint(NamedTuple):
    """A checkpoint that a run can resume from.

    Attributes:
        path: Its file or URL.
        meta: mmengine's notes beside the weights: ``epoch``, ``iter``, ``seed`` etc.
    """

    path: str
    meta: dict


def read_resumable(path: str | Path) -> Checkpoint:
    """Read a checkpoint completely.

    Raises:
        ValueError: If the file is damaged, an entry that mmengine needs is missing or
            malformed, or a weight is not finite.
    """
    content = read_checkpoint(path)
    keys = content if isinstance(content, Mapping) else ()
    missing = [key for key in _REQUIRED if key not in keys]
    if missing:
        raise ValueError(
            f"checkpoint '{path}' cannot be resumed from: it has no {missing}. "
            'Save with `default_hooks.checkpoint.save_optimizer=True`'
        )
    fault = next(_faults(content), None)
    if fault is not None:
        raise ValueError(f"checkpoint '{path}' cannot be resumed from: {fault}")
    weights = {key: content.get(key) or {} for key in ('state_dict', 'ema_state_dict')}
    broken = [name for state in weights.values() for name in non_finite(state)]
    if broken:
        raise ValueError(
            f"checkpoint '{path}' cannot be resumed from: it has NaN or Inf in "
            f'{listed(broken)}. Resume from one before it'
        )
    return Checkpoint(str(path), content['meta'])


def _faults(content: Mapping) -> Iterator[str]:
    """Yield the malformed entries of a checkpoint that mmengine would fail at."""
    for key in _REQUIRED:
        if not isinstance(content[key], Mapping):
            yield f'expected {key} to be a dict, got {content[key]!r:.60}'
    meta = content['meta']
    for key in ('epoch', 'iter'):
        number = meta.get(key)
        # `isinstance` would accept bool.
        if type(number) is not int or number < 0:
            yield f"expected meta['{key}'] to be an integer >= 0, got {number!r:.60}"
    if type(meta.get('seed')) not in (int, type(None)):
        yield f"expected meta['seed'] to be an integer, got {meta['seed']!r:.60}"
    for key, value in content['state_dict'].items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            yield f'expected tensors by name in state_dict, got {key!r:.60}'
    for key in ('log_scalars', 'runtime_info', 'resumed_keys'):
        value = content['message_hub'].get(key)
        if not isinstance(value, Mapping):
            yield f"expected message_hub['{key}'] to be a dict, got {value!r:.60}"
