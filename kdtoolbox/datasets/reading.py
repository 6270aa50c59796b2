"""Read samples of a data set; errors name the file of the sample."""

from collections.abc import Sequence
from typing import Any

from kdtoolbox.datasets.label_maps import check_label_map


def read_samples(dataset: Any, indices: Sequence[int]) -> list:
    """Return the samples of a batch; see `read_sample`."""
    return [read_sample(dataset, index) for index in indices]


def read_sample(dataset: Any, index: int) -> Any:
    """Return a sample of a data set.

    Args:
        dataset: A data set of mmengine's kind, or a wrapper around such.
        index: The index of the sample.

    Raises:
        ValueError: If the sample cannot be read, or its label map does not fit the
            image or the classes. On a GPU a wrong label would abort the process with
            an error that does not name the file.
    """
    try:
        sample = dataset[index]
        check_label_map(sample, dataset)
    except Exception as error:
        files = _files_of(dataset, index)
        if not files:
            raise
        # Errors of OpenCV have several lines.
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise ValueError(
            f'{files}: {reason}. Repair or remove the damaged file; '
            '`tools/check_dataset.py CONFIG` lists all damaged files'
        ) from error
    return sample


def _files_of(dataset: Any, index: int) -> str:
    while not hasattr(dataset, 'get_data_info') and hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    if not hasattr(dataset, 'get_data_info'):
        return ''
    info = dataset.get_data_info(index)
    paths = [info[key] for key in ('img_path', 'seg_map_path') if info.get(key)]
    return ' with '.join(map(str, paths))
