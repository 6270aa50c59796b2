"""Backbones of torch.hub and of the user's own code."""

import importlib
import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdtoolbox.teachers.foundation.backbone import Backbone
from kdtoolbox.teachers.foundation.layers import resolve_layers
from kdtoolbox.teachers.foundation.licences import licence_of


def build_from_hub(
    name: str, arguments: Mapping[str, Any], pretrained: bool, where: str
) -> Backbone:
    """Build a model of ``torch.hub``.

    Args:
        name: ``owner/repository:entry``, or ``folder:entry`` for a folder with a
            ``hubconf.py``.
        arguments: Arguments of the entry, and of ``torch.hub.load``.
        pretrained: The argument ``pretrained`` of the entry.
        where: Config path of the teacher, for errors.

    Raises:
        ValueError: If the name has no entry, torch.hub cannot load it, or the entry
            returns no module.
    """
    place, _, entry = name.rpartition(':')
    if not place:
        raise ValueError(
            f"{where}.model: expected 'hub::owner/repository:entry' or "
            f"'hub::folder:entry', got 'hub::{name}'"
        )
    source = 'local' if Path(place).is_dir() else 'github'
    arguments = dict(arguments, pretrained=pretrained)
    try:
        model = torch.hub.load(place, entry, source=source, **arguments)
    except TypeError as error:
        raise TypeError(f'{where}.arguments: {error}') from error
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f'{where}.model: torch.hub cannot load {entry!r} of {place!r}: {error}; '
            'write hub::owner/repository:entry with an entry of its hubconf.py, or, '
            'without network, hub::folder:entry for a folder with a hubconf.py'
        ) from error
    return _describe(model, licence_of(place), where)


def build_own(
    path: str, arguments: Mapping[str, Any], pretrained: bool, where: str
) -> Backbone:
    """Build an object of the user's own class.

    Args:
        path: The class, such as ``package.module.Class``.
        arguments: Its arguments.
        pretrained: Whether the class loads its weights itself.
        where: Config path of the teacher, for errors.

    Raises:
        ValueError: If the class does not import, or is no module.
    """
    module, _, name = path.rpartition('.')
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f'{where}.model: cannot import {path!r} ({error}); write timm::NAME, '
            'transformers::NAME, hub::REPOSITORY:ENTRY, or the path of your own class, '
            'package.module.Class, with the folder of the package on PYTHONPATH'
        ) from error
    try:
        model = kind(**arguments)
    except TypeError as error:
        raise TypeError(f'{where}.arguments: {error}') from error
    return _describe(model, 'your own', where)


def _describe(model: Any, licence: str, where: str) -> Backbone:
    if not isinstance(model, nn.Module):
        raise ValueError(
            f'{where}.model: expected an nn.Module, got {type(model).__name__}'
        )
    patch_size = getattr(model, 'patch_size', None)
    if not isinstance(patch_size, int):
        patch_size = None
    known = inspect.signature(getattr(model, 'get_intermediate_layers', len))
    if 'reshape' in known.parameters:
        depth: Any = model.n_blocks
        return Backbone(model, read_dino, depth, patch_size, licence=licence)
    read = partial(read_outputs, where=f'{where}.layers')
    return Backbone(model, read, patch_size=patch_size, licence=licence)


def read_dino(model: Any, images: Tensor, layers: list[int]) -> list[Tensor]:
    """Return maps of a model with the interface of DINOv2's and DINOv3's own code."""
    wanted = sorted(set(layers))
    maps = model.get_intermediate_layers(images, n=wanted, reshape=True, norm=False)
    found = dict(zip(wanted, maps, strict=True))
    last = model.n_blocks - 1
    if last in found:
        found[last] = model.norm(found[last].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return [found[layer] for layer in layers]


def read_outputs(
    model: nn.Module, images: Tensor, layers: list[int], where: str = 'layers'
) -> list[Tensor]:
    """Return outputs of a model's forward by their numbers."""
    outputs = _listed(model(images))
    return [outputs[layer] for layer in resolve_layers(layers, len(outputs), where)]


def _listed(outputs: Any) -> list[Any]:
    if isinstance(outputs, Mapping) and 'last_hidden_state' in outputs:
        states = outputs.get('hidden_states') or ()
        return [*states[1:-1], outputs['last_hidden_state']]
    if isinstance(outputs, Mapping):
        return list(outputs.values())
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]
