"""Query the transforms of a data set's pipeline without running them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

_KEEPS_SIZE = ('RandomFlip', 'PhotoMetricDistortion', 'GenerateEdge', 'RandomCutOut')
"""Transforms of mmseg that do not change the size of an image."""


def unwrapped(dataset: Any) -> Iterator[Any]:
    """Yield the data sets inside wrappers."""
    parts = [*getattr(dataset, 'datasets', ())]
    parts += [dataset.dataset] if hasattr(dataset, 'dataset') else []
    for part in parts:
        yield from unwrapped(part)
    if not parts:
        yield dataset


def transforms_of(dataset: Any) -> Sequence[Any]:
    """Return the transforms of a data set's own pipeline."""
    return getattr(getattr(dataset, 'pipeline', None), 'transforms', ())


def is_local(dataset: Any) -> bool:
    """Return whether the files of a data set are read from this machine's disks."""
    readers = [dataset, *transforms_of(dataset)]
    backends = [getattr(reader, 'backend_args', None) or {} for reader in readers]
    return all(backend.get('backend', 'local') == 'local' for backend in backends)


def padding_label(part: Any) -> int | None:
    """Return the label that a transform or a data preprocessor pads label maps with.

    Args:
        part: The transform or the preprocessor.

    Returns:
        The label, or None if ``part`` does not pad label maps.

    Example:
        >>> from mmcv.transforms import Pad
        >>> padding_label(Pad(size=(64, 64), pad_val=dict(img=0, seg=11)))
        11
    """
    values = getattr(part, 'pad_val', None)
    default = values.get('seg') if isinstance(values, dict) else None
    return getattr(part, 'seg_pad_val', default)


def smallest_output(transforms: Sequence[Any]) -> tuple[float, float]:
    """Return upper bounds for the sides of the smallest image of a pipeline.

    Args:
        transforms: The transforms of the pipeline, in order.

    Returns:
        The bounds of the long and the short side in pixels. They are infinite if the
        size of the output depends on the size of the images.

    Example:
        >>> from mmseg.datasets.transforms import RandomCrop
        >>> smallest_output([RandomCrop(crop_size=(32, 64))])
        (64, 32)
    """
    long = short = math.inf
    for transform in transforms:
        name = type(transform).__name__
        if name == 'RandomCrop':
            crop = transform.crop_size
            long, short = min(long, max(crop)), min(short, min(crop))
        elif name in ('Resize', 'RandomResize', 'RandomChoiceResize'):
            long, short = _smallest_scale(transform)
        elif not (name.startswith(('Load', 'Pack')) or name in _KEEPS_SIZE):
            long = short = math.inf
    return long, short


def _smallest_scale(transform: Any) -> tuple[float, float]:
    scales = getattr(transform, 'scales', None) or getattr(transform, 'scale', None)
    # A scale is one pair, a list of pairs, or a list of lengths of the short side.
    pairs = scales if isinstance(scales, list) else [scales or math.inf]
    pairs = [pair if isinstance(pair, tuple) else (math.inf, pair) for pair in pairs]
    ratio = (getattr(transform, 'ratio_range', None) or (1,))[0]
    return min(map(max, pairs)) * ratio, min(map(min, pairs)) * ratio
