"""Which labels the heads of a model know and ignore, held against its data."""

from collections.abc import Iterator
from typing import Any

from mmengine.dataset import BaseDataset
from torch import nn

from kdtoolbox.datasets.reading import (
    default_ignored,
    padding_label,
    smallest_draw,
    transforms_of,
)

# Of RPNs one is the object, whatever the classes; these learn boundaries and depths,
# or match the words of a text.
_OTHER_HEADS = ('rpn_head', 'semantic_head')
_NOT_OF_CLASSES = ('STDCHead', 'VPDDepthHead', 'GroundingDINOHead', 'ATSSVLFusionHead')
_AUXILIARY = 'auxiliary_head'


def check_ignored(model: nn.Module, dataset: BaseDataset, where: str) -> None:
    """Refuse heads that would learn, or fail at, labels that are to be ignored.

    Only what is certain is refused. mmseg's data sets ignore 255 unless told, and
    nothing of mmseg reads it, so that this default binds no head. Padding counts only
    where the pipeline cannot but make images under the size of the preprocessor.

    Args:
        model: The model that trains; of a distiller the student's heads are compared.
        dataset: The data set of the training, without wrappers.
        where: Its place in the config.

    Raises:
        ValueError: If a head does not ignore what the data set says is to be ignored,
            or what the data preprocessor pads label maps with.
    """
    own = getattr(dataset, 'ignore_index', None)
    padding, place = _certain_padding(model, dataset)
    for path, head, ignored in _ignoring_heads(model):
        auxiliary = _AUXILIARY in path
        if own not in (None, ignored, default_ignored(dataset)) and not auxiliary:
            raise ValueError(
                f'{where} ignores the label {own} and `model.{path}` {ignored}; set '
                f'`model.{path}.ignore_index={own}` or `{where}.ignore_index={ignored}`'
            )
        is_class = padding is not None and 0 <= padding < head.num_classes
        # That of an auxiliary head may well be the ignored label of the main one.
        if padding in (None, ignored) or auxiliary and is_class:
            continue
        fate = 'would learn as a class' if is_class else 'has no class for'
        raise ValueError(
            f'`model.{place}` pads label maps with {padding}, which `model.{path}` '
            f'does not ignore and {fate}: the pipeline of {where} makes images under '
            f'its `size`. Set `model.{place}.seg_pad_val={ignored}`'
        )


def class_heads(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the heads that tell the classes of the data apart, with their paths."""
    for path, head in model.named_modules():
        # Heads of several stages are numbered.
        name = path.rstrip('.0123456789').rpartition('.')[2]
        kinds = {kind.__name__ for kind in type(head).__mro__}
        if not name.endswith('_head') or name in _OTHER_HEADS:
            continue
        if kinds.isdisjoint(_NOT_OF_CLASSES):
            yield path, head


def _ignoring_heads(model: nn.Module) -> Iterator[tuple[str, Any, int]]:
    """Yield mmseg's heads of classes with their paths and the label each ignores."""
    for path, head in class_heads(model):
        ignored = getattr(head, 'ignore_index', None)
        if ignored is not None and hasattr(head, 'num_classes'):
            yield path, head, ignored


def ignored_by_all(model: nn.Module) -> set[int] | None:
    """Return the labels that every head ignores, None if no head says."""
    labels = [{ignored} for _, _, ignored in _ignoring_heads(model)]
    return set.intersection(*labels) if labels else None


def _certain_padding(model: nn.Module, dataset: BaseDataset) -> tuple[int | None, str]:
    """Return the label and path of a preprocessor that pads some label maps for sure.

    The label is None if there may be no padding.
    """
    # A distiller has the student's too: the longest path is the place in the config.
    parts = dict(model.named_modules(remove_duplicate=False))
    places = [path for path in parts if path.endswith('data_preprocessor')]
    place = max(places, key=len, default='')
    size = getattr(parts[place], 'size', None)
    long, short = smallest_draw(transforms_of(dataset))
    if size is None or (long >= max(size) and short >= min(size)):
        return None, place
    return padding_label(parts[place]), place
