import math
from typing import Any

import pytest
import torch
from golden import assert_golden, load_golden, waves
from torch import Tensor

from kdtoolbox.connectors.regressor import RegressorConnector
from kdtoolbox.losses.features.vid import gaussian_code_length
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 3, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 3, 5), 0.23, 0.17, 0.4)
VARIANCE = torch.tensor([0.1, 0.5, 1.0, 7.0])


def build(channels: int = 4, **changes: Any) -> Any:
    return MODELS.build(dict(type='kdtoolbox.VIDLoss', channels=channels) | changes)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden(dtype: torch.dtype) -> None:
    golden = load_golden('vid', 'basic', dtype)
    hyper, params = golden.hyper, golden.params
    student = golden.inputs['student'].requires_grad_()
    loss = build(hyper['teacher_channels'], init_variance=hyper['init_pred_var'])
    loss = loss.to(dtype)
    stored = params.pop('log_scale')
    loss.scales.data[0] = stored
    connector = RegressorConnector(hyper['student_channels'], len(stored)).to(dtype)
    connector.layers.load_state_dict(params)
    [mean] = connector([student])
    assert_golden(loss(mean, golden.inputs['teacher'], 0), [student], golden)


def naive(mean: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for student_map, teacher_map in zip(mean, teacher, strict=True):
        for s, t, v in zip(student_map, teacher_map, variance, strict=True):
            for x, y in zip(s.flatten(), t.flatten(), strict=True):
                total = total + ((y - x) ** 2 / v + v.log()) / 2
    return total / mean.numel()


def test_naive_loops() -> None:
    results = []
    for compute in (gaussian_code_length, naive):
        inputs = STUDENT.double(), VARIANCE.double()
        mean, variance = (x.clone().requires_grad_() for x in inputs)
        value = compute(mean, TEACHER.double(), variance)
        value.backward()
        results.append((value, mean.grad, variance.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_variances_start_at_init_variance() -> None:
    torch.testing.assert_close(build().variances(0), torch.full((4,), 5.0))


def test_each_level_has_its_own_variances() -> None:
    loss = build(num_levels=2)
    loss(STUDENT, TEACHER, 1).backward()
    assert not loss.scales.grad[0].any()
    assert loss.scales.grad[1].all()


def test_training_moves_the_variances_to_the_mean_squared_error() -> None:
    loss = build()
    optimizer = torch.optim.SGD(loss.parameters(), lr=5.0)
    for _ in range(300):
        optimizer.zero_grad()
        loss(STUDENT, TEACHER, 0).backward()
        optimizer.step()
    expected = (STUDENT - TEACHER).square().mean((0, 2, 3))
    torch.testing.assert_close(loss.variances(0), expected, rtol=1e-2, atol=0)


def test_small_variance_and_exact_prediction_give_a_negative_loss() -> None:
    value = build(init_variance=0.01)(TEACHER, TEACHER, 0).item()
    assert value == pytest.approx(math.log(0.01) / 2, rel=1e-4)


def test_contract() -> None:
    check_loss(build(), STUDENT, TEACHER, zero_at_equality=False, level=0)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r'channels=3, num_levels=1 .*set channels=4'):
        build(3)(STUDENT, TEACHER, 0)
    with pytest.raises(ValueError, match='at level 1; .*num_levels'):
        build()(STUDENT, TEACHER, 1)
