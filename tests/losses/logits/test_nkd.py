from types import SimpleNamespace

import pytest
import torch
from golden import assert_golden, load_golden, waves
from pixels import samples_of
from torch import Tensor

from kdtoolbox.losses.logits.nkd import NKDLoss, nkd_terms
from kdtoolbox.losses.logits.pixel_labels import IGNORED
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT, TEACHER = waves((6, 5), 0.9, 0.3), 2 * waves((6, 5), 0.7, 0.5, 1.0)
LABELS = torch.tensor([0, 1, 2, IGNORED, 4, 0])
MAPS = waves((2, 4, 3, 2), 0.37, 0.11), 1.3 * waves((2, 4, 3, 2), 0.23, 0.17, 0.4)
PIXELS = torch.tensor([[[0, 1], [255, 3], [2, 0]], [[3, 3], [1, 255], [0, 2]]])


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_matches_golden_values(dtype: torch.dtype) -> None:
    golden = load_golden('nkd', 't1_g1p5', dtype)
    student = golden.inputs['student'].requires_grad_()
    hyper = dict(tau=golden.hyper['temp'], non_target_weight=golden.hyper['gamma'])
    loss = MODELS.build(dict(type='kdtoolbox.NKDLoss', **hyper))
    terms = loss(student, golden.inputs['teacher'], golden.inputs['labels'])
    assert_golden(sum(terms.values()), [student], golden)


def test_value_for_closed_form_inputs() -> None:
    logits = STUDENT.double(), TEACHER.double(), torch.tensor([0, 1, 2, 3, 4, 0])
    assert sum(NKDLoss()(*logits).values()).item() == pytest.approx(2.6844203, rel=1e-7)


def naive(student: Tensor, teacher: Tensor, tau: float) -> dict[str, Tensor]:
    target, non_target = torch.zeros(2, dtype=torch.float64)
    for s, t, label in zip(student, teacher, LABELS.tolist(), strict=True):
        if label == IGNORED:
            continue
        p, q = s.exp() / s.exp().sum(), t.exp() / t.exp().sum()
        target = target - q[label] * p[label].log() / 5
        rest = [k for k in range(5) if k != label]
        p, q = (
            [(x[k] / tau).exp() / sum((x[j] / tau).exp() for j in rest) for k in rest]
            for x in (s, t)
        )
        for a, b in zip(p, q, strict=True):
            non_target = non_target - tau**2 * b * a.log() / 5
    return {'target': target, 'non_target': non_target}


@pytest.mark.parametrize('name', ['target', 'non_target'])
@pytest.mark.parametrize('tau', [1.0, 3.0])
def test_matches_naive_loops(name: str, tau: float) -> None:
    student, teacher = STUDENT.double().requires_grad_(), TEACHER.double()
    reference = student.detach().clone().requires_grad_()
    value = nkd_terms(student, teacher, LABELS, tau)[name]
    expected = naive(reference, teacher, tau)[name]
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_pixels_of_maps_are_treated_as_rows() -> None:
    rows = [maps.movedim(1, -1).reshape(-1, 4) for maps in MAPS]
    terms = nkd_terms(*MAPS, data_samples=samples_of(PIXELS))
    torch.testing.assert_close(
        terms, nkd_terms(*rows, PIXELS.where(PIXELS != 255, IGNORED).flatten())
    )


def test_non_target_term_is_zero_with_two_classes() -> None:
    labels = LABELS.clamp(max=1)
    assert nkd_terms(STUDENT[:, :2], TEACHER[:, :2], labels)['non_target'] == 0


def test_batch_of_ignored_rows_gives_zero() -> None:
    student = STUDENT.clone().requires_grad_()
    value = sum(nkd_terms(student, TEACHER, torch.full((6,), IGNORED)).values())
    value.backward()
    assert value == 0
    assert not student.grad.any()


def test_keeps_the_loss_contract() -> None:
    loss = NKDLoss(tau=2.0, loss_weight=3.0)
    samples = samples_of(PIXELS)
    # A cross entropy is not 0 for equal logits.
    check_loss(loss, *MAPS, zero_at_equality=False, data_samples=samples)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match='NKDLoss reads true .*gt_sem_seg.*roi.labels'):
        nkd_terms(STUDENT, TEACHER)
    with pytest.raises(ValueError, match='NKDLoss reads true classes'):
        nkd_terms(*MAPS, data_samples=[SimpleNamespace()] * 2)
    with pytest.raises(ValueError, match=r'`labels` of shape \(6,\)'):
        nkd_terms(STUDENT, TEACHER, LABELS[:5])
    with pytest.raises(ValueError, match='at least 2 classes'):
        nkd_terms(STUDENT[:, :1], TEACHER[:, :1], LABELS)
    with pytest.raises(ValueError, match='NKDLoss: tau must be .* got 0'):
        NKDLoss(tau=0)
