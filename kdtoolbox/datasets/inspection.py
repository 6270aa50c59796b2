"""Check a data set without opening its images."""

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from mmengine.dataset import BaseDataset

from kdtoolbox.datasets.annotations import (
    join_first,
    missing_classes,
    read_json,
)
from kdtoolbox.datasets.loaders import (
    annotation_loaders,
    loads_maps,
    missing_input,
    name_image,
)
from kdtoolbox.datasets.pipelines import is_local, transforms_of


def leaves(dataset: Any, where: str) -> Iterator[tuple[str, BaseDataset]]:
    """Yield mmengine's data sets inside wrappers, with their config paths."""
    if isinstance(dataset, BaseDataset):
        yield where, dataset
    for index, part in enumerate(getattr(dataset, 'datasets', ())):
        yield from leaves(part, f'{where}.datasets[{index}]')
    if hasattr(dataset, 'dataset'):
        yield from leaves(dataset.dataset, f'{where}.dataset')


def check_dataset(dataset: BaseDataset, where: str) -> None:
    """Check that a data set is complete and consistent, without opening its images.

    Args:
        dataset: The data set, without wrappers.
        where: Its path in the config.

    Raises:
        ValueError: If the data set is empty, files or classes are missing, a box is
            damaged, or the images do not have what the pipeline loads.
    """
    _check_classes(dataset, where)
    if not len(dataset):
        raise ValueError(f'{where} is empty; its `filter_cfg` removes all images')
    loaders = annotation_loaders(transforms_of(dataset))
    images, labels, missing, counts = [], [], [], []
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        images += as_list(info.get('img_path'))
        labels.append(info.get('seg_map_path'))
        if 'instances' in info:
            counts.append(_count_boxes(info, where))
        text = missing_input(loaders, info, dataset.test_mode)
        missing += [(info, text)] if text else []
    _check_boxes(dataset, counts, where)
    if missing:
        info, text = missing[0]
        raise ValueError(
            f'{where}: {len(missing)} of {len(dataset)} images lack what the '
            f'pipeline loads, first {name_image(dataset, info, loaders)}: {text}'
        )
    if is_local(dataset):
        _check_files(images, 'images', where)
        if any(map(loads_maps, loaders)):
            _check_files(labels, 'label maps', where)


def as_list(paths: Any) -> list:
    """Return the files of an image, which can be one file or one per channel.

    Example:
        >>> as_list('a.png'), as_list(['r.png', 'g.png'])
        (['a.png'], ['r.png', 'g.png'])
    """
    return paths if isinstance(paths, list) else [paths]


def missing_files(paths: Iterable[str]) -> list[str]:
    """Return the paths without a file; lists each folder only once.

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


def _check_boxes(dataset: BaseDataset, counts: list[int], where: str) -> None:
    if counts and sum(counts) == 0 and not _may_lack_boxes(dataset, where):
        raise ValueError(
            f'{where}: none of its {len(dataset)} images has a box, other than of '
            'crowds, in one of its classes; correct `metainfo.classes` or `ann_file`. '
            '`tools/check_dataset.py CONFIG` lists why boxes are dropped'
        )


def _may_lack_boxes(dataset: BaseDataset, where: str) -> bool:
    """Return whether a data set is unlabelled, or the background of a wrapper."""
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
    # mmdet numbers only the categories that it finds, so a missing one shifts the
    # labels of all later classes.
    if found is not None and classes is not None and len(found) != len(classes):
        raise ValueError(
            f'{where}: {len(classes)} classes are listed and {len(found)} categories '
            f'of {dataset.ann_file} have their names{missing_classes(dataset)}. Set '
            '`metainfo.classes` to the names in the file, each once'
        )


def _count_boxes(info: dict, where: str) -> int:
    """Return the number of boxes to learn; raise if a box is damaged."""
    count = 0
    for instance in info['instances']:
        box = instance.get('bbox')
        if box is None:
            continue
        x1, y1, x2, y2 = box
        width, height = info.get('width', math.inf), info.get('height', math.inf)
        inside = x1 < width and y1 < height and x2 > 0 and y2 > 0
        # Ignored boxes, such as the smallest faces of WIDERFace, may have no area.
        ignored = bool(instance.get('ignore_flag'))
        valid = ignored or (x1 < x2 and y1 < y2 and inside)
        if not (valid and all(map(math.isfinite, box))):
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
            f'{join_first(missing)}; correct its `data_root` or `data_prefix`, or '
            'fetch the files'
        )
