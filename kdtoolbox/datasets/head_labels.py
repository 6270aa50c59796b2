"""Compare the labels that the heads of a model ignore with those of its data."""

from collections.abc import Iterator
from typing import Any

from mmengine.dataset import BaseDataset
from torch import nn

from kdtoolbox.datasets.label_maps import default_ignore_index
from kdtoolbox.datasets.pipelines import (
    padding_label,
    smallest_output,
    transforms_of,
)

# RPN heads predict objectness, and semantic heads the classes of other label maps.
_NAMES_OF_OTHER_HEADS = ('rpn_head', 'semantic_head')
# These heads predict boundaries or depths, or match the words of a text.
_OTHER_HEADS = ('STDCHead', 'VPDDepthHead', 'GroundingDINOHead', 'ATSSVLFusionHead')
_AUXILIARY = 'auxiliary_head'


def check_ignored(model: nn.Module, dataset: BaseDataset, where: str) -> None:
    """Check that the heads ignore the ignored labels of the data and the padding.

    Only certain faults raise. mmseg's data sets have `ignore_index=255` by default and
    mmseg never reads it, so heads may ignore another label than this default. Padding
    counts only if the pipeline always makes images smaller than the preprocessor's
    size.

    Args:
        model: The model that trains. For a distiller the student's heads are checked.
        dataset: The data set of the training, without wrappers.
        where: Its path in the config.

    Raises:
        ValueError: If a head does not ignore the `ignore_index` of the data set, or
            the label that the data preprocessor pads label maps with.
    """
    of_data = getattr(dataset, 'ignore_index', None)
    padding, place = _certain_padding(model, dataset)
    for path, head, ignored in _ignoring_heads(model):
        auxiliary = _AUXILIARY in path
        expected = (None, ignored, default_ignore_index(dataset))
        if of_data not in expected and not auxiliary:
            raise ValueError(
                f'{where} ignores the label {of_data} and `model.{path}` {ignored}; '
                f'set `model.{path}.ignore_index={of_data}` or '
                f'`{where}.ignore_index={ignored}`'
            )
        is_class = padding is not None and 0 <= padding < head.num_classes
        # An auxiliary head may learn the label that the main head ignores.
        if padding in (None, ignored) or auxiliary and is_class:
            continue
        fate = 'would learn as a class' if is_class else 'has no class for'
        raise ValueError(
            f'`model.{place}` pads label maps with {padding}, which `model.{path}` '
            f'does not ignore and {fate}: the pipeline of {where} makes images smaller '
            f'than its `size`. Set `model.{place}.seg_pad_val={ignored}`'
        )


def class_heads(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the heads that predict the classes of the data, with their paths."""
    for path, head in model.named_modules():
        # The heads of several stages have an index as the last part of their path.
        name = path.rstrip('.0123456789').rpartition('.')[2]
        kinds = {kind.__name__ for kind in type(head).__mro__}
        if not name.endswith('_head') or name in _NAMES_OF_OTHER_HEADS:
            continue
        if kinds.isdisjoint(_OTHER_HEADS):
            yield path, head


def _ignoring_heads(model: nn.Module) -> Iterator[tuple[str, Any, int]]:
    """Yield the path, the module and the ignored label of mmseg's class heads."""
    for path, head in class_heads(model):
        ignored = getattr(head, 'ignore_index', None)
        if ignored is not None and hasattr(head, 'num_classes'):
            yield path, head, ignored


def ignored_by_all(model: nn.Module) -> set[int] | None:
    """Return the labels that every head ignores, or None if no head ignores any."""
    labels = [{ignored} for _, _, ignored in _ignoring_heads(model)]
    return set.intersection(*labels) if labels else None


def _certain_padding(model: nn.Module, dataset: BaseDataset) -> tuple[int | None, str]:
    """Return the padding label and the path of the data preprocessor.

    The label is None unless the preprocessor is certain to pad some label maps.
    """
    # A distiller shares the student's preprocessor, so the module has two paths. The
    # longer one is its path in the config.
    parts = dict(model.named_modules(remove_duplicate=False))
    places = [path for path in parts if path.endswith('data_preprocessor')]
    place = max(places, key=len, default='')
    size = getattr(parts[place], 'size', None)
    long, short = smallest_output(transforms_of(dataset))
    if size is None or (long >= max(size) and short >= min(size)):
        return None, place
    return padding_label(parts[place]), place
