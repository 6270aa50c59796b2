import warnings

import pytest
import torch
from golden import waves
from pixels import LABELS, MAPS, ROWS, SMALL, samples_of, valid_pixels
from torch import Tensor

from kdtoolbox.losses.logits.kd import kd_loss
from kdtoolbox.losses.logits.normkd import NormKDLoss, normkd_loss
from kdtoolbox.testing import check_loss


def test_value_for_closed_form_inputs() -> None:
    """The expected value comes from the authors' code."""
    value = normkd_loss(*(rows.double() for rows in ROWS), tau=2.0)
    assert float(value) == pytest.approx(0.9494643, rel=1e-6)


def naive(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for pair in zip(student, teacher, strict=True):
        posteriors, stds = [], []
        for z in pair:
            mean = sum(z) / len(z)
            stds.append((sum((x - mean) ** 2 for x in z) / (len(z) - 1)).sqrt())
            exps = (z / (tau * stds[-1])).exp()
            posteriors.append(exps / exps.sum())
        for p, q in zip(*posteriors, strict=True):
            total = total + (tau * stds[1]) ** 2 * q * (q / p).log()
    return total / len(student)


@pytest.mark.parametrize('tau', [1.0, 2.0])
def test_matches_naive_loops_over_valid_pixels(tau: float) -> None:
    student, teacher = MAPS[0].double().requires_grad_(), MAPS[1].double()
    reference = student.detach().clone().requires_grad_()
    value = normkd_loss(student, teacher, tau, samples_of(LABELS))
    expected = naive(valid_pixels(reference), valid_pixels(teacher), tau)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_equals_kd_if_all_rows_have_the_same_spread() -> None:
    student, teacher = (x / x.std(1, keepdim=True) * 3 for x in ROWS)
    value = normkd_loss(student.double(), teacher.double(), tau=2.0)
    expected = kd_loss(student.double(), teacher.double(), tau=6.0)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)


def test_scale_of_the_student_does_not_change_the_loss() -> None:
    student, teacher = (rows.double() for rows in ROWS)
    scale = waves((6, 1), 0.5, 0.2).exp().double()
    value, expected = (normkd_loss(x, teacher) for x in (scale * student - 3, student))
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    assert normkd_loss(7 * student + 2, student) < 1e-12


@pytest.mark.parametrize('samples', [samples_of(torch.full_like(LABELS, 255)), []])
def test_no_valid_rows_give_zero(samples: list) -> None:
    maps = [x if samples else x[:0] for x in MAPS]
    student = maps[0].clone().requires_grad_()
    value = normkd_loss(student, maps[1], data_samples=samples)
    value.backward()
    assert value == 0
    assert not student.grad.any()


@pytest.mark.parametrize('side', [0, 1])
def test_constant_rows_give_finite_gradients(side: int) -> None:
    pair = [rows.clone() for rows in ROWS]
    pair[side][0] = 1.5
    student = pair[0].requires_grad_()
    value = normkd_loss(student, pair[1])
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_no_rows_give_zero_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert normkd_loss(ROWS[0][:0], ROWS[1][:0]) == 0


def test_keeps_the_loss_contract() -> None:
    check_loss(NormKDLoss(tau=2.0, loss_weight=3.0), *ROWS)
    check_loss(NormKDLoss(tau=1.0), *SMALL, data_samples=samples_of(LABELS))


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match='at least 3 classes'):
        normkd_loss(*(rows[:, :2] for rows in ROWS))
    with pytest.raises(ValueError, match='differ in shape'):
        normkd_loss(MAPS[0], MAPS[1][:, :, :5])
    with pytest.raises(ValueError, match='NormKDLoss: tau must be .* got 0'):
        NormKDLoss(tau=0)
