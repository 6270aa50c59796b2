"""Build a foundation model from its name, with its weights and normalisation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.model import ImgDataPreprocessor

from kdtoolbox.teachers.foundation import (
    own_models,
    timm_models,
    transformers_models,
)
from kdtoolbox.teachers.foundation.arguments import (
    check_layers,
    check_patch_size,
    check_statistics,
)
from kdtoolbox.teachers.foundation.backbone import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
)
from kdtoolbox.teachers.foundation.model import FoundationModel
from kdtoolbox.teachers.foundation.weights import load_backbone

_BUILDERS: dict[str, Callable[..., Backbone]] = {
    'timm': timm_models.build,
    'transformers': transformers_models.build,
    'hub': own_models.build_from_hub,
    '': own_models.build_own,
}


def build_foundation(
    model: str,
    checkpoint: str | None = None,
    layers: Sequence[int] | None = None,
    arguments: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bgr: bool = False,
    patch_size: int | None = None,
    pretrained: bool = False,
    allow_random: bool = False,
    trust_pickle: bool = False,
    where: str = 'model.teacher',
) -> FoundationModel:
    """Build a foundation model; `FoundationTeacher` describes the arguments.

    Raises:
        ValueError: If the model has no weights, more than one source of them, or ones
            that do not fit; if the library is missing or does not know the model; if
            its mean or std is unknown.
    """
    check_weights(checkpoint, pretrained, allow_random, where)
    check_layers(layers, where)
    check_patch_size(patch_size, where)
    check_statistics(mean, std, where)
    library, _, name = str(model).rpartition('::')
    if library not in _BUILDERS:
        raise ValueError(
            f'{where}.model: expected timm::NAME, transformers::NAME, '
            f'hub::REPOSITORY:ENTRY or package.module.Class, got {model!r}'
        )
    if not isinstance(arguments or {}, Mapping):
        raise ValueError(
            f'{where}.arguments: expected a dict of arguments, got {arguments!r}'
        )
    backbone = _BUILDERS[library](name, arguments or {}, pretrained, where)
    if checkpoint is not None:
        load_backbone(backbone.module, checkpoint, trust_pickle, where)
    if patch_size is not None:
        backbone.patch_size = patch_size
    preprocessor = _preprocessor(mean or backbone.mean, std or backbone.std, bgr, where)
    numbers = [
        f'{x:.6g}'
        for part in (preprocessor.mean, preprocessor.std)
        for x in part.flatten()
    ]
    print_log(
        f'{where}: {model}, licence of its published weights: {backbone.licence}; '
        f'mean and std of its {"BGR" if bgr else "RGB"} images: {", ".join(numbers)}',
        'current',
    )
    return FoundationModel(backbone, preprocessor, layers or (-1,), where)


def check_weights(
    checkpoint: str | None, pretrained: bool, allow_random: bool, where: str
) -> None:
    """Raise ValueError unless there is exactly one source of weights."""
    if checkpoint is not None and pretrained:
        raise ValueError(
            f'{where}: `checkpoint` and `pretrained=True` both give it weights; '
            'remove one of them'
        )
    if checkpoint is None and not pretrained and not allow_random:
        raise ValueError(
            f'{where} has no weights, and random ones teach nothing. Name a file as '
            '`checkpoint`, set `pretrained=True` to take those of the library, or set '
            '`allow_random=True`'
        )


def _preprocessor(
    mean: Sequence[float] | None, std: Sequence[float] | None, bgr: bool, where: str
) -> ImgDataPreprocessor:
    if mean is None or std is None:
        raise ValueError(
            f'{where}: the mean and std of its images are unknown; set both in pixel '
            f"units, ImageNet's are mean={list(IMAGENET_MEAN)}, "
            f'std={list(IMAGENET_STD)}'
        )
    # Images are read as BGR.
    return ImgDataPreprocessor(mean=mean, std=std, bgr_to_rgb=not bgr)
