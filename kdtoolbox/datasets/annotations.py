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
_PANOPTIC = ('image_id', 'segments_info')


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
                _check_coco(path, leaf, place, error)
        if isinstance(error, ValueError) and _is_empty(leaf):
            raise ValueError(
                f'{place} is empty: its folders or its annotation have no image that '
                f'passes; correct `data_prefix`, `img_suffix`, `metainfo.classes` or '
                f'`filter_cfg={leaf.get("filter_cfg")}`'
            ) from error


def _check_coco(path: str, leaf: Mapping, where: str, error: Exception) -> None:
    kind = leaf['type']
    faults = coco_faults(
        read_json(path, where),
        panoptic='Panoptic' in getattr(kind, '__name__', str(kind)),
    )
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


def coco_faults(
    content: Any,
    classes: Sequence[str] | None = None,
    panoptic: bool = False,
    loaders: Sequence[Any] = (),
) -> dict[str, list]:
    """Return what mmdet would stumble over, drop or misread in a COCO annotation.

    Args:
        content: What the JSON file holds.
        classes: The classes of the data set, if they are to be compared.
        panoptic: Whether the data set reads segments, which annotations then list.
        loaders: The transforms of the pipeline, some of which may load masks.

    Returns:
        For each kind of fault what has it; all lists are empty if none has.

    Example:
        >>> content = dict(images=[], annotations=[], categories=[dict(id=1, name='a')])
        >>> coco_faults(content, ['a', 'b'])['classes']
        ["'b' is no category"]
    """
    lists = ('images', 'annotations', 'categories')
    keys = [f'there is no `{k}`' for k in lists if k not in dict(content)]
    kinds = ('keys', 'duplicates', 'classes', 'boxes', 'masks')
    faults: dict[str, list] = {kind: [] for kind in kinds} | dict(keys=keys)
    if keys:
        return faults
    annotations = content['annotations']
    if panoptic:
        faults['keys'] += _without(annotations, 'annotation', _PANOPTIC)
        if faults['keys']:
            return faults
        annotations = [
            dict(segment, image_id=annotation['image_id'])
            for annotation in annotations
            for segment in annotation['segments_info']
        ]
    faults['keys'] += _without(content['images'], 'image', _IMAGE)
    faults['keys'] += _without(annotations, 'annotation', _ANNOTATION)
    if faults['keys']:
        return faults
    # Segments are numbered anew in each image.
    listed = dict(images=content['images'], annotations=[] if panoptic else annotations)
    for kind, items in listed.items():
        ids = Counter(item['id'] for item in items)
        faults['duplicates'] += [f'{kind} id {i} twice' for i in ids if ids[i] > 1]
    names = [category['name'] for category in content['categories']]
    if classes is not None:
        faults['classes'] = [f'{c!r} is no category' for c in classes if c not in names]
        ordered = [name for name in names if name in classes]
        if not faults['classes'] and ordered != list(classes):
            faults['classes'].append(f'the order of the file is {ordered}')
    images = {image['id']: image for image in content['images']}
    known = {category['id'] for category in content['categories']}
    masked = [t for t in loaders if _loads_masks(t)]
    for annotation in annotations:
        told = f'annotation {annotation["id"]}'
        fault = _fault_of_box(annotation, images.get(annotation['image_id']), known)
        if fault:
            faults['boxes'].append(f'{told}: {fault}')
        elif masked and (fault := _fault_of_mask(annotation, masked[0].poly2mask)):
            faults['masks'].append(f'{told} of image {annotation["image_id"]}: {fault}')
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


def _fault_of_mask(annotation: dict, poly2mask: bool) -> str | None:
    mask = annotation.get('segmentation')
    if not mask:
        return 'no `segmentation`, which the pipeline loads'
    if annotation.get('iscrowd'):
        return None
    if isinstance(mask, list):
        sizes = [len(part) if isinstance(part, list) else 0 for part in mask]
        if not any(size >= 6 and size % 2 == 0 for size in sizes):
            return 'no part of its segmentation is a list of three points or more'
    elif not poly2mask:
        return 'its segmentation is no polygon, and poly2mask=False takes no other'
    elif not mask.get('counts') or not mask.get('size'):
        return 'its segmentation has no `counts` or no `size`'
    return None


def loads_maps(transform: Any) -> bool:
    """Tell whether a transform reads the label map of an image."""
    told = getattr(transform, 'with_seg', False)
    if _is(transform, 'LoadPanopticAnnotations'):
        return told or transform.with_mask
    return told and _is(transform, 'LoadAnnotations')


def annotation_loaders(transforms: Sequence[Any]) -> list:
    """Return the transforms of a pipeline for which `lack_of` knows what they load."""
    return [t for t in transforms if _is(t, 'LoadAnnotations', 'LoadProposals')]


def lack_of(loaders: Sequence[Any], info: Mapping, test_mode: bool) -> str | None:
    """Say what transforms load that an image does not have, and what mends it.

    Args:
        loaders: What `annotation_loaders` returns.
        info: What the data set knows of the image, without reading it.
        test_mode: Whether the data set is for tests, which mmdet does without maps.
    """
    lacks = (_lack(loader, info, test_mode) for loader in loaders)
    return next(filter(None, lacks), None)


def _lack(transform: Any, info: Mapping, test_mode: bool) -> str | None:
    if _is(transform, 'LoadProposals') and 'proposals' not in info:
        return 'there are no proposals; set `proposal_file` of the data set'
    instances = info.get('instances', ())
    if _loads_masks(transform) and any('mask' not in each for each in instances):
        return (
            'there is no `segmentation`. Set `with_mask=False` in '
            f'`{type(transform).__name__}` and take a model without mask head, or take '
            'annotations that have it'
        )
    if not loads_maps(transform):
        return None
    if info.get('seg_map_path') is None:
        if test_mode and hasattr(transform, 'with_mask'):
            return None
        return (
            'there is no label map. Name their folder in `data_prefix`, as `seg` for '
            'mmdet or `seg_map_path` for mmseg, or do not load them: take '
            f'`{type(transform).__name__}` out or set `with_seg=False`'
        )
    if _is(transform, 'LoadPanopticAnnotations') and 'segments_info' not in info:
        return (
            'there is no `segments_info`. Take a panoptic data set, such as '
            '`CocoPanopticDataset`, or `LoadAnnotations` instead of '
            f'`{type(transform).__name__}`'
        )
    return None


def _loads_masks(transform: Any) -> bool:
    # Other loaders cut masks out of label maps, or have none.
    panoptic = _is(transform, 'LoadPanopticAnnotations')
    return getattr(transform, 'with_mask', False) and not panoptic


def _is(transform: Any, *names: str) -> bool:
    return any(kind.__name__ in names for kind in type(transform).__mro__)


def name_image(dataset: Any, info: Mapping, loaders: Sequence[Any]) -> str:
    """Name an image and, if masks are loaded from COCO's file, annotations without."""
    image = str(info.get('img_path'))
    if not (hasattr(dataset, 'cat_ids') and any(map(_loads_masks, loaders))):
        return image
    found = read_json(dataset.ann_file, 'ann_file')['annotations']
    own = [a for a in found if a['image_id'] == info['img_id']]
    ids = [a['id'] for a in own if not a.get('segmentation')]
    return f'{image} (annotation {first_of(ids)} of {dataset.ann_file})'


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
