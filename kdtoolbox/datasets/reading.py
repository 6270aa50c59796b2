"""Read samples of a data set so that an error names the file behind it."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


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
        _check_labels(sample, getattr(dataset, 'metainfo', {}).get('classes'))
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


def wrong_labels(labels: Tensor, num_classes: int) -> list[int]:
    """Return the values of a label map that are neither a class nor 255.

    Example:
        >>> import torch
        >>> wrong_labels(torch.tensor([0, 3, 4, 255]), num_classes=4)
        [4]
    """
    # The largest first: to sort a map takes far longer, and is hardly ever needed.
    below = labels.where(labels != 255, 0)
    if not labels.numel() or (below.max() < num_classes and below.min() >= 0):
        return []
    return [v for v in below.unique().tolist() if not 0 <= v < num_classes]


def _check_labels(sample: Any, classes: Sequence[str] | None) -> None:
    data_samples: Any = isinstance(sample, dict) and sample.get('data_samples')
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
    wrong = wrong_labels(labels, len(classes))
    if wrong:
        raise ValueError(
            f'the label map holds {wrong[:5]}; there are {len(classes)} classes, from '
            '0, and 255 for pixels of none. `reduce_zero_label` of the data set takes '
            'one off each'
        )


def _files_of(dataset: Any, index: int) -> str:
    while not hasattr(dataset, 'get_data_info') and hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    if not hasattr(dataset, 'get_data_info'):
        return ''
    info = dataset.get_data_info(index)
    paths = [info[key] for key in ('img_path', 'seg_map_path') if info.get(key)]
    return ' with '.join(map(str, paths))
