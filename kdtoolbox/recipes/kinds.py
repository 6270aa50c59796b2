"""What a recipe learns from, and which pairs of models its wires exist in."""

from collections.abc import Mapping
from typing import Any

from kdtoolbox.losses.examples import examples_of, loss_classes
from kdtoolbox.recipes.reading import Recipe
from kdtoolbox.recipes.templates import families_of

PAIR_OF = dict(
    dense='dense head',
    two_stage='two-stage',
    detr='DETR',
    segmentor='segmentor',
    mask='Mask2Former',
)
"""How a family of models is shown; other detectors are not."""
PAIRS = tuple(PAIR_OF.values())
"""All kinds of pairs, in the order in which they are shown."""

DENSE, TWO_STAGE, DETR = DETECTORS = PAIRS[:3]
SEGMENTOR = PAIRS[3]

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
    'PreActivations': (SEGMENTOR,),
    'ClassifierWeights': (SEGMENTOR,),
}
"""The pairs for which a source makes a recipe; others, for any pair."""


def learned_from(recipe: Recipe) -> list[str]:
    """Return what the losses of a recipe compare, without repetitions."""
    return list(dict.fromkeys(_learned(config) for config in recipe.losses.values()))


def pairs_of(recipe: Recipe) -> set[str]:
    """Return the kinds of pairs that all losses and sources of a recipe support."""
    pairs = set(PAIRS)
    for kind in recipe.sources:
        pairs &= set(OF_SOURCE.get(kind, PAIRS))
    for config in recipe.losses.values():
        pairs &= {PAIR_OF[name] for name in families_of(config) if name in PAIR_OF}
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
