"""No connector makes a tensor on the CPU or lets the host wait for the device.

tests/losses/test_devices.py says how this is checked.
"""

import pytest
import torch
from connector_arguments import REQUIRED
from device_discipline import device_discipline
from torch import Tensor, nn

from kdtoolbox import connectors

LEVELS = (2, 4, 8, 6), (2, 4, 4, 3)
WIRES = {
    'MeanConnector': (LEVELS, LEVELS),
    'QueryMaskConnector': (((2, 5, 4),), LEVELS[:1]),
    'ResizeConnector': (LEVELS, ((2, 6, 4, 3), (2, 6, 2, 2))),
    'TokenConnector': (((2, 8 * 6 + 4 * 3, 4),), LEVELS),
}
"""The shapes on the wires of connectors that read more than maps of 4 channels."""


def build(name: str) -> nn.Module:
    return getattr(connectors, name)(**REQUIRED.get(name, {}))


@pytest.mark.parametrize('device', ['cpu', 'meta'])
@pytest.mark.parametrize('name', connectors.__all__)
def test_no_connector_waits_for_the_device(name: str, device: str) -> None:
    connector = build(name).to(device).train()
    shapes = WIRES.get(name, (LEVELS,))
    wires = [[torch.rand(level, device=device) for level in wire] for wire in shapes]
    for level in wires[0]:
        level.requires_grad_()
    with device_discipline() as found:
        levels: list[Tensor] = connector(*wires)
        torch.stack([level.sum() for level in levels]).sum().backward()
    assert not found
    assert {level.device.type for level in levels} == {device}
    assert wires[0][0].grad is not None
