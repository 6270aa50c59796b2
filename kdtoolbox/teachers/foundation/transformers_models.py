"""Vision backbones of Hugging Face transformers."""

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdtoolbox.teachers.foundation.backbone import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
)
from kdtoolbox.teachers.foundation.libraries import from_cache, import_library
from kdtoolbox.teachers.foundation.licences import licence_of

_HALF = (127.5, 127.5, 127.5)
_STATISTICS = {
    'dinov2': (IMAGENET_MEAN, IMAGENET_STD),
    'dinov2_with_registers': (IMAGENET_MEAN, IMAGENET_STD),
    'dinov3_vit': (IMAGENET_MEAN, IMAGENET_STD),
    'dinov3_convnext': (IMAGENET_MEAN, IMAGENET_STD),
    'sam_vision_model': (IMAGENET_MEAN, IMAGENET_STD),
    'siglip_vision_model': (_HALF, _HALF),
}
"""Mean and std of the published models, where no config of a processor is there."""


def build(
    name: str, arguments: Mapping[str, Any], pretrained: bool, where: str
) -> Backbone:
    """Build the vision model of a model of transformers.

    Args:
        name: A name on the Hugging Face hub, a folder, or a model type such as
            'dinov2', which stands for its default config.
        arguments: Entries of the config of the vision model to change.
        pretrained: Whether transformers loads its weights.
        where: Config path of the teacher, for errors.

    Raises:
        ValueError: If transformers is missing, knows no such model or argument, or
            finds not all weights.
    """
    transformers = import_library('transformers', f'{where}.model')
    if pretrained and name in transformers.CONFIG_MAPPING:
        raise ValueError(
            f'{where}.model: {name!r} is a type of models, which has no weights; name '
            'a model of it, such as transformers::facebook/dinov2-base, or a '
            '`checkpoint` instead of `pretrained`'
        )
    try:
        config = _config(transformers, name, arguments, where)
        statistics = _statistics(transformers, name, config.model_type, pretrained)
        if pretrained:
            model = _load(transformers.AutoModel, name, config, where)
        else:
            # The config has the type of the published weights.
            model = transformers.AutoModel.from_config(config).float()
    except OSError as error:
        raise ValueError(
            f'{where}.model: transformers cannot load {name!r}: '
            f'{str(error).partition(chr(10))[0]} Without network, copy its files '
            'there and name their folder as `model`'
            f'{_nearest_type(name, transformers.CONFIG_MAPPING)}'
        ) from error
    if config.model_type == 'vit_mae':
        raise ValueError(
            f'{where}.model: ViTMAEModel masks and shuffles its patches at random, so '
            'its tokens are no map; write timm::vit_base_patch16_224.mae, the same '
            'weights without masks'
        )
    depth = _depth(config)
    # SAM adds a position embedding of fixed size.
    fixed = config.model_type == 'sam_vision_model'
    return Backbone(
        model,
        partial(read, depth=depth, where=f'{where}.layers'),
        depth=depth,
        patch_size=_stride(config),
        image_size=(config.image_size, config.image_size) if fixed else None,
        mean=statistics[0],
        std=statistics[1],
        licence=licence_of(config.model_type),
    )


def _nearest_type(name: str, types: Iterable[str]) -> str:
    # A name with a slash is one on the hub.
    near = [] if '/' in name else difflib.get_close_matches(name, types, n=1)
    return f'; did you mean the type {near[0]!r}?' if near else ''


def _config(
    transformers: Any,
    name: str,
    arguments: Mapping[str, Any],
    where: str,
) -> Any:
    known = name in transformers.CONFIG_MAPPING
    if known:
        config = transformers.CONFIG_MAPPING[name]()
    else:
        load = partial(transformers.AutoConfig.from_pretrained, name)
        # A small file, which an inspection without weights needs as well.
        config = from_cache(load, download=True)
    # Models of images and texts have a config for each.
    config = getattr(config, 'vision_config', config)
    for key in arguments:
        if not hasattr(config, key):
            raise ValueError(
                f'{where}.arguments: {type(config).__name__} has no {key!r}; it has '
                f'{sorted(config.to_dict())}'
            )
    if known:
        # Some entries follow from others.
        try:
            return type(config)(**arguments)
        except Exception as error:
            # transformers checks values by an exception of its own.
            raise ValueError(f'{where}.arguments: {error}') from error
    for key, value in arguments.items():
        setattr(config, key, value)
    return config


