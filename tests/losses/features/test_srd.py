import math

import pytest
import torch
from golden import TOLERANCES, assert_golden, load_golden, waves

from kdtoolbox.losses.features.srd import SRDLoss, log_distance
from kdtoolbox.losses.logits.kd import KDLoss
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden(dtype: torch.dtype) -> None:
    golden = load_golden('srd', 'e1', dtype)
    inputs = golden.inputs
    student, logits = (
        inputs[name].requires_grad_() for name in ('student', 'student_logit')
    )
    loss = MODELS.build(dict(type='kdtoolbox.SRDLoss', exponent=1.0))
    value = loss(student, inputs['teacher'])
    value = value + KDLoss(tau=1.0)(logits, inputs['teacher_logit'])
    assert_golden(value, [student], golden)
    expected = golden.grads['student_logit']
    atol = TOLERANCES[dtype][2] * float(expected.abs().max())
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=atol)


@pytest.mark.parametrize('exponent', [1.0, 2.0, 4.0])
def test_naive_loops(exponent: float) -> None:
    student = STUDENT.double().requires_grad_()
    reference = STUDENT.double().requires_grad_()
    teacher = TEACHER.double()
    total = torch.zeros((), dtype=torch.float64)
    for s, t in zip(reference.flatten(), teacher.flatten(), strict=True):
        total = total + ((s - t) ** 2) ** (exponent / 2)
    expected = 2 * total.log()
    value = log_distance(student, teacher, exponent)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_repeating_the_batch_adds_a_constant() -> None:
    student, teacher = STUDENT.double(), TEACHER.double()
    value = log_distance(student.repeat(3, 1, 1, 1), teacher.repeat(3, 1, 1, 1))
    expected = log_distance(student, teacher) + 2 * math.log(3)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize('exponent', [1.0, 4.0])
def test_equal_features_give_a_finite_loss_and_no_gradient(exponent: float) -> None:
    student = STUDENT.clone().requires_grad_()
    value = log_distance(student, STUDENT, exponent)
    value.backward()
    assert value.isfinite()
    assert not student.grad.any()


def test_contract() -> None:
    check_loss(SRDLoss(), STUDENT, TEACHER, zero_at_equality=False)
    rows = STUDENT.flatten(1), TEACHER.flatten(1)
    check_loss(SRDLoss(exponent=1.0), *rows, zero_at_equality=False)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r'\(2, 4, 6, 5\).*\(2, 3, 6, 5\) differ'):
        log_distance(STUDENT, TEACHER[:, :3])
    for exponent in (0.5, math.inf, math.nan):
        with pytest.raises(ValueError, match=rf'at least 1, got {exponent}'):
            SRDLoss(exponent=exponent)
