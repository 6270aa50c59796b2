"""What a recipe learns from, and which pairs of models its wires exist in."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from kdtoolbox.losses.examples import Example, examples_of, loss_classes
from kdtoolbox.recipes.reading import Recipe
from kdtoolbox.recipes.templates import SPECIFIC

_PAIRS = dict(
    dense='dense head',
    two_stage='two-stage',
    detr='DETR',
    segmentor='segmentor',
    mask='Mask2Former',
)
PAIRS = tuple(_PAIRS.values())
"""All kinds of pairs, in the order in which they are shown."""

DENSE, TWO_STAGE, DETR = DETECTORS = PAIRS[:3]
LABEL_MAPS = PAIRS[3:]

LEARNED = {
    'map': 'features',
    'map of one size': 'features',
    'feature rows': 'features',
    'class logits map': 'class logits',
    'dense class logits': 'class logits',
    'dense boxes': 'boxes',
    'box distributions': 'box distributions',
    'centerness': 'centerness',
    'objectness': 'objectness',
    'RoI logits': 'class logits of RoIs',
    'RoI boxes': 'boxes of RoIs',
    'query logits': 'object queries',
    'query boxes': 'object queries',
    'mask logits': 'mask queries',
}
"""What a loss learns from, by the kind of its student's wire."""

OF_SOURCE = {
    'CrossHead': (DENSE,),
    'RoIResponses': (TWO_STAGE,),
    'BridgedRoIs': (TWO_STAGE,),
    'ObjectQueries': (DETR,),
}
"""The pairs that a source supports; sources that are not listed support any pair."""


def learned_from(recipe: Recipe) -> list[str]:
    """Return what the losses of a recipe compare, without repetitions."""
    return list(dict.fromkeys(_learned(config) for config in recipe.losses.values()))


def pairs_of(recipe: Recipe) -> set[str]:
    """Return the kinds of pairs that all losses and sources of a recipe support."""
    pairs = set(PAIRS)
    for kind in recipe.sources:
        pairs &= set(OF_SOURCE.get(kind, PAIRS))
    for config in recipe.losses.values():
        pairs &= _pairs_of_loss(config)
    return pairs


def _pairs_of_loss(config: Mapping[str, Any]) -> set[str]:
    kind = loss_classes()[config['type']]
    return set().union(*(_pairs_of_example(kind, x) for x in examples_of(kind)))


def _pairs_of_example(kind: type[nn.Module], example: Example) -> set[str]:
    pairs = set(PAIRS)
    for name in example.names.values():
        families = SPECIFIC.get(name.removesuffix(' of other queries'), _PAIRS)
        pairs &= {_PAIRS[family] for family in families}
    read = inspect.signature(kind.forward).parameters
    if 'targets' in read:
        pairs &= {DENSE}
    elif 'data_samples' in read and LEARNED[example.student] == 'features':
        # The samples of detectors have boxes, those of segmentors label maps.
        has_boxes = '.detection.' in kind.__module__
        pairs &= set(DETECTORS if has_boxes else LABEL_MAPS)
    return pairs


def _learned(config: Mapping[str, Any]) -> str:
    kind = loss_classes()[config['type']]
    if '.relations.' in kind.__module__:
        return 'relations'
    wire = config['student'].rpartition('.')[2]
    # Some losses take logits as plain maps.
    if wire in ('cls', 'logits'):
        return 'class logits'
    examples = examples_of(kind)
    same = [x for x in examples if x.kinds['student'].wire == wire]
    return LEARNED[[*same, *examples][0].student]
