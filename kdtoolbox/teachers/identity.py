"""What the records of a teacher depend on besides the images, as a digest."""

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from kdtoolbox.checkpoints.digests import tensor_digest
from kdtoolbox.configuration import load_config
from kdtoolbox.recorders import Recorder

_DIGITS = 16
_FILES = ('init_cfg', 'checkpoint', 'pretrained', 'trust_pickle')
"""Keys that say where weights come from; the weights themselves are in the digest."""


class Identity(NamedTuple):
    """The teacher and what is recorded of it.

    Attributes:
        digest: Differs if anything does that the records depend on.
        about: The same for readers, with the names of files instead of a config.
    """

    digest: str
    about: Mapping[str, Any]


def describe(
    model: nn.Module, config: Mapping[str, Any], **settings: Any
) -> dict[str, Any]:
    """Return all of a model that its records depend on.

    Args:
        model: The model.
        config: Its config, which says more than weights do, such as strides.
        settings: Further values that it computes with.

    Example:
        >>> found = describe(nn.Conv2d(1, 1, 1), dict(type='Conv'), dtype=None)
        >>> sorted(found)
        ['config', 'settings', 'versions', 'weights']
    """
    state = {k: v.cpu() for k, v in model.state_dict().items() if torch.is_tensor(v)}
    return dict(
        weights=tensor_digest(state),
        config=_without_files(_read(config)),
        settings=settings,
        versions=_versions(model),
    )


def identify(
    described: Mapping[str, Any],
    recorders: Mapping[str, Recorder],
    device: torch.device,
    about: Mapping[str, Any],
) -> Identity:
    """Return the identity of a teacher and its recorders.

    Args:
        described: What `describe` returned.
        recorders: The recorders.
        device: Where the model computes: mixed precision changes its records.
        about: What readers should know of the teacher.
    """
    known = dict(
        recorders={name: recorders[name] for name in sorted(recorders)},
        mixed_precision=_mixed_precision(device),
    )
    text = json.dumps(dict(described, **known), sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
    shown = {key: described[key] for key in ('settings', 'versions', 'weights')}
    return Identity(digest, dict(about, **known, **shown))


def _mixed_precision(device: torch.device) -> str | None:
    if not torch.is_autocast_enabled(device.type):
        return None
    return str(torch.get_autocast_dtype(device.type))


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with the content of the file that it names as ``config``."""
    found = {key: value for key, value in config.items() if key not in _FILES}
    if 'config' in found:
        read = load_config(found['config']).to_dict()
        keys = ('model', 'data_preprocessor')
        found['config'] = {k: read[k] for k in keys if k in read} or read
    return found


def _without_files(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_files(v) for k, v in value.items() if k not in _FILES}
    if isinstance(value, list | tuple):
        return [_without_files(part) for part in value]
    return value


def _versions(model: nn.Module) -> dict[str, str]:
    """Return the versions of the packages that the parts of a model come from."""
    names = {type(part).__module__.partition('.')[0] for part in model.modules()}
    names |= {'kdtoolbox', 'torch'}
    found = {name: getattr(sys.modules.get(name), '__version__', '') for name in names}
    return {name: str(found[name]) for name in sorted(found)}
