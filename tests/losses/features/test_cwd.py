import math

import pytest
import torch
from golden import assert_golden, load_golden, waves

from kdtoolbox.losses import CWDLoss, channel_wise_divergence
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('case', ['basic_tau1', 'tau4_w5'])
def test_golden(case: str, dtype: torch.dtype) -> None:
    golden = load_golden('cwd', case, dtype)
    student = golden.inputs['student'].requires_grad_()
    hyper = {k: golden.hyper[k] for k in ('tau', 'loss_weight')}
    loss = MODELS.build(dict(type='kdtoolbox.CWDLoss', **hyper))
    assert_golden(loss(student, golden.inputs['teacher']), [student], golden)


@pytest.mark.parametrize(('tau', 'expected'), [(1, 0.5911882), (4, 0.7660356)])
def test_closed_form_inputs(tau: float, expected: float) -> None:
    value = CWDLoss(tau)(STUDENT.double(), TEACHER.double())
    assert float(value) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('tau', [0.5, 1.0, 4.0])
def test_naive_loops(tau: float) -> None:
    student, teacher = STUDENT.double(), TEACHER.double()
    total = 0.0
    for n in range(2):
        for c in range(4):
            p = [math.exp(x / tau) for x in student[n, c].flatten().tolist()]
            q = [math.exp(x / tau) for x in teacher[n, c].flatten().tolist()]
            pairs = zip(p, q, strict=True)
            ratios = [(t / sum(q)) / (s / sum(p)) for s, t in pairs]
            total += sum(
                t / sum(q) * math.log(r) for t, r in zip(q, ratios, strict=True)
            )
    value = channel_wise_divergence(student, teacher, tau)
    assert float(value) == pytest.approx(tau**2 * total / 8, rel=1e-12)


def test_shift_of_a_channel_does_not_change_the_loss() -> None:
    shift = 100 * waves((2, 4, 1, 1), 0.7, 0.3)
    value = channel_wise_divergence(STUDENT, TEACHER)
    shifted = channel_wise_divergence(STUDENT + shift, TEACHER)
    torch.testing.assert_close(shifted, value, rtol=2e-5, atol=0)


def test_large_teacher_logits_give_finite_loss_and_gradient() -> None:
    student = STUDENT.clone().requires_grad_()
    value = channel_wise_divergence(student, 1e4 * TEACHER)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_contract() -> None:
    check_loss(CWDLoss(tau=2.0, loss_weight=3.0), STUDENT, TEACHER)


@pytest.mark.parametrize('tau', [0.0, -1.0, math.inf, math.nan])
def test_invalid_tau_raises(tau: float) -> None:
    with pytest.raises(ValueError, match='tau must be a finite number above 0'):
        CWDLoss(tau=tau)


def test_different_shapes_raise() -> None:
    with pytest.raises(ValueError, match=r'\(2, 4, 6, 5\).*\(2, 4, 3, 5\).*connectors'):
        channel_wise_divergence(STUDENT, TEACHER[:, :, :3])
    with pytest.raises(ValueError, match=r'expected maps of shape \(N, C, H, W\)'):
        channel_wise_divergence(STUDENT[0], TEACHER[0])
