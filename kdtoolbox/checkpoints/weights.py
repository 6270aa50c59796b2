"""Load the weights of a checkpoint, and load them strictly into a model."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from kdtoolbox.checkpoints.misfit_fixes import suggest_fix
from kdtoolbox.checkpoints.misfits import Misfit
from kdtoolbox.checkpoints.reading import read_checkpoint
from kdtoolbox.checkpoints.state_dicts import ema_copies, unwrap, without

_MISMATCH = re.compile(
    r'size mismatch for (\S+): .*?Size\(\[([\d, ]*)\]\).*?Size\(\[([\d, ]*)\]\)'
)
"""torch's message for a tensor of another shape; the checkpoint's shape comes first."""


def load_checkpoint(source: str | os.PathLike, trust_pickle: bool = False) -> dict:
    """Return ``dict(state_dict=..., meta=...)`` of a checkpoint, on the CPU.

    If the file contains weights and their moving average, the result is the copy that
    mmengine and mmdet load. The log names it and says how to use the other.

    Args:
        source: As for ``read_checkpoint``.
        trust_pickle: Allow pickles of any content. They can run any code.

    Raises:
        ValueError: If ``read_checkpoint`` raises it, or the file contains no state
            dict.
    """
    checkpoint = read_checkpoint(source, trust_pickle)
    state = checkpoint
    if isinstance(checkpoint, Mapping):
        state = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state, Mapping) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise ValueError(
            f'checkpoint {str(source)!r} contains no state dict, but '
            f'{_kind_of(state)}. Name a file with the weights of a model under '
            '`state_dict`'
        )
    if not state:
        raise ValueError(
            f'checkpoint {str(source)!r} contains no state dict, but an empty dict'
        )
    meta = {} if state is checkpoint else checkpoint.get('meta') or {}
    copies = ema_copies(state)
    if copies:
        state = without(state, copies)
    if copies or 'ema_state_dict' in checkpoint:
        print_log(_two_copies(str(source), trust_pickle, bool(copies)), 'current')
    return dict(state_dict=state, meta=meta)


def class_names(meta: Any) -> tuple[str, ...] | None:
    """Return the class names in the meta of a checkpoint of mmengine or mmcv 1.

    Example:
        >>> class_names(dict(dataset_meta=dict(classes=['cat', 'dog'])))
        ('cat', 'dog')
    """
    if not isinstance(meta, Mapping):
        return None
    merged = {**meta, **(meta.get('dataset_meta') or {})}
    names = merged.get('classes') or merged.get('CLASSES')
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
    """Describe which of two copies was loaded, and how to load the other."""
    read = f'c = read_checkpoint({source!r}{", True" if trust_pickle else ""})'
    if underscored:
        loaded = (
            'the copy that mmdet loads, usually the average, and not the keys that '
            'start with `ema_`'
        )
        other = (
            "s = c.get('state_dict', c); s = {k: s.get('ema_' + k.replace('.', '_'), "
            "v) for k, v in s.items() if k[:4] != 'ema_'}"
        )
    else:
        loaded = (
            'the average under `state_dict`, and not the weights of the last step, '
            'which mmengine keeps under `ema_state_dict`'
        )
        other = "s = c['ema_state_dict']"
    return (
        f'checkpoint {source!r} holds two copies of the weights; loaded {loaded}. '
        'To load the other, write it to a file and name that: python -c "import torch; '
        f'from kdtoolbox.checkpoints.reading import read_checkpoint; {read}; {other}; '
        f"torch.save(dict(meta=c.get('meta'), state_dict=s), "
        f"'{Path(source).stem}_other.pth')\""
    )


def load_strictly(
    model: nn.Module,
    state: Mapping[str, Tensor],
    name: str,
    config: str | None = None,
) -> None:
    """Load ``state`` into ``model``, and raise if keys or shapes differ.

    A prefix that other tools add to all keys, such as ``module.``, is removed. Of a
    distiller only the student is loaded. The log names what was removed.

    Args:
        model: The model to fill.
        state: A state dict of mmdet or mmseg.
        name: The name of the checkpoint in error messages.
        config: The name of the model's config in error messages.

    Raises:
        ValueError: If the keys or shapes differ. The message counts the differences by
            submodule and suggests a fix.
    """
    state, removed = unwrap(state, model.state_dict().keys())
    if removed:
        print_log(f'checkpoint {name}: {"; ".join(removed)}', 'current')
    misfit = _load(model, state)
    if misfit:
        of = f' of {config}' if config else ''
        raise ValueError(
            f'checkpoint {name} does not fit {type(model).__name__}{of}'
            + (f' ({"; ".join(removed)})' if removed else '')
            + f':\n{misfit.describe()}\n{suggest_fix(misfit, config)}'
        )


def _load(model: nn.Module, state: Mapping[str, Tensor]) -> Misfit:
    """Load the keys that fit, and return those that do not."""
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
        # Some detectors of mmdet rename keys in their loading hooks, so the comparison
        # above misses the shapes of these keys.
        mismatches = _MISMATCH.findall(str(error))
        if not mismatches:
            raise
        for key, in_state, in_model in mismatches:
            misfit.misshapen[key] = _shape(in_state), _shape(in_model)
        missing = [key for key in expected if key not in fitting]
        misfit.unexpected = [key for key in fitting if key not in expected]
    misfit.missing = [key for key in missing if key not in misfit.misshapen]
    return misfit


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(',') if size.strip())
