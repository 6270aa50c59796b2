"""The examples of the losses fit their `forward`; test_sweep.py runs them."""

import pytest

from kdtoolbox import losses
from kdtoolbox.distillers.wiring import build_section, loss_wires
from kdtoolbox.losses.examples import KINDS, Example, Sizes, examples_of

SIZES = Sizes(
    images=2,
    levels=((6, 5), (3, 3)),
    channels=4,
    teacher_channels=3,
    classes=3,
    anchors=2,
    bins=3,
    rows=5,
    queries=4,
    teacher_queries=3,
)
LOSSES = {
    name: kind
    for name, kind in vars(losses).items()
    if name in losses.__all__ and isinstance(kind, type)
}


@pytest.mark.parametrize('name', LOSSES)
def test_every_loss_is_built_by_the_arguments_and_wires_of_its_examples(
    name: str,
) -> None:
    for example in examples_of(LOSSES[name]):
        assert set(example.names) <= set(loss_wires(LOSSES[name]))
        entry = dict(example.arguments(SIZES), type=name, **example.names)
        # This raises an error for a required wire that is missing.
        modules, wires = build_section(dict(loss=entry), 'losses', loss_wires)
        assert type(modules['loss']) is LOSSES[name]
        assert wires['loss'] == example.names


def test_every_kind_of_wire_is_used() -> None:
    used = {
        kind
        for loss in LOSSES.values()
        for example in examples_of(loss)
        for kind in example.names.values()
    }
    assert used == KINDS.keys()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"teacher_cls='logits' is no kind of wire"):
        Example(wires=dict(teacher_cls='logits'))
