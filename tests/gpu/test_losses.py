"""Every loss on a GPU equals the loss on a CPU and does not wait for the GPU.

The inputs are those of the sweep of all losses.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from sweep_cases import CASES, WAITS, Case
from sweep_runs import build, run
from sweep_scenes import USUAL, Scene, make_inputs
from torch import Tensor, nn

pytestmark = [pytest.mark.gpu, pytest.mark.e2e]
# mmcv's NMS is for float32 alone on a GPU.
SINGLE = {'GIDLoss'}


@contextmanager
def no_waits() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def step(
    loss: nn.Module, case: Case, scene: Scene, device: str, may_wait: bool
) -> dict[str, Tensor]:
    """Return the terms of a loss and all gradients."""
    loss = copy.deepcopy(loss).to(device)
    wires = make_inputs(scene, case.example.names).on(device)
    learned = dict(loss.named_parameters())
    for key, levels in wires.wires.items():
        for index, level in enumerate(levels):
            if key.startswith('student') and level.is_floating_point():
                learned[f'{key}.{index}'] = level.requires_grad_()
    with nullcontext() if may_wait else no_waits():
        terms = run(loss, scene, wires)
        torch.stack(list(terms.values())).sum().backward()
    gradients = {key: x.grad for key, x in learned.items() if x.grad is not None}
    return {key: x.detach().cpu() for key, x in (terms | gradients).items()}


@pytest.mark.parametrize('name', CASES)
def test_every_loss_equals_that_of_a_cpu(device: str, name: str) -> None:
    dtype = torch.float32 if name in SINGLE else torch.float64
    rtol = 1e-3 if name in SINGLE else 1e-6
    for case in CASES[name]:
        scene = case.prepare(replace(USUAL, dtype=dtype))
        loss = build(name, case, scene, dtype)
        expected = step(loss, case, scene, 'cpu', may_wait=True)
        # The first call of a kernel waits until it is loaded.
        step(loss, case, scene, device, may_wait=True)
        found = step(loss, case, scene, device, may_wait=name in WAITS)
        assert found.keys() == expected.keys()
        for key, value in found.items():
            assert value.isfinite().all(), key
            if not case.random:
                # Other devices draw other numbers.
                atol = rtol * float(expected[key].abs().max())
                torch.testing.assert_close(value, expected[key], rtol=rtol, atol=atol)
