import pytest
import torch
from golden import assert_golden, load_golden, waves
from torch import Tensor

from kdtoolbox.losses import PKDLoss, pkd_loss
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('case', ['single_level', 'three_levels_w6'])
def test_golden(case: str, dtype: torch.dtype) -> None:
    golden = load_golden('pkd', case, dtype)
    students = [level.requires_grad_() for level in golden.inputs['student']]
    weight = golden.hyper['loss_weight']
    loss = MODELS.build(dict(type='kdtoolbox.PKDLoss', loss_weight=weight))
    levels = list(map(loss, students, golden.inputs['teacher']))
    assert_golden(torch.stack(levels).sum(), students, golden)


def test_closed_form_inputs() -> None:
    value = float(PKDLoss()(STUDENT.double(), TEACHER.double()))
    assert value == pytest.approx(0.9373094, rel=1e-6)


def naive(student: Tensor, teacher: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for c in range(student.shape[1]):
        s, t = student[:, c].double(), teacher[:, c].double()
        s, t = (s - s.mean()) / (s.std() + 1e-6), (t - t.mean()) / (t.std() + 1e-6)
        for x, y in zip(s.flatten(), t.flatten(), strict=True):
            total = total + (x - y) ** 2 / 2
    return total / student.numel()


# With a mean of 100, a sum of squares in float32 would be inaccurate.
@pytest.mark.parametrize('mean', [0.0, 100.0])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_naive_loops(dtype: torch.dtype, mean: float) -> None:
    student = (STUDENT + mean).to(dtype).requires_grad_()
    reference = student.detach().double().requires_grad_()
    teacher = (TEACHER - mean).to(dtype)
    expected = naive(reference, teacher)
    expected.backward()
    value = pkd_loss(student, teacher)
    value.backward()
    rtol = 1e-9 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=0)
    atol = rtol * float(reference.grad.abs().max())
    torch.testing.assert_close(student.grad.double(), reference.grad, rtol=0, atol=atol)


def test_shift_and_positive_scale_of_a_channel_do_not_change_the_loss() -> None:
    student, teacher = STUDENT.double(), TEACHER.double()
    mapped = torch.tensor([0.5, 1.0, 3.0, 20.0]).reshape(4, 1, 1) * student + 7
    expected = pkd_loss(student, teacher)
    torch.testing.assert_close(pkd_loss(mapped, teacher), expected, rtol=1e-5, atol=0)


def test_one_value_per_channel_gives_exactly_zero() -> None:
    student = STUDENT[:1, :, :1, :1].clone().requires_grad_()
    value = pkd_loss(student, TEACHER[:1, :, :1, :1])
    value.backward()
    assert value == 0
    assert not student.grad.any()


def test_constant_channel_counts_as_zeros() -> None:
    student = STUDENT.double()
    student[:, 0] = 3.0
    student.requires_grad_()
    value = pkd_loss(student, TEACHER)
    value.backward()
    torch.testing.assert_close(value, naive(student, TEACHER), rtol=1e-9, atol=0)
    assert student.grad.isfinite().all()


def test_contract() -> None:
    check_loss(PKDLoss(loss_weight=6.0), STUDENT, TEACHER)


def test_different_shapes_raise() -> None:
    with pytest.raises(ValueError, match=r'\(2, 4, 6, 5\).*\(2, 3, 6, 5\).*connectors'):
        pkd_loss(STUDENT, TEACHER[:, :3])
    with pytest.raises(ValueError, match=r'expected maps of shape \(N, C, H, W\)'):
        pkd_loss(STUDENT[0], TEACHER[0])
