import pytest
import torch
from golden import assert_golden, load_golden, waves
from torch import Tensor

from kdtoolbox.losses.relations.pkt import PKTLoss, neighbour_divergence
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

ROWS = waves((6, 4), 0.31, 0.13), waves((6, 3), 0.19, 0.29, 0.7)
WIDE = waves((6, 8), 0.31, 0.13), waves((6, 8), 0.19, 0.29, 0.7)
MAPS = waves((2, 4, 6, 3), 0.37, 0.11), 1.3 * waves((2, 4, 6, 3), 0.23, 0.17, 0.4)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_matches_golden_values(dtype: torch.dtype) -> None:
    golden = load_golden('pkt', 'n6', dtype)
    student = golden.inputs['student'].requires_grad_()
    loss = MODELS.build(dict(type='kdtoolbox.PKTLoss', loss_weight=1.0))
    assert_golden(loss(student, golden.inputs['teacher']), [student], golden)


def test_value_for_closed_form_inputs() -> None:
    value = float(neighbour_divergence(*(rows.double() for rows in WIDE)))
    assert value == pytest.approx(0.1452959, rel=1e-6)


def naive_probabilities(rows: Tensor) -> list[list[Tensor]]:
    unit = [row / (sum(row**2) ** 0.5 + 1e-7) for row in rows]
    likely = [[(1 + sum(a * b)) / 2 for b in unit] for a in unit]
    return [[value / sum(line) for value in line] for line in likely]


def test_matches_naive_loops() -> None:
    student, teacher = ROWS[0].double().requires_grad_(), ROWS[1].double()
    reference = student.detach().clone().requires_grad_()
    expected = torch.zeros((), dtype=torch.float64)
    sides = map(naive_probabilities, (reference, teacher))
    for lines in zip(*sides, strict=True):
        for p, q in zip(*lines, strict=True):
            expected = expected + q * ((q + 1e-7).log() - (p + 1e-7).log()) / 36
    value = neighbour_divergence(student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_rotation_and_scales_of_rows_do_not_change_the_loss() -> None:
    student, teacher = (rows.double() for rows in ROWS)
    rotation, _ = torch.linalg.qr(waves((4, 4), 0.7, 0.3).double())
    moved = student @ rotation * torch.arange(1.0, 7.0)[:, None]
    value = neighbour_divergence(moved, teacher)
    expected = neighbour_divergence(student, teacher)
    # Not exact, because EPS is added to the norms.
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)


def test_equal_rows_have_almost_no_gradient() -> None:
    student = ROWS[0].double().requires_grad_()
    neighbour_divergence(student, ROWS[1].double()).backward()
    scale, student.grad = student.grad.abs().max(), None
    value = neighbour_divergence(student, student.detach())
    value.backward()
    assert value == 0
    # Not exactly 0, because EPS inside the logarithm does not cancel.
    assert student.grad.abs().max() < 1e-5 * scale


@pytest.mark.parametrize('rows', [ROWS[0][:0], ROWS[0][:1]])
def test_too_few_rows_give_zero(rows: Tensor) -> None:
    student = rows.clone().requires_grad_()
    value = neighbour_divergence(student, ROWS[1][: len(rows)])
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize('pair', [WIDE, MAPS])
def test_keeps_the_loss_contract(pair: tuple) -> None:
    check_loss(PKTLoss(grid=2), *pair, zero_at_equality=False)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match='different numbers of samples'):
        neighbour_divergence(ROWS[0], ROWS[1][:3])
