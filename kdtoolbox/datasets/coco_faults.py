"""What mmdet would stumble over, drop or misread in a COCO annotation."""

import math
from collections.abc import Sequence
from typing import Any

from kdtoolbox.datasets.coco_entries import duplicates, sound_entries
from kdtoolbox.datasets.loaders import loads_masks


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
    sound, keys = sound_entries(content, panoptic)
    kinds = ('keys', 'duplicates', 'classes', 'boxes', 'masks')
    faults: dict[str, list] = {kind: [] for kind in kinds} | dict(keys=keys)
    if not sound:
        return faults
    faults['duplicates'] = duplicates(sound, classes, panoptic)
    names = [category['name'] for category in sound['categories']]
    if classes is not None:
        faults['classes'] = [f'{c!r} is no category' for c in classes if c not in names]
        ordered = [name for name in names if name in classes]
        if not faults['classes'] and ordered != list(classes):
            faults['classes'].append(f'the order of the file is {ordered}')
    images = {image['id']: image for image in sound['images']}
    # Of those that are unsound this is told already.
    known = _ids(content['categories'])
    unsound = _ids(content['images']).difference(images)
    masked = [t for t in loaders if loads_masks(t)]
    for annotation in sound['annotations']:
        # mmdet passes over these on purpose.
        ignored = annotation.get('ignore') and not panoptic
        if ignored or annotation['image_id'] in unsound:
            continue
        told = f'annotation {annotation["id"]}'
        fault = _fault_of_box(annotation, images.get(annotation['image_id']), known)
        if fault:
            faults['boxes'].append(f'{told}: {fault}')
        elif masked and (fault := _fault_of_mask(annotation, masked[0].poly2mask)):
            faults['masks'].append(f'{told} of image {annotation["image_id"]}: {fault}')
    return faults


def _ids(entries: list) -> set:
    ids = (entry.get('id') for entry in entries if isinstance(entry, dict))
    return {i for i in ids if isinstance(i, (int, float, str))}


def _fault_of_box(annotation: dict, image: dict | None, known: set) -> str | None:
    x, y, width, height = annotation['bbox']
    if image is None:
        return f'there is no image {annotation["image_id"]!r}'
    if annotation['category_id'] not in known:
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
    elif not isinstance(mask, dict):
        return f'its segmentation is {mask!r}, neither polygons nor runs of pixels'
    elif not poly2mask:
        return 'its segmentation is no polygon, and poly2mask=False takes no other'
    elif not mask.get('counts') or not mask.get('size'):
        return 'its segmentation has no `counts` or no `size`'
    return None
