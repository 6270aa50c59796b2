import math

import pytest
import torch
from golden import waves
from pixels import LABELS, MAPS, ROWS, SMALL, samples_of, valid_pixels
from torch import Tensor

from kdtoolbox.losses.logits.lskd import lskd_loss
from kdtoolbox.losses.logits.spherical import SphericalKDLoss, spherical_kd_loss
from kdtoolbox.testing import check_loss


def naive(student: Tensor, teacher: Tensor, radius: float, tau: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for pair in zip(student, teacher, strict=True):
        posteriors = []
        for z in pair:
            mean = sum(z) / len(z)
            variance = sum((x - mean) ** 2 for x in z) / len(z)
            exps = (radius * (z - mean) / (variance + 1e-7).sqrt() / tau).exp()
            posteriors.append(exps / exps.sum())
        for p, q in zip(*posteriors, strict=True):
            total = total + q * (q / p).log()
    return tau**2 * total / len(student)


@pytest.mark.parametrize(('radius', 'tau'), [(2.0, 4.0), (3.0, 1.0)])
def test_matches_naive_loops_over_valid_pixels(radius: float, tau: float) -> None:
    student, teacher = MAPS[0].double().requires_grad_(), MAPS[1].double()
    reference = student.detach().clone().requires_grad_()
    value = spherical_kd_loss(student, teacher, radius, tau, samples_of(LABELS))
    expected = naive(valid_pixels(reference), valid_pixels(teacher), radius, tau)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_equals_lskd_at_another_temperature() -> None:
    student, teacher = (rows.double() for rows in ROWS)
    # The standard deviation of LSKD has the divisor K - 1.
    stretch = 2.0 * math.sqrt(5 / 4)
    value = spherical_kd_loss(student, teacher, radius=2.0, tau=4.0)
    expected = stretch**2 * lskd_loss(student, teacher, tau=4.0 / stretch)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)


def test_scale_and_shift_of_a_row_do_not_change_the_loss() -> None:
    student, teacher = (rows.double() for rows in ROWS)
    scale = waves((6, 1), 0.5, 0.2).exp().double()
    value = spherical_kd_loss(scale * student - 3, teacher + 1)
    expected = spherical_kd_loss(student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    assert spherical_kd_loss(7 * student + 2, student) < 1e-12


@pytest.mark.parametrize('samples', [samples_of(torch.full_like(LABELS, 255)), []])
def test_no_valid_rows_give_zero(samples: list) -> None:
    maps = [x if samples else x[:0] for x in MAPS]
    student = maps[0].clone().requires_grad_()
    value = spherical_kd_loss(student, maps[1], data_samples=samples)
    value.backward()
    assert value == 0
    assert not student.grad.any()


def test_constant_rows_give_finite_gradients() -> None:
    student = torch.zeros(2, 5, requires_grad=True)
    value = spherical_kd_loss(student, ROWS[1][:2])
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_keeps_the_loss_contract() -> None:
    check_loss(SphericalKDLoss(loss_weight=3.0), *ROWS)
    check_loss(SphericalKDLoss(radius=3.0), *SMALL, data_samples=samples_of(LABELS))


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match='at least 3 classes'):
        spherical_kd_loss(*(rows[:, :2] for rows in ROWS))
    with pytest.raises(ValueError, match='differ in shape'):
        spherical_kd_loss(MAPS[0], MAPS[1][:, :, :5])
    with pytest.raises(ValueError, match='SphericalKDLoss: tau must be .* got 0'):
        SphericalKDLoss(tau=0)
    with pytest.raises(ValueError, match='SphericalKDLoss: radius must be .* got -2'):
        SphericalKDLoss(radius=-2)
