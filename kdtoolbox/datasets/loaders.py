"""What the loading transforms of a pipeline need, and which data lack it."""

from collections.abc import Mapping, Sequence
from typing import Any

from kdtoolbox.datasets.annotations import first_of, read_json


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
    if loads_masks(transform) and any('mask' not in each for each in instances):
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


def loads_masks(transform: Any) -> bool:
    """Tell whether a transform reads the masks of a COCO annotation."""
    # Other loaders cut masks out of label maps, or have none.
    panoptic = _is(transform, 'LoadPanopticAnnotations')
    return getattr(transform, 'with_mask', False) and not panoptic


def _is(transform: Any, *names: str) -> bool:
    return any(kind.__name__ in names for kind in type(transform).__mro__)


def name_image(dataset: Any, info: Mapping, loaders: Sequence[Any]) -> str:
    """Name an image and, if masks are loaded from COCO's file, annotations without."""
    image = str(info.get('img_path'))
    if not (hasattr(dataset, 'cat_ids') and any(map(loads_masks, loaders))):
        return image
    found = read_json(dataset.ann_file, 'ann_file')['annotations']
    own = [a for a in found if a['image_id'] == info['img_id']]
    ids = [a['id'] for a in own if not a.get('segmentation')]
    return f'{image} (annotation {first_of(ids)} of {dataset.ann_file})'
