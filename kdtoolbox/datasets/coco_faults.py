"""List the faults that make mmdet fail on a COCO file, or drop or misread entries."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdtoolbox.datasets.coco_entries import duplicates, valid_entries
from kdtoolbox.datasets.loaders import loads_masks


def coco_faults(
    content: Any,
    classes: Sequence[str] | None = None,
    panoptic: bool = False,
    loaders: Sequence[Any] = (),
) -> dict[str, list]:
    """Return the faults that make mmdet fail, or drop or misread annotations.

    Args:
        content: The parsed JSON file.
        classes: The classes of the data set. None skips their comparison.
        panoptic: Whether the annotations list panoptic segments.
        loaders: The transforms of the pipeline. Masks are checked if one loads them.

    Returns:
        One list of texts per kind of fault. All lists are empty for a good file.

    Example:
        >>> content = dict(images=[], annotations=[], categories=[dict(id=1, name='a')])
        >>> coco_faults(content, ['a', 'b'])['classes']
        ["'b' is no category"]
    """
    valid, entry_faults = valid_entries(content, panoptic)
    kinds = ('keys', 'duplicates', 'classes', 'boxes', 'masks')
    faults: dict[str, list] = {kind: [] for kind in kinds} | dict(keys=entry_faults)
    if not valid:
        return faults
    faults['duplicates'] = duplicates(valid, classes, panoptic)
    if classes is not None:
        faults['classes'] = _class_faults(valid['categories'], classes)
    annotations = _read_by_mmdet(content, valid, panoptic)
    for kind, fault in _annotation_faults(annotations, content, valid, loaders):
        faults[kind].append(fault)
    return faults


def _class_faults(categories: list[dict], classes: Sequence[str]) -> list[str]:
    names = [category['name'] for category in categories]
    missing = [f'{c!r} is no category' for c in classes if c not in names]
    ordered = [name for name in names if name in classes]
    if not missing and ordered != list(classes):
        return [f'the order of the file is {ordered}']
    return missing


def _read_by_mmdet(
    content: Any, valid: Mapping[str, list[dict]], panoptic: bool
) -> Iterator[dict]:
    """Yield the annotations that mmdet does not skip and whose image is valid.

    Faults of invalid images are reported elsewhere.
    """
    invalid = _ids(content['images']).difference(i['id'] for i in valid['images'])
    for annotation in valid['annotations']:
        ignored = annotation.get('ignore') and not panoptic
        if not ignored and annotation['image_id'] not in invalid:
            yield annotation


def _annotation_faults(
    annotations: Iterator[dict],
    content: Any,
    valid: Mapping[str, list[dict]],
    loaders: Sequence[Any],
) -> Iterator[tuple[str, str]]:
    """Yield the kind and the text of each faulty box or mask."""
    images = {image['id']: image for image in valid['images']}
    # Includes invalid categories, whose faults are reported elsewhere.
    category_ids = _ids(content['categories'])
    mask_loader = next((t for t in loaders if loads_masks(t)), None)
    for annotation in annotations:
        name = f'annotation {annotation["id"]}'
        image_id = annotation['image_id']
        fault = _box_fault(annotation, images.get(image_id), category_ids)
        if fault:
            yield 'boxes', f'{name}: {fault}'
        elif mask_loader is not None:
            fault = _mask_fault(annotation, mask_loader.poly2mask)
            if fault:
                yield 'masks', f'{name} of image {image_id}: {fault}'


def _ids(entries: list) -> set:
    ids = (entry.get('id') for entry in entries if isinstance(entry, dict))
    return {i for i in ids if isinstance(i, (int, float, str))}


def _box_fault(annotation: dict, image: dict | None, category_ids: set) -> str | None:
    x, y, width, height = annotation['bbox']
    if image is None:
        return f'there is no image {annotation["image_id"]!r}'
    if annotation['category_id'] not in category_ids:
        return f'there is no category {annotation["category_id"]!r}'
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


def _mask_fault(annotation: dict, poly2mask: bool) -> str | None:
    mask = annotation.get('segmentation')
    if not mask:
        return 'no `segmentation`, which the pipeline loads'
    if annotation.get('iscrowd'):
        return None
    if isinstance(mask, list):
        sizes = [len(part) if isinstance(part, list) else 0 for part in mask]
        if not any(size >= 6 and size % 2 == 0 for size in sizes):
            return 'no part of its segmentation is a list of three points or more'
    elif not isinstance(mask, dict):
        return f'its segmentation is {mask!r}, neither polygons nor run lengths'
    elif not poly2mask:
        return 'its segmentation is no polygon, and poly2mask=False takes no other'
    elif not mask.get('counts') or not mask.get('size'):
        return 'its segmentation has no `counts` or no `size`'
    return None
