"""The examples of the losses fit their `forward`; test_sweep.py runs them."""

import pytest

from kdtoolbox.distillers.wiring import build_section, loss_wires
from kdtoolbox.losses.examples import KINDS, Example, Sizes, examples_of, loss_classes

LOSSES = loss_classes()


@pytest.mark.parametrize('name', LOSSES)
def test_every_loss_is_built_by_the_arguments_and_wires_of_its_examples(
    name: str,
) -> None:
    for example in examples_of(LOSSES[name]):
        assert set(example.names) <= set(loss_wires(LOSSES[name]))
        entry = dict(example.arguments(Sizes()), type=name, **example.names)
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
    with pytest.raises(ValueError, match=r"teacher_cls='logits' is not a kind of wire"):
        Example(wires=dict(teacher_cls='logits'))
