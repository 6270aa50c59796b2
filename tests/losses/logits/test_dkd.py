from types import SimpleNamespace

import pytest
import torch
from golden import TOLERANCES, assert_golden, load_golden, waves
from pixels import LABELS as PIXELS
from pixels import MAPS, SMALL, counted, samples_of
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
def test_golden(case: str, dtype: torch.dtype) -> None:
    golden = load_golden('dkd', case, dtype)
    student = golden.inputs['student'].requires_grad_()
    others = golden.inputs['teacher'], golden.inputs['labels']
    weights = {key: golden.hyper[key] for key in ('alpha', 'beta', 'tau')}
    rtol = TOLERANCES[dtype][0]
    for name, pair in dict(tckd=(1.0, 0.0), nckd=(0.0, 1.0)).items():
        term = dkd_loss(student.detach(), *others, *pair, tau=weights['tau'])
        expected = float(golden.outputs[name])
        # A small term is a difference of up to 20 logarithms of about 1.
        atol = 20 * torch.finfo(dtype).eps
        assert float(term) == pytest.approx(expected, rel=rtol, abs=atol)
    loss = MODELS.build(dict(type='kdtoolbox.DKDLoss', **weights))
    assert_golden(loss(student, *others), [student], golden)


def test_closed_form_inputs() -> None:
    logits = STUDENT.double(), TEACHER.double()
    value = dkd_loss(*logits, LABELS, alpha=1.0, beta=8.0, tau=4.0)
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
        for factor, theirs, mine in zip((1.0, beta), *sides, strict=True):
            for t, s in zip(theirs, mine, strict=True):
                total = total + factor * t * (t / s).log()
    return tau**2 * total / len(student)


@pytest.mark.parametrize('tau', [1.0, 3.0])
def test_naive_loops(tau: float) -> None:
    student, teacher = STUDENT.double().requires_grad_(), TEACHER.double()
    reference = student.detach().clone().requires_grad_()
    value = dkd_loss(student, teacher, LABELS, beta=0.25, tau=tau)
    expected = naive(reference, teacher, tau, beta=0.25)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_kd_is_the_case_where_beta_is_the_teachers_doubt() -> None:
    """Section 3.1 of the paper, one row at a time."""
    for row, label in enumerate(LABELS):
        student, teacher = STUDENT[row, None].double(), TEACHER[row, None].double()
        doubt = 1 - float(teacher.softmax(1)[0, label])
        value = dkd_loss(student, teacher, label[None], alpha=1.0, beta=doubt)
        torch.testing.assert_close(value, kd_loss(student, teacher))


def test_certainty_that_rounds_to_one_stays_finite() -> None:
    student = torch.tensor([[0.0, 300.0, 1.0], [0.0, 0.0, 300.0]], requires_grad=True)
    teacher = torch.tensor([[300.0, 0.0, 0.0], [0.0, 2.0, 300.0]])
    value = dkd_loss(student, teacher, torch.tensor([0, 2]), beta=0.0)
    value.backward()
    # The first row is wrong by 300, the second is as sure as its teacher.
    assert value.item() == pytest.approx(150.0)
    expected = torch.tensor([[-0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(student.grad, expected)


def test_the_other_of_two_classes_has_nothing_to_tell() -> None:
    value = dkd_loss(STUDENT[:, :2], TEACHER[:, :2], LABELS.clamp(max=1), alpha=0.0)
    assert value == 0


def test_no_rows_give_zero() -> None:
    student = STUDENT[:0].clone().requires_grad_()
    value = dkd_loss(student, TEACHER[:0], LABELS[:0])
    value.backward()
    assert value == 0
    assert student.grad.shape == (0, 5)


def test_pixels_that_are_not_ignored_are_rows() -> None:
    student, teacher = MAPS[0].double().requires_grad_(), MAPS[1].double()
    value = dkd_loss(student, teacher, tau=2.0, data_samples=samples_of(PIXELS))
    rows = counted(student.detach()), counted(teacher)
    labels = PIXELS[PIXELS != 255]
    torch.testing.assert_close(
        value, dkd_loss(*rows, labels, tau=2.0), rtol=1e-12, atol=0
    )
    value.backward()
    assert torch.equal(student.grad.abs().sum(1) > 0, PIXELS != 255)


def test_a_batch_of_ignored_pixels_gives_zero() -> None:
    student = MAPS[0].clone().requires_grad_()
    samples = samples_of(torch.full_like(PIXELS, 255))
    value = dkd_loss(student, MAPS[1], data_samples=samples)
    value.backward()
    assert value == 0
    assert not student.grad.any()


class OnAnyRows(DKDLoss):
    """DKD with as many labels as rows, as the contract cuts them."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(student, teacher, LABELS[: len(student)])


def test_contract() -> None:
    check_loss(OnAnyRows(beta=2.0, tau=2.0, loss_weight=3.0), STUDENT, TEACHER)
    check_loss(DKDLoss(beta=2.0, tau=2.0), *SMALL, data_samples=samples_of(PIXELS))


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"there are none: .*labels='roi\.labels'"):
        dkd_loss(STUDENT, TEACHER)
    with pytest.raises(ValueError, match='there are none: maps need .*`gt_sem_seg`'):
        dkd_loss(*MAPS, data_samples=[SimpleNamespace()] * 2)
    with pytest.raises(ValueError, match='differ in shape'):
        dkd_loss(STUDENT, TEACHER[:, :4], LABELS)
    with pytest.raises(ValueError, match='at least 2 classes'):
        dkd_loss(STUDENT[:, :1], TEACHER[:, :1], LABELS)
    with pytest.raises(ValueError, match=r'`labels` of shape \(6,\)'):
        dkd_loss(STUDENT, TEACHER, LABELS[:5])
    with pytest.raises(ValueError, match='DKDLoss: tau must be .* got 0'):
        DKDLoss(tau=0)
