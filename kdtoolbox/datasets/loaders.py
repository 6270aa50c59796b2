"""Find images that lack an input of the loading transforms of their pipeline."""

from collections.abc import Mapping, Sequence
from typing import Any

from kdtoolbox.datasets.annotations import join_first, read_json


def loads_maps(transform: Any) -> bool:
    """Return whether a transform reads the label map of an image."""
    with_seg = getattr(transform, 'with_seg', False)
    if _is(transform, 'LoadPanopticAnnotations'):
        return with_seg or transform.with_mask
    return with_seg and _is(transform, 'LoadAnnotations')


def loads_masks(transform: Any) -> bool:
    """Return whether a transform reads the masks of a COCO annotation."""
    # The panoptic loader cuts its masks out of label maps.
    panoptic = _is(transform, 'LoadPanopticAnnotations')
    return getattr(transform, 'with_mask', False) and not panoptic


def annotation_loaders(transforms: Sequence[Any]) -> list:
    """Return the transforms whose inputs `missing_input` can check."""
    return [t for t in transforms if _is(t, 'LoadAnnotations', 'LoadProposals')]


def missing_input(loaders: Sequence[Any], info: Mapping, test_mode: bool) -> str | None:
    """Describe the first input of the loaders that an image lacks, and the fix.

    Args:
        loaders: The transforms that `annotation_loaders` returns.
        info: The entry of the image in the data set.
        test_mode: Whether the data set is for tests, where mmdet needs no label maps.

    Returns:
        The description, or None if nothing is missing.
    """
    texts = (_missing_input(loader, info, test_mode) for loader in loaders)
    return next(filter(None, texts), None)


def _missing_input(transform: Any, info: Mapping, test_mode: bool) -> str | None:
    if _is(transform, 'LoadProposals') and 'proposals' not in info:
        return 'there are no proposals; set `proposal_file` of the data set'
    instances = info.get('instances', ())
    if loads_masks(transform) and any('mask' not in each for each in instances):
        return (
            'there is no `segmentation`. Set `with_mask=False` in '
            f'`{type(transform).__name__}` and use a model without a mask head, or use '
            'annotations with masks'
        )
    if not loads_maps(transform):
        return None
    if info.get('seg_map_path') is None:
        if test_mode and hasattr(transform, 'with_mask'):
            return None
        return (
            'there is no label map. Name their folder in `data_prefix`, as `seg` for '
            'mmdet or `seg_map_path` for mmseg. To load none, remove '
            f'`{type(transform).__name__}` or set its `with_seg=False`'
        )
    if _is(transform, 'LoadPanopticAnnotations') and 'segments_info' not in info:
        return (
            'there is no `segments_info`. Take a panoptic data set, such as '
            '`CocoPanopticDataset`, or `LoadAnnotations` instead of '
            f'`{type(transform).__name__}`'
        )
    return None


def _is(transform: Any, *names: str) -> bool:
    return any(kind.__name__ in names for kind in type(transform).__mro__)


def name_image(dataset: Any, info: Mapping, loaders: Sequence[Any]) -> str:
    """Return the path of an image, with the ids of its annotations without a mask.

    The ids are left out unless the loaders read masks of a COCO annotation.
    """
    image = str(info.get('img_path'))
    if not (hasattr(dataset, 'cat_ids') and any(map(loads_masks, loaders))):
        return image
    annotations = read_json(dataset.ann_file, 'ann_file')['annotations']
    of_image = [a for a in annotations if a['image_id'] == info['img_id']]
    ids = [a['id'] for a in of_image if not a.get('segmentation')]
    return f'{image} (annotation {join_first(ids)} of {dataset.ann_file})'
