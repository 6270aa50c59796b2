"""Read samples of a data set so that an error names the file behind it."""

import inspect
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from torch import Tensor

from kdtoolbox.datasets.stored_bits import cut_labels

# mmseg writes it for removed classes and under `reduce_zero_label`, whatever is ignored
_WRITTEN_BY_MMSEG = 255

# They leave an image as large as it is.
_SAME_SIZE = ('RandomFlip', 'PhotoMetricDistortion', 'GenerateEdge', 'RandomCutOut')

# Not an argument: some loops start their workers as soon as the loader is built, and
# only what the process knew before reaches them.
_known_of_heads: frozenset[int] | None = None


def heed_heads(ignored: Collection[int] | None) -> None:
    """Judge the label maps of trainings by what the heads ignore from now on.

    Args:
        ignored: The labels that all heads ignore; None if they do not tell, which
            leaves it to the data sets.
    """
    global _known_of_heads
    _known_of_heads = None if ignored is None else frozenset(ignored)


def ignored_labels(dataset: Any) -> set[int] | None:
    """Return the labels that may stand in label maps beside those of classes.

    For a training these are the labels that the heads ignore, where they are known,
    and those of the data set otherwise. A validation feeds no head: it may have both.

    Args:
        dataset: A data set of mmengine's kind, or a wrapper around such.

    Returns:
        The labels, or None if neither heads nor data set tell any.
    """
    inner = list(unwrapped(dataset))
    told = (getattr(leaf, 'ignore_index', None) for leaf in inner)
    own = {label for label in told if label is not None}
    if _known_of_heads is None:
        return own or None
    tested = all(getattr(leaf, 'test_mode', False) for leaf in inner)
    return {*_known_of_heads, *(own if tested else ())}


def default_ignored(dataset: Any) -> int | None:
    """Return what a data set of this kind ignores if its config does not tell."""
    for kind in type(dataset).__mro__:
        told = inspect.signature(kind).parameters.get('ignore_index')
        if told is not None:
            return told.default
    return None


def unwrapped(dataset: Any) -> Iterator[Any]:
    """Yield the data sets within wrappers."""
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
    """Tell whether the files of a data set are read from this machine's disks."""
    readers = [dataset, *transforms_of(dataset)]
    backends = [getattr(reader, 'backend_args', None) or {} for reader in readers]
    return all(backend.get('backend', 'local') == 'local' for backend in backends)


def listed(paths: Any) -> list:
    """Return the files of an image, of which some have one for each channel.

    Example:
        >>> listed('a.png'), listed(['r.png', 'g.png'])
        (['a.png'], ['r.png', 'g.png'])
    """
    return paths if isinstance(paths, list) else [paths]


def read_samples(dataset: Any, indices: Sequence[int]) -> list:
    """Return the samples of a batch; see `read_sample`."""
    return [read_sample(dataset, index) for index in indices]


def read_sample(dataset: Any, index: int) -> Any:
    """Return a sample of a data set.

    Args:
        dataset: A data set of mmengine's kind, or a wrapper around such.
        index: The sample's index.

    Raises:
        ValueError: If it cannot be read, or is a label map that does not fit its image
            or the classes. On a GPU a wrong label would end the process without a
            word about its file.
    """
    try:
        sample = dataset[index]
        _check_stored(sample, dataset)
        _check_labels(sample, dataset)
    except Exception as error:
        files = _files_of(dataset, index)
        if not files:
            raise
        # That of OpenCV has several lines.
        told = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise ValueError(
            f'{files}: {told}. Mend or remove what is damaged; '
            '`tools/check_dataset.py CONFIG` finds all of it'
        ) from error
    return sample


def wrong_labels(
    labels: Tensor, num_classes: int, ignored: Collection[int]
) -> list[int]:
    """Return the values of a label map that are neither a class nor ignored.

    Args:
        labels: The map, of any shape, long.
        num_classes: Number of the classes, which count from 0.
        ignored: The labels of pixels that teach nothing.

    Example:
        >>> import torch
        >>> wrong_labels(torch.tensor([0, 3, 4, 255]), num_classes=4, ignored={255})
        [4]
    """
    below = labels
    for label in ignored:
        below = below.where(below != label, 0)
    # The largest first: to sort a map takes far longer, and is hardly ever needed.
    if not labels.numel() or (below.max() < num_classes and below.min() >= 0):
        return []
    return [v for v in below.unique().tolist() if not 0 <= v < num_classes]


