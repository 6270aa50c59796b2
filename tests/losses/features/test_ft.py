from typing import Any

import pytest
import torch
from golden import assert_golden, load_golden, waves
from torch import Tensor

from kdtoolbox.losses.features.ft import factor_distance
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 2, 3, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 3, 5), 0.23, 0.17, 0.4)


def build(**changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = dict(teacher_channels=4, factor_channels=2)
    return MODELS.build(dict(type='kdtoolbox.FTLoss', **sizes) | changes)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden(dtype: torch.dtype) -> None:
    golden = load_golden('ft', 'l1', dtype)
    student = golden.inputs['student'].requires_grad_()
    assert_golden(factor_distance(student, golden.inputs['teacher']), [student], golden)


def naive(student: Tensor, teacher: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for student_map, teacher_map in zip(student, teacher, strict=True):
        norms = [
            sum(v**2 for v in x.flatten()) ** 0.5 for x in (student_map, teacher_map)
        ]
        for s, t in zip(student_map.flatten(), teacher_map.flatten(), strict=True):
            total = total + (s / norms[0] - t / norms[1]).abs()
    return total / student.numel()


def test_naive_loops() -> None:
    student, teacher = STUDENT.double().requires_grad_(), TEACHER[:, :2].double()
    reference = student.detach().clone().requires_grad_()
    value, expected = factor_distance(student, teacher), naive(reference, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_factor_term_trains_the_student_and_reconstruction_the_paraphraser() -> None:
    loss = build(reconstruction_weight=0.5, loss_weight=2.0)
    student = STUDENT.clone().requires_grad_()
    terms = loss(student, TEACHER)
    factor, again = loss.paraphraser(TEACHER)
    torch.testing.assert_close(terms['factor'], 2 * factor_distance(student, factor))
    error = (again - TEACHER).square().mean()
    torch.testing.assert_close(terms['reconstruction'], error)
    weights = list(loss.paraphraser.parameters())
    terms['factor'].backward(retain_graph=True)
    assert student.grad.any()
    assert all(weight.grad is None for weight in weights)
    student.grad = None
    terms['reconstruction'].backward()
    assert student.grad is None
    assert all(weight.grad is not None for weight in weights)


def test_reconstruction_term_reduces_the_reconstruction_error() -> None:
    loss = build(loss_weight=1.0, reconstruction_weight=1.0)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.3)
    errors = []
    for _ in range(8):
        error = loss(STUDENT, TEACHER)['reconstruction']
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.9 * errors[0]


def test_scale_of_the_factors_does_not_change_the_loss() -> None:
    pair = STUDENT.double(), TEACHER[:, :2].double()
    scaled = factor_distance(3 * pair[0], 0.2 * pair[1])
    torch.testing.assert_close(scaled, factor_distance(*pair), rtol=1e-12, atol=0)


def test_contract() -> None:
    check_loss(build(loss_weight=3.0), STUDENT, TEACHER, zero_at_equality=False)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r'factors of 2 .*got 4 and 4.*out_channels=2'):
        build()(TEACHER, TEACHER)
    with pytest.raises(ValueError, match='differ in shape'):
        build()(STUDENT[..., :3], TEACHER)
