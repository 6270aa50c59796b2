import math
from types import SimpleNamespace

import pytest
import torch
from golden import assert_golden, load_golden, waves
from pixels import samples_of
from torch import Tensor

from kdtoolbox.losses.logits.pixel_labels import IGNORED
from kdtoolbox.losses.logits.wsld import WSLDLoss, wsld_loss
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT, TEACHER = waves((6, 5), 0.9, 0.3), 2 * waves((6, 5), 0.7, 0.5, 1.0)
LABELS = torch.tensor([0, 1, 2, IGNORED, 4, 0])
MAPS = waves((2, 4, 3, 2), 0.37, 0.11), 1.3 * waves((2, 4, 3, 2), 0.23, 0.17, 0.4)
PIXELS = torch.tensor([[[0, 1], [255, 3], [2, 0]], [[3, 3], [1, 255], [0, 2]]])


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_matches_golden_values(dtype: torch.dtype) -> None:
    golden = load_golden('wsld', 'tau2', dtype)
    student = golden.inputs['student'].requires_grad_()
    loss = MODELS.build(dict(type='kdtoolbox.WSLDLoss', tau=golden.hyper['tau']))
    value = loss(student, golden.inputs['teacher'], golden.inputs['labels'])
    assert_golden(value, [student], golden)


def test_value_for_closed_form_inputs() -> None:
    logits = STUDENT.double(), TEACHER.double(), torch.tensor([0, 1, 2, 3, 4, 0])
    value = WSLDLoss(loss_weight=2.5)(*logits)
    assert value.item() == pytest.approx(10.584203, rel=1e-7)


def naive(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for s, t, label in zip(student, teacher, LABELS.tolist(), strict=True):
        if label == IGNORED:
            continue
        errors = [(x.exp().sum().log() - x[label]).item() for x in (s, t)]
        weight = 1 - math.exp(-errors[0] / (errors[1] + 1e-7))
        p, q = ((x / tau).exp() / (x / tau).exp().sum() for x in (s, t))
        for k in range(5):
            total = total - weight * tau**2 * q[k] * p[k].log() / 5
    return total


@pytest.mark.parametrize('tau', [1.0, 3.0])
def test_matches_naive_loops(tau: float) -> None:
    student, teacher = STUDENT.double().requires_grad_(), TEACHER.double()
    reference = student.detach().clone().requires_grad_()
    value = wsld_loss(student, teacher, LABELS, tau)
    expected = naive(reference, teacher, tau)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_pixels_of_maps_are_treated_as_rows() -> None:
    rows = [maps.movedim(1, -1).reshape(-1, 4) for maps in MAPS]
    value = wsld_loss(*MAPS, data_samples=samples_of(PIXELS))
    torch.testing.assert_close(
        value, wsld_loss(*rows, PIXELS.where(PIXELS != 255, IGNORED).flatten())
    )


def test_row_the_student_predicts_well_gets_a_small_weight() -> None:
    student, teacher = torch.tensor([[4.0, 0.0, 0.0]]), torch.zeros(1, 3)
    right, wrong = (wsld_loss(student, teacher, torch.tensor([y])) for y in (0, 1))
    assert right < 0.1 * wrong


def test_row_the_teacher_is_certain_of_gets_full_weight() -> None:
    student, label = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([1])
    value = wsld_loss(student, torch.tensor([[0.0, 300.0, 0.0]]), label)
    p = (student / 2).softmax(1)[0, 1]
    torch.testing.assert_close(value, -4 * p.log())


def test_equal_logits_give_no_gradient() -> None:
    student = STUDENT.double().requires_grad_()
    wsld_loss(student, student.detach(), LABELS).backward()
    assert student.grad.abs().max() < 1e-15


def test_batch_of_ignored_rows_gives_zero() -> None:
    student = STUDENT.clone().requires_grad_()
    value = wsld_loss(student, TEACHER, torch.full((6,), IGNORED))
    value.backward()
    assert value == 0
    assert not student.grad.any()


def test_keeps_the_loss_contract() -> None:
    loss = WSLDLoss(tau=3.0, loss_weight=2.5)
    # The weights are detached, and a cross entropy is not 0 for equal logits.
    off = dict(zero_at_equality=False, gradcheck=False)
    check_loss(loss, *MAPS, **off, data_samples=samples_of(PIXELS))


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match='WSLDLoss reads true .*roi.labels'):
        wsld_loss(STUDENT, TEACHER)
    with pytest.raises(ValueError, match='WSLDLoss reads true classes'):
        wsld_loss(*MAPS, data_samples=[SimpleNamespace()] * 2)
    with pytest.raises(ValueError, match=r'`labels` of shape \(6,\)'):
        wsld_loss(STUDENT, TEACHER, LABELS[:5])
    with pytest.raises(ValueError, match='at least 2 classes'):
        wsld_loss(STUDENT[:, :1], TEACHER[:, :1], LABELS)
    with pytest.raises(ValueError, match='WSLDLoss: tau must be .* got 0'):
        WSLDLoss(tau=0)
