"""Check a data set without opening its images."""

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from mmengine.dataset import BaseDataset

from kdtoolbox.datasets.annotations import (
    first_of,
    missing_classes,
    read_json,
)
from kdtoolbox.datasets.loaders import (
    annotation_loaders,
    lack_of,
    loads_maps,
    name_image,
)
from kdtoolbox.datasets.reading import (
    is_local,
    listed,
    transforms_of,
)


def leaves(dataset: Any, where: str) -> Iterator[tuple[str, BaseDataset]]:
    """Yield the data sets of mmengine's kind within wrappers, with their place."""
    if isinstance(dataset, BaseDataset):
        yield where, dataset
    for index, part in enumerate(getattr(dataset, 'datasets', ())):
        yield from leaves(part, f'{where}.datasets[{index}]')
    if hasattr(dataset, 'dataset'):
        yield from leaves(dataset.dataset, f'{where}.dataset')


def check_dataset(dataset: BaseDataset, where: str) -> None:
    """Refuse, without a look at images, a data set that is empty, incomplete or wrong.

    Args:
        dataset: The data set, without wrappers.
        where: Its place in the config.

    Raises:
        ValueError: As `kdtoolbox.runs.preflight.check_data` tells.
    """
    _check_classes(dataset, where)
    images, labels, lacking, boxes = [], [], [], None
    loaders = annotation_loaders(transforms_of(dataset))
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        images += listed(info.get('img_path'))
        labels.append(info.get('seg_map_path'))
        lack = lack_of(loaders, info, dataset.test_mode)
        lacking += [(info, lack)] if lack else []
        if 'instances' in info:
            boxes = (boxes or 0) + _count_boxes(info, where)
    if not len(dataset):
        raise ValueError(f'{where} is empty; no image is left behind its `filter_cfg`')
    if boxes == 0 and not _wants_no_boxes(dataset, where):
        raise ValueError(
            f'{where}: none of its {len(dataset)} images has a box, other than of '
            'crowds, in one of its classes; correct `metainfo.classes` or `ann_file`. '
            '`tools/check_dataset.py CONFIG` tells why boxes are dropped'
        )
    if lacking:
        info, lack = lacking[0]
        raise ValueError(
            f'{where}: {len(lacking)} of {len(dataset)} images lack what the '
            f'pipeline loads, first {name_image(dataset, info, loaders)}: {lack}'
        )
    if is_local(dataset):
        _check_files(images, 'images', where)
        if any(map(loads_maps, loaders)):
            _check_files(labels, 'label maps', where)


def missing_files(paths: Iterable[str]) -> list[str]:
    """Return the paths of which there is no file; lists each folder once.

    Example:
        >>> missing_files([__file__, f'{__file__}.gone']) == [f'{__file__}.gone']
        True
    """
    folders = defaultdict(list)
    for path in paths:
        folders[os.path.dirname(path)].append(path)
    missing = []
    for folder, members in folders.items():
        there = set(os.listdir(folder or '.')) if os.path.isdir(folder or '.') else ()
        missing += [path for path in members if os.path.basename(path) not in there]
    return missing


def _wants_no_boxes(dataset: BaseDataset, where: str) -> bool:
    """Tell whether images are unlabelled, or background to other parts of the data."""
    kinds = [type(transform).__name__ for transform in transforms_of(dataset)]
    if 'LoadEmptyAnnotations' in kinds:
        return True
    if '.datasets[' not in where or not hasattr(dataset, 'cat_ids'):
        return False
    return not read_json(dataset.ann_file, where)['annotations']


def _check_classes(dataset: BaseDataset, where: str) -> None:
    classes = dataset.metainfo.get('classes')
    if isinstance(classes, str):
        raise ValueError(
            f'{where}.metainfo.classes is the text {classes!r}; a single class needs a '
            f"comma: `classes=('{classes}',)`"
        )
    found = getattr(dataset, 'cat_ids', None)
    # mmdet numbers those that it finds, so that one gap moves all classes behind it.
    if found is not None and classes is not None and len(found) != len(classes):
        raise ValueError(
            f'{where}: {len(classes)} classes are listed and {len(found)} categories '
            f'of {dataset.ann_file} have their names{missing_classes(dataset)}. List '
            'as `metainfo.classes` what the file calls them, each once'
        )


def _count_boxes(info: dict, where: str) -> int:
    """Return the number of boxes to learn; refuse those that are none."""
    count = 0
    for instance in info['instances']:
        box = instance.get('bbox')
        if box is None:
            continue
        x1, y1, x2, y2 = box
        width, height = info.get('width', math.inf), info.get('height', math.inf)
        inside = x1 < width and y1 < height and x2 > 0 and y2 > 0
        # What a data set ignores, as WIDERFace its smallest faces, may have no area.
        ignored = bool(instance.get('ignore_flag'))
        sound = ignored or (x1 < x2 and y1 < y2 and inside)
        if not (sound and all(map(math.isfinite, box))):
            raise ValueError(
                f'{where}: the box {tuple(box)} of {info.get("img_path")} is not '
                'finite, has no area or lies outside of its image; correct it in '
                'the annotation'
            )
        count += not ignored
    return count


def _check_files(paths: list[str | None], kind: str, where: str) -> None:
    missing = missing_files(path for path in paths if path and '://' not in path)
    if missing:
        raise ValueError(
            f'{where}: {len(missing)} of {len(paths)} {kind} are missing: '
            f'{first_of(missing)}; correct `data_root` or `data_prefix` there, or '
            'fetch the files'
        )
