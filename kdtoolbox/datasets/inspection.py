"""Check before a training starts what is cheap to know of its data."""

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.dist import is_main_process
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from kdtoolbox.datasets.annotations import (
    explain_failure,
    first_of,
    missing_classes,
    read_json,
)
from kdtoolbox.datasets.class_names import check_class_names
from kdtoolbox.datasets.head_labels import (
    check_ignored,
    class_heads,
    ignored_by_all,
)
from kdtoolbox.datasets.loaders import (
    annotation_loaders,
    lack_of,
    loads_maps,
    name_image,
)
from kdtoolbox.datasets.reading import (
    heed_heads,
    is_local,
    listed,
    read_samples,
    transforms_of,
)
from kdtoolbox.datasets.start_checks import checked_annotations


def check_data(runner: Runner) -> None:
    """Refuse data that would fail, or teach something else, in the middle of a run.

    Builds the data sets for training and validation as the runner would next, looks
    through their wrappers, and opens no image, so that the start stays cheap: what
    only the files tell, such as a photo's orientation, is up to
    ``tools/check_dataset.py``. Data sets of unknown kind pass.

    Args:
        runner: A runner that has not started.

    Raises:
        ValueError: If an annotation file is damaged or has an id twice, a data set is
            empty, files are missing, boxes are no boxes, annotations lack what the
            pipeline loads, or the classes or ignored labels of data, annotation and
            heads differ. It names the place and the line that mends it.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    # Before the loop is asked for, which may start its workers.
    heed_heads(ignored_by_all(model))
    for split in ('train', 'val'):
        root = f'{split}_dataloader.dataset'
        try:
            with checked_annotations():
                loop = getattr(runner, f'{split}_loop')
        except Exception as error:
            loader = runner.cfg.get(f'{split}_dataloader') or {}
            explain_failure(loader.get('dataset'), root, error)
            raise
        if loop is None:
            continue
        dataset = loop.dataloader.dataset
        if split == 'val':
            # Training samples come through `SeededSampler`, which does the same.
            dataset.__getitems__ = partial(read_samples, dataset)
        # The others would repeat it; an error of one process ends the run.
        if is_main_process():
            for where, leaf in leaves(dataset, root):
                check_dataset(leaf, where)
                check_heads(model, leaf, where)
                check_class_names(model, leaf, where)
                if split == 'train':
                    check_ignored(model, leaf, where)


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
        ValueError: As `check_data` tells.
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


def check_heads(model: nn.Module, dataset: BaseDataset, where: str) -> None:
    """Refuse a model whose heads know another number of classes than the data.

    Args:
        model: The model that trains; of a distiller the student's heads are compared.
        dataset: The data set, without wrappers.
        where: Its place in the config.

    Raises:
        ValueError: If the numbers differ.
    """
    classes = dataset.metainfo.get('classes')
    if classes is None or 'thing_classes' in dataset.metainfo:
        return
    for path, head in class_heads(model):
        count = getattr(head, 'num_classes', None)
        if count in (None, len(classes)):
            continue
        raise ValueError(
            f'{where} has {len(classes)} classes and `model.{path}` {count}; set '
            f'`model.{path}.num_classes={len(classes)}`, or list the {count} classes '
            f'as `{where}.metainfo.classes`'
        )


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
