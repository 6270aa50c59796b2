import warnings

import pytest
import torch
from golden import assert_golden, load_golden, waves
from pixels import LABELS, MAPS, ROWS, SMALL, samples_of, valid_pixels
from torch import Tensor

from kdtoolbox.losses.logits.lskd import LSKDLoss, lskd_loss
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_matches_golden_values(dtype: torch.dtype) -> None:
    golden = load_golden('lskd', 'kd_tau2', dtype)
    student = golden.inputs['student'].requires_grad_()
    loss = MODELS.build(dict(type='kdtoolbox.LSKDLoss', tau=golden.hyper['tau']))
    assert_golden(loss(student, golden.inputs['teacher']), [student], golden)


def test_value_for_closed_form_inputs() -> None:
    value = lskd_loss(*(rows.double() for rows in ROWS), tau=2.0)
    assert float(value) == pytest.approx(0.8537934, rel=1e-6)


def naive(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for pair in zip(student, teacher, strict=True):
        posteriors = []
        for z in pair:
            mean = sum(z) / len(z)
            std = (sum((x - mean) ** 2 for x in z) / (len(z) - 1)).sqrt()
            exps = ((z - mean) / (std + 1e-7) / tau).exp()
            posteriors.append(exps / exps.sum())
        for p, q in zip(*posteriors, strict=True):
            total = total + q * (q / p).log()
    return tau**2 * total / len(student)


@pytest.mark.parametrize('tau', [1.0, 2.0])
def test_matches_naive_loops_over_valid_pixels(tau: float) -> None:
    student, teacher = MAPS[0].double().requires_grad_(), MAPS[1].double()
    reference = student.detach().clone().requires_grad_()
    value = lskd_loss(student, teacher, tau, samples_of(LABELS))
    expected = naive(valid_pixels(reference), valid_pixels(teacher), tau)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_scale_and_shift_of_a_row_do_not_change_the_loss() -> None:
    student, teacher = (rows.double() for rows in ROWS)
    scale, shift = waves((6, 1), 0.5, 0.2).exp(), waves((6, 1), 0.8, 0.1)
    value = lskd_loss(scale.double() * student + shift.double(), 5 * teacher - 1)
    torch.testing.assert_close(value, lskd_loss(*ROWS).double(), rtol=1e-5, atol=0)
    assert lskd_loss(7 * student + 2, student) < 1e-12


@pytest.mark.parametrize('samples', [samples_of(torch.full_like(LABELS, 255)), []])
def test_no_valid_rows_give_zero(samples: list) -> None:
    maps = [x if samples else x[:0] for x in MAPS]
    student = maps[0].clone().requires_grad_()
    value = lskd_loss(student, maps[1], data_samples=samples)
    value.backward()
    assert value == 0
    assert not student.grad.any()


def test_constant_rows_give_finite_gradients() -> None:
    student = torch.zeros(2, 5, requires_grad=True)
    value = lskd_loss(student, ROWS[1][:2])
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_no_rows_give_zero_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert lskd_loss(ROWS[0][:0], ROWS[1][:0]) == 0


def test_keeps_the_loss_contract() -> None:
    check_loss(LSKDLoss(tau=2.0, loss_weight=3.0), *ROWS)
    check_loss(LSKDLoss(tau=1.0), *SMALL, data_samples=samples_of(LABELS))


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match='at least 3 classes'):
        lskd_loss(*(rows[:, :2] for rows in ROWS))
    with pytest.raises(ValueError, match='differ in shape'):
        lskd_loss(MAPS[0], MAPS[1][:, :, :5])
    with pytest.raises(ValueError, match='LSKDLoss: tau must be .* got 0'):
        LSKDLoss(tau=0)
