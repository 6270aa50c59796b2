from types import SimpleNamespace

import pytest
import torch
from golden import TOLERANCES, assert_golden, load_golden, waves
from pixels import LABELS as PIXELS
from pixels import MAPS, SMALL, samples_of, valid_pixels
from torch import Tensor

from kdtoolbox.losses.logits.dkd import DKDLoss, dkd_loss
from kdtoolbox.losses.logits.kd import kd_loss
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((6, 5), 0.9, 0.3)
TEACHER = 2 * waves((6, 5), 0.7, 0.5, 1.0)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('case', ['a1_b8_t4', 'a0p5_b2_t1'])
def test_matches_golden_values(case: str, dtype: torch.dtype) -> None:
    golden = load_golden('dkd', case, dtype)
    student = golden.inputs['student'].requires_grad_()
    others = golden.inputs['teacher'], golden.inputs['labels']
    weights = dict(
        target_weight=golden.hyper['alpha'], non_target_weight=golden.hyper['beta']
    )
    tau = golden.hyper['tau']
    rtol = TOLERANCES[dtype][0]
    for name, pair in dict(tckd=(1.0, 0.0), nckd=(0.0, 1.0)).items():
        term = dkd_loss(student.detach(), *others, *pair, tau=tau)
        expected = float(golden.outputs[name])
        # A small term is a difference of up to 20 logarithms close to 1.
        atol = 20 * torch.finfo(dtype).eps
        assert float(term) == pytest.approx(expected, rel=rtol, abs=atol)
    loss = MODELS.build(dict(type='kdtoolbox.DKDLoss', tau=tau, **weights))
    assert_golden(loss(student, *others), [student], golden)


def test_value_for_closed_form_inputs() -> None:
    logits = STUDENT.double(), TEACHER.double()
    value = dkd_loss(*logits, LABELS, 1.0, 8.0, tau=4.0)
    assert value.item() == pytest.approx(6.600631, rel=1e-6)


def naive(student: Tensor, teacher: Tensor, tau: float, beta: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for row, label in enumerate(LABELS.tolist()):
        sides = []
        for logits in (teacher[row], student[row]):
            p = (logits / tau).exp() / (logits / tau).exp().sum()
            rest = [p[k] for k in range(len(p)) if k != label]
            q = [x / sum(rest) for x in rest]
            sides.append(([p[label], 1 - p[label]], q))
        for factor, teacher_p, student_p in zip((1.0, beta), *sides, strict=True):
            for t, s in zip(teacher_p, student_p, strict=True):
                total = total + factor * t * (t / s).log()
    return tau**2 * total / len(student)


@pytest.mark.parametrize('tau', [1.0, 3.0])
def test_matches_naive_loops(tau: float) -> None:
    student, teacher = STUDENT.double().requires_grad_(), TEACHER.double()
    reference = student.detach().clone().requires_grad_()
    value = dkd_loss(student, teacher, LABELS, non_target_weight=0.25, tau=tau)
    expected = naive(reference, teacher, tau, beta=0.25)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_equals_kd_if_the_weight_is_the_uncertainty_of_the_teacher() -> None:
    """See section 3.1 of the paper; one row at a time."""
    for row, label in enumerate(LABELS):
        student, teacher = STUDENT[row, None].double(), TEACHER[row, None].double()
        uncertainty = 1 - float(teacher.softmax(1)[0, label])
        value = dkd_loss(student, teacher, label[None], 1.0, uncertainty)
        torch.testing.assert_close(value, kd_loss(student, teacher))


def test_probabilities_that_round_to_one_give_finite_values() -> None:
    student = torch.tensor([[0.0, 300.0, 1.0], [0.0, 0.0, 300.0]], requires_grad=True)
    teacher = torch.tensor([[300.0, 0.0, 0.0], [0.0, 2.0, 300.0]])
    value = dkd_loss(student, teacher, torch.tensor([0, 2]), non_target_weight=0.0)
    value.backward()
    # The first row differs from its teacher by 300, the second row is equal.
    assert value.item() == pytest.approx(150.0)
    expected = torch.tensor([[-0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(student.grad, expected)


def test_non_target_term_is_zero_with_two_classes() -> None:
    labels = LABELS.clamp(max=1)
    value = dkd_loss(STUDENT[:, :2], TEACHER[:, :2], labels, target_weight=0.0)
    assert value == 0


def test_no_rows_give_zero() -> None:
    student = STUDENT[:0].clone().requires_grad_()
    value = dkd_loss(student, TEACHER[:0], LABELS[:0])
    value.backward()
    assert value == 0
    assert student.grad.shape == (0, 5)


def test_valid_pixels_are_treated_as_rows() -> None:
    student, teacher = MAPS[0].double().requires_grad_(), MAPS[1].double()
    value = dkd_loss(student, teacher, tau=2.0, data_samples=samples_of(PIXELS))
    rows = valid_pixels(student.detach()), valid_pixels(teacher)
    labels = PIXELS[PIXELS != 255]
    torch.testing.assert_close(
        value, dkd_loss(*rows, labels, tau=2.0), rtol=1e-12, atol=0
    )
    value.backward()
    assert torch.equal(student.grad.abs().sum(1) > 0, PIXELS != 255)


def test_batch_of_ignored_pixels_gives_zero() -> None:
    student = MAPS[0].clone().requires_grad_()
    samples = samples_of(torch.full_like(PIXELS, 255))
    value = dkd_loss(student, MAPS[1], data_samples=samples)
    value.backward()
    assert value == 0
    assert not student.grad.any()


class OnAnyRows(DKDLoss):
    """DKD with one label per row, for every number of rows in the contract."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(student, teacher, LABELS[: len(student)])


def test_keeps_the_loss_contract() -> None:
    check_loss(OnAnyRows(1.0, 2.0, tau=2.0, loss_weight=3.0), STUDENT, TEACHER)
    loss = DKDLoss(non_target_weight=2.0, tau=2.0)
    check_loss(loss, *SMALL, data_samples=samples_of(PIXELS))


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r"the batch has none: .*labels='roi\.labels'"):
        dkd_loss(STUDENT, TEACHER)
    with pytest.raises(
        ValueError, match='the batch has none: maps need .*`gt_sem_seg`'
    ):
        dkd_loss(*MAPS, data_samples=[SimpleNamespace()] * 2)
    with pytest.raises(ValueError, match='differ in shape'):
        dkd_loss(STUDENT, TEACHER[:, :4], LABELS)
    with pytest.raises(ValueError, match='at least 2 classes'):
        dkd_loss(STUDENT[:, :1], TEACHER[:, :1], LABELS)
    with pytest.raises(ValueError, match=r'`labels` of shape \(6,\)'):
        dkd_loss(STUDENT, TEACHER, LABELS[:5])
    with pytest.raises(ValueError, match='DKDLoss: tau must be .* got 0'):
        DKDLoss(tau=0)
