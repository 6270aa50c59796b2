from typing import Any

import pytest
import torch
from golden import TOLERANCES, assert_golden, load_golden, waves
from torch import Tensor

from kdtoolbox.losses.detection.frs import (
    FRSFeatureLoss,
    FRSLogitLoss,
    richness_shares,
    weighted_feature_error,
    weighted_logit_error,
)
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)
STUDENT_CLS = 2 * waves((2, 3, 6, 5), 0.31, 0.13) - 1
TEACHER_CLS = 3 * waves((2, 3, 6, 5), 0.29, 0.19, 0.7) - 1


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden(dtype: torch.dtype) -> None:
    golden = load_golden('frs', 'two_levels', dtype)
    inputs, hyper = golden.inputs, golden.hyper
    students = [*inputs['student'], *inputs['student_cls']]
    [student.requires_grad_() for student in students]
    feature, logit = (
        MODELS.build(dict(type=f'kdtoolbox.{kind}', loss_weight=hyper[weight]))
        for kind, weight in (
            ('FRSFeatureLoss', 'feat_weight'),
            ('FRSLogitLoss', 'cls_weight'),
        )
    )
    features = (inputs[name] for name in ('student', 'teacher', 'teacher_cls'))
    logits = (inputs[name] for name in ('student_cls', 'teacher_cls'))
    terms = dict(feat=sum(map(feature, *features)), cls=sum(map(logit, *logits)))
    for name, term in terms.items():
        expected = float(golden.outputs[name])
        assert term.item() == pytest.approx(expected, rel=TOLERANCES[dtype][0])
    golden.grads['student'] += golden.grads['student_cls']
    assert_golden(terms['feat'] + terms['cls'], students, golden)


def naive(terms: Any, teacher_cls: Tensor) -> Tensor:
    """Average what `terms` gives for each position."""
    total = weight = torch.zeros((), dtype=torch.float64)
    count, _, height, width = teacher_cls.shape
    for n in range(count):
        for y in range(height):
            for x in range(width):
                rich = max(float(z.double().sigmoid()) for z in teacher_cls[n, :, y, x])
                total = total + rich * terms(n, y, x)
                weight = weight + rich
    return total / weight


def check_naive(found: Tensor, mine: Tensor, expected: Tensor, other: Tensor) -> None:
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_features_naive() -> None:
    mine, other = (STUDENT.double().requires_grad_() for _ in range(2))
    teacher = TEACHER.double()

    def terms(n: int, y: int, x: int) -> Tensor:
        pairs = zip(other[n, :, y, x], teacher[n, :, y, x], strict=True)
        return sum((s - t) ** 2 for s, t in pairs)

    found = weighted_feature_error(mine, teacher, TEACHER_CLS.double())
    check_naive(found, mine, naive(terms, TEACHER_CLS), other)


def test_logits_naive() -> None:
    mine, other = (STUDENT_CLS.double().requires_grad_() for _ in range(2))
    teacher = TEACHER_CLS.double()

    def terms(n: int, y: int, x: int) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for s, t in zip(other[n, :, y, x], teacher[n, :, y, x], strict=True):
            goal, guess = 1 / (1 + (-t).exp()), 1 / (1 + (-s).exp())
            total = total - goal * guess.log() - (1 - goal) * (1 - guess).log()
        return total

    found = weighted_logit_error(mine, teacher)
    check_naive(found, mine, naive(terms, TEACHER_CLS), other)


def test_a_teacher_that_is_sure_of_nothing_still_weighs_the_positions() -> None:
    logits = torch.full((1, 2, 1, 2), -200.0)
    logits[..., 0] += torch.tensor(3.0).log()
    shares = richness_shares(logits).flatten()
    torch.testing.assert_close(shares, torch.tensor([0.75, 0.25]), rtol=1e-4, atol=0)


def test_equal_logits_give_the_entropy_without_gradient() -> None:
    student = TEACHER_CLS.double().requires_grad_()
    value = weighted_logit_error(student, TEACHER_CLS.double())
    value.backward()
    assert value > 0
    assert student.grad.abs().max() < 1e-12


def test_the_richness_has_no_gradient() -> None:
    logits = TEACHER_CLS.clone().requires_grad_()
    assert not richness_shares(logits).requires_grad
    # A head that both networks share.
    assert not weighted_feature_error(STUDENT, TEACHER, logits).requires_grad


class SmallerRichness(FRSFeatureLoss):
    """Takes the richness of as many positions as the maps have."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:  # type: ignore[override]
        count, _, height, width = student.shape
        return super().forward(
            student, teacher, TEACHER_CLS[:count, :, :height, :width]
        )


def test_contract() -> None:
    maps = STUDENT[..., :3, :2], TEACHER[..., :3, :2]
    check_loss(SmallerRichness(loss_weight=2.0), *maps)
    logits = STUDENT_CLS[..., :3, :2], TEACHER_CLS[..., :3, :2]
    check_loss(FRSLogitLoss(loss_weight=2.0), *logits, zero_at_equality=False)


def test_refuses_shapes() -> None:
    with pytest.raises(ValueError, match=r'differ in shape.*connectors'):
        FRSFeatureLoss()(STUDENT, TEACHER[:, :3], TEACHER_CLS)
    with pytest.raises(ValueError, match=r'differ in size; record the same levels'):
        FRSFeatureLoss()(STUDENT, TEACHER, TEACHER_CLS[..., :1])
    with pytest.raises(ValueError, match=r'differ in shape'):
        FRSLogitLoss()(STUDENT_CLS, TEACHER_CLS[:1])
