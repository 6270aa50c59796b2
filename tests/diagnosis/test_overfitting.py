from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdtoolbox.diagnosis.overfitting import overfit

# Models are trained and evaluated.
pytestmark = pytest.mark.e2e


@pytest.fixture(scope='module')
def distiller(toy: SimpleNamespace) -> Any:
    torch.manual_seed(0)
    model = toy.build_distiller(toy.gfl(), toy.gfl())
    model.init_weights()
    return model


def test_losses_fall_and_the_model_stays_untouched(
    distiller: Any, toy: SimpleNamespace
) -> None:
    before = deepcopy(distiller.state_dict())
    found = overfit(distiller, toy.det_data(), steps=16)
    assert list(found) == ['task', 'loss_cwd']
    assert all(len(values) == 16 for values in found.values())
    assert all(values[-1] < 0.98 * values[0] for values in found.values())
    after = distiller.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not distiller.observers
    assert all(p.grad is None for p in distiller.parameters())


def test_two_calls_give_the_same_numbers(distiller: Any, toy: SimpleNamespace) -> None:
    first, second = (overfit(distiller, toy.det_data(), 2) for _ in range(2))
    assert first == second


def test_a_frozen_neck_keeps_its_loss(distiller: Any, toy: SimpleNamespace) -> None:
    frozen = deepcopy(distiller)
    # A copy of the records may need gradients although no weight before it moves.
    for part in (frozen.student.backbone, frozen.student.neck):
        part.requires_grad_(False)
    frozen.student.neck.fpn_convs[0].conv.bias.requires_grad_(True)
    frozen.recorders['student']['fpn'] = 'neck.fpn_convs[0]'
    frozen.recorders['teacher']['fpn'] = 'neck.fpn_convs[0]'
    found = overfit(frozen, toy.det_data(), steps=4)
    # CWD compares softmax maps of each channel, which ignore a bias.
    assert found['loss_cwd'][-1] == pytest.approx(found['loss_cwd'][0], rel=1e-3)
