import pytest
import torch
from golden import waves
from torch import Tensor

from kdtoolbox.losses.detection.fcfd import FCFDRegressionLoss, mean_squared_deltas
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT, TEACHER = 2 * waves((6, 12), 0.9, 0.3), waves((6, 12), 0.7, 0.5, 1.0)


def naive(student: Tensor, teacher: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(student)):
        for i in range(student.shape[1]):
            total = total + (student[row, i] - teacher[row, i].double()) ** 2
    return total / (len(student) * student.shape[1])


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_naive_loops(dtype: torch.dtype) -> None:
    student = STUDENT.to(dtype, copy=True).requires_grad_()
    reference = STUDENT.double().requires_grad_()
    expected = naive(reference, TEACHER)
    expected.backward()
    loss = MODELS.build(dict(type='kdtoolbox.FCFDRegressionLoss', loss_weight=2.0))
    value = loss(student, TEACHER.to(dtype))
    value.backward()
    rtol = 1e-9 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(value.double(), 2 * expected, rtol=rtol, atol=0)
    torch.testing.assert_close(
        student.grad.double(), 2 * reference.grad, rtol=rtol, atol=1e-12
    )


def test_repeated_deltas_of_an_agnostic_head_count_once() -> None:
    value = mean_squared_deltas(STUDENT[:, :4], TEACHER[:, :4])
    repeated = (deltas[:, :4].repeat(1, 3) for deltas in (STUDENT, TEACHER))
    torch.testing.assert_close(mean_squared_deltas(*repeated), value)


def test_no_rois_give_zero() -> None:
    student = STUDENT[:0].clone().requires_grad_()
    value = mean_squared_deltas(student, TEACHER[:0])
    value.backward()
    assert value == 0
    assert student.grad.shape == (0, 12)


def test_contract() -> None:
    check_loss(FCFDRegressionLoss(loss_weight=0.5), STUDENT, TEACHER)


@pytest.mark.parametrize(
    'teacher', [TEACHER[:5], TEACHER[:, :4], TEACHER[0], TEACHER[:, :, None, None]]
)
def test_refuses_other_shapes(teacher: Tensor) -> None:
    message = r"student \(6, 12\) and teacher .*student='cross\.roi_reg'"
    with pytest.raises(ValueError, match=message):
        mean_squared_deltas(STUDENT, teacher)
