"""Check that label maps contain only the labels of classes and ignored labels."""

import inspect
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from torch import Tensor

from kdtoolbox.datasets.pipelines import (
    is_local,
    padding_label,
    transforms_of,
    unwrapped,
)
from kdtoolbox.datasets.stored_bits import truncated_labels

_WRITTEN_BY_MMSEG = 255
"""The label that mmseg writes for removed classes and under `reduce_zero_label`. It
does not depend on `ignore_index`."""

# A module variable and not an argument: some loops start their workers as soon as the
# loader is built, and workers only get what the process had set before.
_ignored_by_heads: frozenset[int] | None = None


def set_ignored_by_heads(labels: Collection[int] | None) -> None:
    """Set the labels that the heads of this process's training ignore.

    Args:
        labels: The labels that all heads ignore. None if the heads do not have any;
            then the `ignore_index` of the data sets counts.
    """
    global _ignored_by_heads
    _ignored_by_heads = None if labels is None else frozenset(labels)


def ignored_labels(dataset: Any) -> set[int] | None:
    """Return the labels that a label map may contain beside those of classes.

    For a training these are the labels that the heads ignore, if they are known, and
    else those of the data set. The label maps of a validation do not reach the heads,
    so they may contain both.

    Args:
        dataset: A data set of mmengine's kind, or a wrapper around such.

    Returns:
        The labels, or None if neither the heads nor the data set ignore any.
    """
    leaves = list(unwrapped(dataset))
    indices = (getattr(leaf, 'ignore_index', None) for leaf in leaves)
    of_dataset = {index for index in indices if index is not None}
    if _ignored_by_heads is None:
        return of_dataset or None
    test_mode = all(getattr(leaf, 'test_mode', False) for leaf in leaves)
    return {*_ignored_by_heads, *(of_dataset if test_mode else ())}


def default_ignore_index(dataset: Any) -> int | None:
    """Return the default of `ignore_index` in the constructor of a data set."""
    for kind in type(dataset).__mro__:
        parameter = inspect.signature(kind).parameters.get('ignore_index')
        if parameter is not None:
            return parameter.default
    return None


def wrong_labels(
    labels: Tensor, num_classes: int, ignored: Collection[int]
) -> list[int]:
    """Return the values of a label map that are neither a class nor ignored.

    Args:
        labels: The label map, of any shape, long.
        num_classes: Number of the classes, which count from 0.
        ignored: The ignored labels.

    Example:
        >>> import torch
        >>> wrong_labels(torch.tensor([0, 3, 4, 255]), num_classes=4, ignored={255})
        [4]
    """
    counted = labels
    for label in ignored:
        counted = counted.where(counted != label, 0)
    # `unique` sorts the map, which takes far longer than its extremes.
    if not labels.numel() or (counted.max() < num_classes and counted.min() >= 0):
        return []
    return [v for v in counted.unique().tolist() if not 0 <= v < num_classes]


def check_label_map(sample: Any, dataset: Any) -> None:
    """Check the label map of a sample that mmseg's pipeline returned.

    Samples of other libraries pass: the panoptic maps of mmdet number other classes.

    Args:
        sample: A sample of the data set.
        dataset: The data set, or a wrapper around it.

    Raises:
        ValueError: If the file has labels of more than 8 bits, which mmseg truncates
            silently, if the map does not fit its image, or if a label is neither a
            class nor ignored.
    """
    _check_stored_labels(sample, dataset)
    data_samples: Any = isinstance(sample, dict) and sample.get('data_samples')
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    if type(data_samples).__name__ != 'SegDataSample':
        return
    if classes is None or 'gt_sem_seg' not in data_samples:
        return
    labels = data_samples.gt_sem_seg.data
    # A test pipeline may resize only the image, so the map keeps the original size.
    original_size = data_samples.metainfo.get('ori_shape')
    _check_shape(labels, sample['inputs'].shape[-2:], original_size)
    ignored = ignored_labels(dataset)
    if ignored is None:
        return
    wrong = wrong_labels(labels, len(classes), ignored)
    if wrong:
        raise ValueError(
            f'the label map holds {wrong[:5]}; there are {len(classes)} classes, from '
            f'0, and the labels ignored by `ignore_index` are {sorted(ignored)}. '
            '`reduce_zero_label` of the data set subtracts one from each label'
            + ''.join(f'. {source}' for source in _label_sources(dataset, wrong))
        )


def _check_shape(labels: Tensor, size: Any, original_size: Any) -> None:
    shape = labels.shape
    if len(shape) != 3 or shape[0] != 1:
        raise ValueError(
            f'the label map is of shape {tuple(shape)}, not one label per pixel'
        )
    if shape[1:] not in (size, original_size):
        raise ValueError(
            f'the label map has {tuple(shape[1:])} pixels, its image {tuple(size)}'
        )


def _check_stored_labels(sample: Any, dataset: Any) -> None:
    """Raise if mmseg truncates labels of more than 8 bits."""
    data_samples: Any = isinstance(sample, dict) and sample.get('data_samples')
    path = getattr(data_samples, 'metainfo', {}).get('seg_map_path')
    leaves = list(unwrapped(dataset))
    if path is None:
        return
    if not all(truncates_labels(leaf) and is_local(leaf) for leaf in leaves):
        return
    fault = truncated_labels(path)
    if fault:
        raise ValueError(f'the label map holds {fault}')


def truncates_labels(dataset: Any) -> bool:
    """Return whether mmseg's own loader, which keeps 8 bits, reads the label maps."""
    loaders = (
        getattr(type(transform), '_load_seg_map', None)
        for transform in transforms_of(dataset)
    )
    return any(getattr(x, '__module__', '').startswith('mmseg.') for x in loaders)


def _label_sources(dataset: Any, wrong: Sequence[int]) -> Iterator[str]:
    """Yield the settings that write wrong labels which may not be in the files."""
    for leaf in unwrapped(dataset):
        mapped = (getattr(leaf, 'label_map', None) or {}).values()
        reduces = getattr(leaf, 'reduce_zero_label', False)
        if _WRITTEN_BY_MMSEG in wrong and (reduces or _WRITTEN_BY_MMSEG in mapped):
            yield (
                f'mmseg writes {_WRITTEN_BY_MMSEG} for label 0 under '
                '`reduce_zero_label` and for classes that `metainfo.classes` leaves '
                f'out: set `ignore_index={_WRITTEN_BY_MMSEG}` of the heads'
            )
        for transform in transforms_of(leaf):
            label = padding_label(transform)
            if label in wrong:
                yield f'{type(transform).__name__} pads label maps with {label}'