def _check_labels(sample: Any, dataset: Any) -> None:
    data_samples: Any = isinstance(sample, dict) and sample.get('data_samples')
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    # mmdet's maps, of things and stuff, number other classes.
    if type(data_samples).__name__ != 'SegDataSample':
        return
    if classes is None or 'gt_sem_seg' not in data_samples:
        return
    labels = data_samples.gt_sem_seg.data
    size, expected = labels.shape, sample['inputs'].shape[-2:]
    # Where images alone are resized, as for a test, their labels keep their size.
    if len(size) != 3 or size[0] != 1:
        raise ValueError(
            f'the label map is of shape {tuple(size)}, not one label per pixel'
        )
    if size[1:] not in (expected, data_samples.metainfo.get('ori_shape')):
        raise ValueError(
            f'the label map has {tuple(size[1:])} pixels, its image {tuple(expected)}'
        )
    ignored = ignored_labels(dataset)
    if ignored is None:
        return
    wrong = wrong_labels(labels, len(classes), ignored)
    if wrong:
        raise ValueError(
            f'the label map holds {wrong[:5]}; there are {len(classes)} classes, from '
            f'0, and the labels ignored by `ignore_index` are {sorted(ignored)}. '
            '`reduce_zero_label` of the data set takes one off each'
            + ''.join(f'. {source}' for source in _sources(dataset, wrong))
        )


def _check_stored(sample: Any, dataset: Any) -> None:
    """Refuse labels of more than 8 bits, which mmseg cuts without a word."""
    data_samples: Any = isinstance(sample, dict) and sample.get('data_samples')
    path = getattr(data_samples, 'metainfo', {}).get('seg_map_path')
    inner = list(unwrapped(dataset))
    if path is None or not all(cuts_labels(leaf) and is_local(leaf) for leaf in inner):
        return
    cut = cut_labels(path)
    if cut:
        raise ValueError(f'the label map holds {cut}')


def cuts_labels(dataset: Any) -> bool:
    """Tell whether label maps are read by mmseg's own loader, which keeps 8 bits."""
    readers = (
        getattr(type(transform), '_load_seg_map', None)
        for transform in transforms_of(dataset)
    )
    return any(getattr(r, '__module__', '').startswith('mmseg.') for r in readers)


def _sources(dataset: Any, wrong: Sequence[int]) -> Iterator[str]:
    """Yield what writes some labels into label maps that need not be in the files."""
    for leaf in unwrapped(dataset):
        left_out = (getattr(leaf, 'label_map', None) or {}).values()
        reduces = getattr(leaf, 'reduce_zero_label', False)
        if _WRITTEN_BY_MMSEG in wrong and (reduces or _WRITTEN_BY_MMSEG in left_out):
            yield (
                f'mmseg writes {_WRITTEN_BY_MMSEG} for label 0 under '
                '`reduce_zero_label` and for classes that `metainfo.classes` leaves '
                f'out: set `ignore_index={_WRITTEN_BY_MMSEG}` of the heads'
            )
        for transform in transforms_of(leaf):
            label = padding_label(transform)
            if label in wrong:
                yield f'{type(transform).__name__} pads label maps with {label}'


def padding_label(part: Any) -> int | None:
    """Return what a transform or a data preprocessor pads label maps with, if it does.

    Example:
        >>> from mmcv.transforms import Pad
        >>> padding_label(Pad(size=(64, 64), pad_val=dict(img=0, seg=11)))
        11
    """
    values = getattr(part, 'pad_val', None)
    own = values.get('seg') if isinstance(values, dict) else None
    return getattr(part, 'seg_pad_val', own)


def smallest_draw(transforms: Sequence[Any]) -> tuple[float, float]:
    """Return what the sides of the smallest image of a pipeline cannot exceed.

    Args:
        transforms: Those of the pipeline, in order.

    Returns:
        The long and the short side in pixels; infinite where it depends on the images.

    Example:
        >>> from mmseg.datasets.transforms import RandomCrop
        >>> smallest_draw([RandomCrop(crop_size=(32, 64))])
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
        elif not (name.startswith(('Load', 'Pack')) or name in _SAME_SIZE):
            long = short = math.inf
    return long, short


def _smallest_scale(transform: Any) -> tuple[float, float]:
    scales = getattr(transform, 'scales', None) or getattr(transform, 'scale', None)
    # One pair, several, or lengths of short edges.
    pairs = scales if isinstance(scales, list) else [scales or math.inf]
    pairs = [pair if isinstance(pair, tuple) else (math.inf, pair) for pair in pairs]
    ratio = (getattr(transform, 'ratio_range', None) or (1,))[0]
    return min(map(max, pairs)) * ratio, min(map(min, pairs)) * ratio


def _files_of(dataset: Any, index: int) -> str:
    while not hasattr(dataset, 'get_data_info') and hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    if not hasattr(dataset, 'get_data_info'):
        return ''
    info = dataset.get_data_info(index)
    paths = [info[key] for key in ('img_path', 'seg_map_path') if info.get(key)]
    return ' with '.join(map(str, paths))