def _load(auto_model: Any, name: str, config: Any, where: str) -> Any:
    load = partial(
        auto_model.from_pretrained,
        name,
        config=config,
        # By default the model would get the type of the file.
        dtype=torch.float32,
        output_loading_info=True,
    )
    model, report = from_cache(load, download=True)
    # transformers fills these with random values. Maps do not depend on the pooler.
    missing = [key for key in report['missing_keys'] if not key.startswith('pooler.')]
    misshapen = [key for key, *_ in report['mismatched_keys']]
    if missing or misshapen:
        raise ValueError(
            f'{where}.model: the weights of {name!r} do not fit '
            f'{type(model).__name__}: missing {sorted(missing)}, of another shape '
            f'{sorted(misshapen)}; remove the `arguments` that change its shape, or '
            'name a model with such weights'
        )
    return model


def _statistics(
    transformers: Any, name: str, family: str, pretrained: bool
) -> tuple[Any, Any]:
    """Return mean and std in pixel units, or None for each if they are unknown."""
    load = partial(transformers.ImageProcessingMixin.get_image_processor_dict, name)
    try:
        if name in transformers.CONFIG_MAPPING:
            raise FileNotFoundError(name)
        processor, _ = from_cache(load, pretrained)
        values = processor['image_mean'], processor['image_std']
    except (OSError, KeyError):
        return _STATISTICS.get(family, (None, None))
    scale = processor.get('rescale_factor', 1 / 255)
    mean, std = ([value / scale for value in part] for part in values)
    return mean, std


def _depth(config: Any) -> int:
    """Return the number of layers; 1, the output, where the config has none."""
    stages = getattr(config, 'depths', None)
    return len(stages) if stages else getattr(config, 'num_hidden_layers', 1)


def _stride(config: Any) -> int | None:
    """Return the stride of the last tokens in pixels."""
    # The stem of DINOv3's ConvNeXt has a fixed stride.
    convnext = config.model_type == 'dinov3_convnext'
    size = 4 if convnext else getattr(config, 'patch_size', None)
    if not isinstance(size, int):
        return None
    # Each stage after the first halves the grid.
    return size * 2 ** (len(getattr(config, 'depths', [0])) - 1)


def read(
    model: Any,
    images: Tensor,
    layers: list[int],
    depth: int,
    where: str = 'model.teacher.layers',
) -> list[Tensor]:
    """Return the outputs of layers; that of the last includes the final norm.

    Raises:
        ValueError: If the model does not return one state for each layer.
    """
    more: dict[str, Any] = dict(output_hidden_states=layers != [depth - 1])
    if 'interpolate_pos_encoding' in inspect.signature(model.forward).parameters:
        more['interpolate_pos_encoding'] = True
    output = model(pixel_values=images, **more)
    # Swin and its like also have maps instead of tokens.
    states = output.get('reshaped_hidden_states') or output.get('hidden_states') or ()
    outputs = {depth - 1: output.last_hidden_state}
    if layers != [depth - 1]:
        outputs = {**dict(enumerate(_of_layers(states, depth, where))), **outputs}
    return [outputs[layer] for layer in layers]


def _of_layers(states: Sequence[Tensor], depth: int, where: str) -> Sequence[Tensor]:
    # Most families put the embedding before the layers; SegFormer and PVTv2 do not.
    if len(states) not in (depth, depth + 1):
        raise ValueError(
            f'{where}: the model returns {len(states)} hidden states for its {depth} '
            'layers, so they cannot be told apart; remove `layers`, which leaves the '
            'last one, or name the model of timm'
        )
    return states[-depth:]
