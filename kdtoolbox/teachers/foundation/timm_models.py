"""Backbones of timm."""

import difflib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kdtoolbox.teachers.foundation.backbone import Backbone
from kdtoolbox.teachers.foundation.libraries import import_library
from kdtoolbox.teachers.foundation.licences import UNKNOWN


def build(
    name: str, arguments: Mapping[str, Any], pretrained: bool, where: str
) -> Backbone:
    """Build a model of timm.

    Args:
        name: A name for ``timm.create_model``.
        arguments: More arguments of it.
        pretrained: Whether timm loads its weights.
        where: Config path of the teacher, for errors.

    Raises:
        ValueError: If timm is missing or cannot build the model, or the model does not
            return its layers.
    """
    timm = import_library('timm', f'{where}.model')
    model = _create(timm, name, dict(arguments, pretrained=pretrained), where)
    if not hasattr(model, 'forward_intermediates'):
        raise ValueError(
            f'{where}.model: {type(model).__name__} of timm does not return its layers '
            '(it has no `forward_intermediates`); choose another model'
        )
    strides = [layer['reduction'] for layer in model.feature_info]
    config = model.pretrained_cfg
    return Backbone(
        model,
        read,
        depth=len(strides),
        # Nets without patches take images of any size.
        patch_size=max(strides) if hasattr(model, 'patch_embed') else None,
        mean=[255 * value for value in config['mean']],
        std=[255 * value for value in config['std']],
        licence=config.get('license') or UNKNOWN,
    )


def _create(timm: Any, name: str, arguments: dict, where: str) -> Any:
    try:
        try:
            # The image size may differ in each step.
            return timm.create_model(name, **{'dynamic_img_size': True, **arguments})
        except TypeError:
            return timm.create_model(name, **arguments)
    except TypeError as error:
        raise TypeError(f'{where}.arguments: {error}') from error
    except (RuntimeError, OSError) as error:
        near = difflib.get_close_matches(name, timm.list_models(), n=4)
        nearest = f'; nearest: {", ".join(near) or "none"}'
        hint = '' if timm.is_model(name) else nearest
        raise ValueError(
            f'{where}.model: timm cannot build {name!r}: {error!r}{hint}'
        ) from error


def read(model: Any, images: Tensor, layers: list[int]) -> list[Tensor]:
    """Return the outputs of layers; that of the last includes the final norm."""
    wanted = sorted(set(layers))
    last = len(model.feature_info) - 1
    final, maps = model.forward_intermediates(
        images, indices=wanted, stop_early=last not in wanted
    )
    found = dict(zip(wanted, maps, strict=True))
    if last in found:
        found[last] = final
    return [found[layer] for layer in layers]
