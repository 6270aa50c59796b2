import math
from typing import Any

import pytest
import torch
from golden import assert_golden, load_golden, waves
from torch import Tensor

from kdtoolbox.losses.logits.class_logits import check_labels
from kdtoolbox.losses.logits.kd import KDLoss, kd_loss
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

ROWS = waves((6, 5), 0.9, 0.3), 2 * waves((6, 5), 0.7, 0.5, 1.0)
MAPS = waves((2, 4, 6, 5), 0.37, 0.11), 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('case', ['pixel_tau1', 'pixel_tau4'])
def test_matches_golden_values(case: str, dtype: torch.dtype) -> None:
    golden = load_golden('kd', case, dtype)
    student = golden.inputs['student'].requires_grad_()
    loss = MODELS.build(dict(type='kdtoolbox.KDLoss', tau=golden.hyper['tau']))
    assert_golden(loss(student, golden.inputs['teacher']), [student], golden)


def test_value_for_closed_form_inputs() -> None:
    rows, maps = ([x.double() for x in pair] for pair in (ROWS, MAPS))
    assert float(kd_loss(*rows, tau=4.0)) == pytest.approx(0.7925094, rel=1e-6)
    assert float(kd_loss(*maps)) == pytest.approx(0.5275829, rel=1e-6)


def naive(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for s, t in zip(student, teacher, strict=True):
        s, t = (s / tau).exp(), (t / tau).exp()
        for p, q in zip(s / s.sum(), t / t.sum(), strict=True):
            total = total + q * (q / p).log()
    return tau**2 * total / len(student)


@pytest.mark.parametrize('tau', [0.5, 1.0, 4.0])
def test_matches_naive_loops(tau: float) -> None:
    student, teacher = ROWS[0].double().requires_grad_(), ROWS[1].double()
    reference = student.detach().clone().requires_grad_()
    value, expected = kd_loss(student, teacher, tau), naive(reference, teacher, tau)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_pixels_of_maps_are_treated_as_rows() -> None:
    rows = [maps.double().permute(0, 2, 3, 1).reshape(-1, 4) for maps in MAPS]
    value = kd_loss(*(maps.double() for maps in MAPS), tau=2.0)
    torch.testing.assert_close(value, kd_loss(*rows, tau=2.0), rtol=1e-12, atol=0)


def test_shift_of_a_row_does_not_change_the_loss() -> None:
    student, teacher = (rows.double() for rows in ROWS)
    moved = student + waves((6, 1), 0.5, 0.2).double(), teacher - 7
    torch.testing.assert_close(
        kd_loss(*moved), kd_loss(student, teacher), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize('shape', [(0, 5), (0, 5, 3, 2)])
def test_no_rows_give_zero(shape: tuple) -> None:
    student = torch.zeros(shape, requires_grad=True)
    value = kd_loss(student, torch.zeros(shape))
    value.backward()
    assert value == 0
    assert student.grad.shape == shape


def test_saturated_softmax_gives_finite_values() -> None:
    student = torch.tensor([[300.0, -300.0, 0.0]], requires_grad=True)
    value = kd_loss(student, -student.detach())
    value.backward()
    assert value.item() == pytest.approx(600.0)
    torch.testing.assert_close(student.grad, torch.tensor([[1.0, -1.0, 0.0]]))


@pytest.mark.parametrize('pair', [ROWS, [maps[:, :, :3, :2] for maps in MAPS]])
def test_keeps_the_loss_contract(pair: Any) -> None:
    check_loss(KDLoss(tau=2.0, loss_weight=3.0), *pair)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r'rows \(R, K\) or maps .*student \(5,\)'):
        kd_loss(torch.zeros(5), torch.zeros(5))
    with pytest.raises(ValueError, match=r'\(6, 5\).*\(4, 5\) differ.*RoIResponses'):
        kd_loss(ROWS[0], ROWS[1][:4])
    with pytest.raises(ValueError, match=r'\(6, 5\).*\(6, 4\) differ.*`num_classes`'):
        kd_loss(ROWS[0], ROWS[1][:, :4])
    with pytest.raises(ValueError, match='at least 2 classes.*use_sigmoid=True'):
        kd_loss(*(rows[:, :1] for rows in ROWS))
    for tau in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match=rf'KDLoss: tau .* got {tau}'):
            KDLoss(tau=tau)
    for labels in (torch.zeros(5).long(), torch.zeros(6), torch.zeros(6, 1).long()):
        with pytest.raises(ValueError, match=r"shape \(6,\).*labels='roi\.labels'"):
            check_labels(labels, 6)
