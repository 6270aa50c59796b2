"""No loss makes a tensor on the CPU or lets the host wait for the device.

The losses run forward and backward under the modes of device_discipline.py: on the CPU,
and with all their settings on torch's device 'meta'. There tensors have no values, so
that whatever needs a value fails, and a tensor on the CPU is on another device.
FakeTensorMode with tensors on 'cuda' would come closer, but does not run in a build of
torch without CUDA: `PyTorch is not linked with support for cuda devices`.
"""

from contextlib import nullcontext
from dataclasses import replace
from unittest import mock

import pytest
import torch
from device_discipline import device_discipline
from sweep_cases import CASES, WAITS, Case
from sweep_runs import build, run
from sweep_scenes import USUAL, Scene, make_inputs


def step(name: str, case: Case, scene: Scene, device: str) -> list[str]:
    """Return what the modes find in a step of a loss."""
    inputs = make_inputs(scene, case.example.names).on(device)
    loss = build(name, case, scene, torch.float32).to(device)
    for key, levels in inputs.wires.items():
        for level in levels:
            level.requires_grad_(
                key.startswith('student') and level.is_floating_point()
            )
    # Autocast has no state for 'meta'.
    with (
        mock.patch('torch.autocast', return_value=nullcontext()),
        device_discipline() as found,
    ):
        torch.stack(list(run(loss, scene, inputs).values())).sum().backward()
    return found


def scenes_of(case: Case, all_settings: bool) -> list[Scene]:
    count = len(case.settings) if all_settings else 1
    # `Case.arguments` divides the variant by 3.
    return [case.prepare(replace(USUAL, variant=3 * i)) for i in range(count)]


@pytest.mark.parametrize('device', ['cpu', pytest.param('meta', marks=pytest.mark.e2e)])
@pytest.mark.parametrize('name', CASES)
def test_no_loss_waits_for_the_device(name: str, device: str) -> None:
    places, thorough = WAITS.get(name, {}), device == 'meta'
    found = [
        line
        for case in (CASES[name] if thorough else CASES[name][:1])
        for scene in scenes_of(case, thorough)
        for line in step(name, case, scene, 'cpu' if places else device)
    ]
    assert not [line for line in found if not line.startswith(tuple(places))]
    unused = [place for place in places if not any(x.startswith(place) for x in found)]
    assert not unused, f'{unused} do not wait any more'
