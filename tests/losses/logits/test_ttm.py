import pytest
import torch
from pixels import LABELS, MAPS, ROWS, SMALL, samples_of, valid_pixels
from torch import Tensor

from kdtoolbox.losses.logits.ttm import TTMLoss, ttm_loss
from kdtoolbox.testing import check_loss

for_both = pytest.mark.parametrize('weighted', [False, True])


@pytest.mark.parametrize(('weighted', 'value'), [(False, 0.1495668), (True, 0.6080307)])
def test_value_for_closed_form_inputs(weighted: bool, value: float) -> None:
    """The expected values come from the authors' code."""
    rows = [rows.double() for rows in ROWS]
    assert float(ttm_loss(*rows, 10.0, weighted)) == pytest.approx(value, rel=1e-6)


def naive(student: Tensor, teacher: Tensor, tau: float, weighted: bool) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for s, t in zip(student, teacher, strict=True):
        student_p, teacher_p = s.exp() / s.exp().sum(), t.exp() / t.exp().sum()
        powers = [p ** (1 / tau) for p in teacher_p]
        weight = sum(powers) if weighted else 1.0
        for p, power in zip(student_p, powers, strict=True):
            q = power / sum(powers)
            total = total + weight * q * (q / p).log()
    return total / len(student)


@for_both
def test_matches_naive_loops_over_valid_pixels(weighted: bool) -> None:
    student, teacher = MAPS[0].double().requires_grad_(), MAPS[1].double()
    reference = student.detach().clone().requires_grad_()
    value = ttm_loss(student, teacher, 3.0, weighted, samples_of(LABELS))
    expected = naive(valid_pixels(reference), valid_pixels(teacher), 3.0, weighted)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


@for_both
def test_sigmoid_treats_each_class_as_binary(weighted: bool) -> None:
    student, teacher = (maps.double() for maps in MAPS)
    value = ttm_loss(student, teacher, 3.0, weighted, use_sigmoid=True)
    s, t = student.sigmoid(), teacher.sigmoid()
    yes, no = t ** (1 / 3), (1 - t) ** (1 / 3)
    q = yes / (yes + no)
    expected = q * (q / s).log() + (1 - q) * ((1 - q) / (1 - s)).log()
    expected = expected * (yes + no) if weighted else expected
    torch.testing.assert_close(value, expected.mean())


@for_both
def test_loss_is_minimal_at_the_softened_teacher(weighted: bool) -> None:
    student = (ROWS[1] / 4).double().requires_grad_()
    value = ttm_loss(student, ROWS[1].double(), 4.0, weighted)
    value.backward()
    assert value.abs() < 1e-12
    assert student.grad.abs().max() < 1e-12


def test_less_certain_teacher_gets_more_weight() -> None:
    teacher = torch.tensor([[8.0, 0.0, 0.0], [0.5, 0.0, 0.0]])
    student = teacher / 10 + torch.tensor([[1.0, 0.0, 0.0]])
    ratios = [
        ttm_loss(s[None], t[None], weighted=True) / ttm_loss(s[None], t[None])
        for s, t in zip(student, teacher, strict=True)
    ]
    assert ratios[1] > ratios[0] > 1


@pytest.mark.parametrize('samples', [samples_of(torch.full_like(LABELS, 255)), []])
def test_no_valid_rows_give_zero(samples: list) -> None:
    maps = [x if samples else x[:0] for x in MAPS]
    student = maps[0].clone().requires_grad_()
    value = ttm_loss(student, maps[1], weighted=True, data_samples=samples)
    value.backward()
    assert value == 0
    assert not student.grad.any()


def test_keeps_the_loss_contract() -> None:
    # The student has no temperature, so that equal logits do not give 0.
    loss = TTMLoss(tau=4.0, weighted=True, loss_weight=3.0)
    check_loss(loss, *ROWS, zero_at_equality=False)
    loss, samples = TTMLoss(tau=4.0, use_sigmoid=True), samples_of(LABELS)
    check_loss(loss, *SMALL, zero_at_equality=False, data_samples=samples)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match='at least 2 classes'):
        ttm_loss(*(rows[:, :1] for rows in ROWS))
    with pytest.raises(ValueError, match='differ in shape'):
        ttm_loss(MAPS[0], MAPS[1][:, :, :5])
    with pytest.raises(ValueError, match='TTMLoss: tau must be .* got 0'):
        TTMLoss(tau=0)
