from typing import Any

import pytest
import torch

from kdtoolbox.connectors import MeanConnector
from kdtoolbox.distillers.building import build_section, connector_wires

MAPS = [torch.randn(2, 3, size, size) for size in (4, 2)]


def test_one_wire_stays_as_it_is() -> None:
    for level, goal in zip(MeanConnector()(MAPS), MAPS, strict=True):
        torch.testing.assert_close(level, goal)


def test_weights_count_by_their_share() -> None:
    doubled = [2 * level for level in MAPS]
    found = MeanConnector(weights=[30, 10])(MAPS, doubled)
    for level, goal in zip(found, MAPS, strict=True):
        torch.testing.assert_close(level, 1.25 * goal)


def test_gradients_reach_every_wire_by_its_share() -> None:
    wires = [[torch.zeros(1, 1, 2, 2, requires_grad=True)] for _ in range(2)]
    MeanConnector(weights=[1, 3])(*wires)[0].sum().backward()
    assert [wire[0].grad.unique().item() for wire in wires] == [0.25, 0.75]


@pytest.mark.parametrize('weights', [[-1, 2], [0, 0], [], 2, '12', ['1', '2']])
def test_weights_without_a_mean_are_refused(weights: Any) -> None:
    with pytest.raises(ValueError, match='at least 0 and not all 0'):
        MeanConnector(weights=weights)


def test_another_number_of_weights_is_refused() -> None:
    with pytest.raises(ValueError, match='2 wires and 3 weights'):
        MeanConnector(weights=[1, 1, 1])(MAPS, MAPS)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match='bring them to one shape'):
        MeanConnector()(MAPS, MAPS[:1])


def test_a_config_lists_the_wires() -> None:
    config = dict(type='MeanConnector', input=['a.fpn', 'b.fpn'])
    _, wires = build_section(dict(mean=config), 'model.connectors', connector_wires)
    assert wires == dict(mean={'input[0]': 'a.fpn', 'input[1]': 'b.fpn'})


@pytest.mark.parametrize('value', [[], ['a.fpn', 3], 3])
def test_what_names_no_wire_is_refused(value: object) -> None:
    config = dict(type='MeanConnector', input=value)
    with pytest.raises(ValueError, match=r'connectors\.mean\.input: expected the name'):
        build_section(dict(mean=config), 'model.connectors', connector_wires)


def test_other_connectors_take_one_wire() -> None:
    config = dict(type='NormConnector', input=['a.fpn', 'b.fpn'])
    with pytest.raises(ValueError, match=r'connectors\.norm\.input: expected the name'):
        build_section(dict(norm=config), 'model.connectors', connector_wires)
