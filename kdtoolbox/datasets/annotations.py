"""Say what is wrong with an annotation file, once something is."""

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.registry import DATASETS

_IMAGE = ('id', 'file_name', 'height', 'width')
_ANNOTATION = ('id', 'image_id', 'category_id', 'bbox', 'area')


def explain_failure(config: Any, where: str, error: Exception) -> None:
    """Raise a clear error if the data explain why a data set could not be built.

    Args:
        config: The config of the data set, or of a wrapper.
        where: Its place in the config.
        error: What came of building it.

    Raises:
        ValueError: If a file is missing or damaged, or no image is left.
    """
    for place, leaf in _leaf_configs(config, where):
        for key, path in _paths(leaf):
            if not os.path.exists(path):
                raise ValueError(
                    f'{place}: {path} does not exist; correct `{key}` or `data_root`'
                ) from error
            if path.endswith('.json'):
                _check_coco(path, place, error)
        if isinstance(error, ValueError) and _is_empty(leaf):
            raise ValueError(
                f'{place} is empty: its folders or its annotation have no image that '
                f'passes; correct `data_prefix`, `img_suffix`, `metainfo.classes` or '
                f'`filter_cfg={leaf.get("filter_cfg")}`'
            ) from error


def _check_coco(path: str, where: str, error: Exception) -> None:
    faults = coco_faults(read_json(path, where))
    for key in ('keys', 'duplicates'):
        if faults[key]:
            raise ValueError(f'{where}: {path}: {first_of(faults[key])}') from error


def read_json(path: str, where: str) -> Any:
    """Return what a JSON file holds.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        with open(path, encoding='utf-8') as file:
            return json.load(file)
    except ValueError as error:
        raise ValueError(
            f'{where}: {path} of {os.path.getsize(path)} bytes is no whole JSON file '
            f'({error}); it was cut off or damaged: fetch or write it again'
        ) from error


def missing_classes(dataset: Any) -> str:
    """Say which classes have no category in the annotation, and which are left over."""
    content = read_json(dataset.ann_file, 'ann_file')
    names = [category['name'] for category in content.get('categories', [])]
    classes = dataset.metainfo['classes']
    told = {
        'without a category': [name for name in classes if name not in names],
        'categories without a class': [name for name in names if name not in classes],
        'named twice': [name for name, n in Counter(names).items() if n > 1],
    }
    return ''.join(f'; {kind}: {first_of(x)}' for kind, x in told.items() if x)


def first_of(names: Sequence[Any], count: int = 3) -> str:
    """Join the first of some names.

    Example:
        >>> first_of(['a', 'b', 'c'], count=2)
        'a, b, ...'
    """
    return ', '.join(map(str, [*names[:count], *['...'] * (len(names) > count)]))


def coco_faults(content: Any, classes: Sequence[str] | None = None) -> dict[str, list]:
    """Return what mmdet would stumble over, drop or misread in a COCO annotation.

    Args:
        content: What the JSON file holds.
        classes: The classes of the data set, if they are to be compared.

    Returns:
        For each kind of fault what has it; all lists are empty if none has.

    Example:
        >>> content = dict(images=[], annotations=[], categories=[dict(id=1, name='a')])
        >>> coco_faults(content, ['a', 'b'])['classes']
        ["'b' is no category"]
    """
    lists = ('images', 'annotations', 'categories')
    keys = [f'there is no `{k}`' for k in lists if k not in dict(content)]
    faults: dict[str, list] = dict(keys=keys, duplicates=[], classes=[], boxes=[])
    if keys:
        return faults
    faults['keys'] += _without(content['images'], 'image', _IMAGE)
    faults['keys'] += _without(content['annotations'], 'annotation', _ANNOTATION)
    if faults['keys']:
        return faults
    for kind in ('images', 'annotations'):
        ids = Counter(item['id'] for item in content[kind])
        faults['duplicates'] += [f'{kind} id {i} twice' for i in ids if ids[i] > 1]
    names = [category['name'] for category in content['categories']]
    if classes is not None:
        faults['classes'] = [f'{c!r} is no category' for c in classes if c not in names]
        ordered = [name for name in names if name in classes]
        if not faults['classes'] and ordered != list(classes):
            faults['classes'].append(f'the order of the file is {ordered}')
    images = {image['id']: image for image in content['images']}
    known = {category['id'] for category in content['categories']}
    for annotation in content['annotations']:
        fault = _fault_of_box(annotation, images.get(annotation['image_id']), known)
        if fault:
            faults['boxes'].append(f'annotation {annotation["id"]}: {fault}')
    return faults


def _without(items: list[dict], kind: str, keys: Sequence[str]) -> list[str]:
    lacking = [(item.get('id'), [k for k in keys if k not in item]) for item in items]
    return [f'{kind} {name} has no {lack}' for name, lack in lacking if lack]


def _fault_of_box(annotation: dict, image: dict | None, known: set) -> str | None:
    x, y, width, height = annotation['bbox']
    if image is None:
        return f'there is no image {annotation["image_id"]}'
    if annotation['category_id'] not in known:
        return f'there is no category {annotation["category_id"]}'
    if not all(map(math.isfinite, annotation['bbox'])):
        return f'bbox {annotation["bbox"]} is not finite'
    if width < 1 or height < 1 or annotation['area'] <= 0:
        return f'bbox {annotation["bbox"]}, area {annotation["area"]}: under a pixel'
    across = min(x + width, image['width']) - max(x, 0)
    down = min(y + height, image['height']) - max(y, 0)
    if across <= 0 or down <= 0:
        size = f'{image["width"]}x{image["height"]}'
        return f'bbox {annotation["bbox"]} lies outside of its {size} image'
    return None


def _leaf_configs(config: Any, where: str) -> Iterator[tuple[str, Mapping]]:
    if not isinstance(config, Mapping):
        return
    for index, part in enumerate(config.get('datasets', ())):
        yield from _leaf_configs(part, f'{where}.datasets[{index}]')
    if 'dataset' in config:
        yield from _leaf_configs(config['dataset'], f'{where}.dataset')
    elif 'datasets' not in config:
        yield where, config


def _paths(leaf: Mapping) -> Iterator[tuple[str, str]]:
    """Yield the keys of a data set's config that name local files, and these."""
    prefix = leaf.get('data_prefix') or {}
    named = dict(ann_file=leaf.get('ann_file'))
    named |= {f'data_prefix.{key}': value for key, value in prefix.items()}
    for key, name in named.items():
        path = os.path.join(leaf.get('data_root') or '', name or '')
        if name and '://' not in path and not leaf.get('backend_args'):
            yield key, path


def _is_empty(leaf: Mapping) -> bool:
    # mmengine fails to pack an empty list, with an error about arrays.
    return not len(DATASETS.build({**leaf, 'serialize_data': False}))
