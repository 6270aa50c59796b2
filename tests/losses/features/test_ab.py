import pytest
import torch
from golden import assert_golden, load_golden, waves
from torch import Tensor

from kdtoolbox.losses.features.ab import ABLoss, activation_boundary_error
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 3, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 3, 5), 0.23, 0.17, 0.4)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden(dtype: torch.dtype) -> None:
    golden = load_golden('ab', 'margin1', dtype)
    student = golden.inputs['student'].requires_grad_()
    # The stored value includes a factor that equals our default weight.
    loss = MODELS.build(dict(type='kdtoolbox.ABLoss', margin=golden.hyper['margin']))
    assert_golden(loss(student, golden.inputs['teacher']), [student], golden)


def naive(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for s, t in zip(student.flatten(), teacher.flatten(), strict=True):
        if t > 0 and s < margin:
            total = total + (margin - s) ** 2
        if t <= 0 and s > -margin:
            total = total + (margin + s) ** 2
    return total / len(student)


@pytest.mark.parametrize('margin', [0.3, 1.0])
def test_naive_loops(margin: float) -> None:
    student, teacher = STUDENT.double().requires_grad_(), TEACHER.double()
    reference = student.detach().clone().requires_grad_()
    value = activation_boundary_error(student, teacher, margin)
    expected = naive(reference, teacher, margin)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_relu_of_the_teacher_does_not_change_the_loss() -> None:
    expected = activation_boundary_error(STUDENT, TEACHER)
    assert activation_boundary_error(STUDENT, TEACHER.relu()) == expected


def test_values_beyond_the_margin_get_no_gradient() -> None:
    student = (TEACHER.sign() * 1.5).requires_grad_()
    value = activation_boundary_error(student, TEACHER)
    value.backward()
    assert value == 0
    assert not student.grad.any()


def test_contract() -> None:
    check_loss(ABLoss(), STUDENT, TEACHER, zero_at_equality=False)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r'\(2, 4, 3, 5\).*\(2, 3, 3, 5\).*connectors'):
        activation_boundary_error(STUDENT, TEACHER[:, :3])
