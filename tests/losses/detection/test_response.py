import pytest
import torch
from golden import waves
from torch import Tensor
from torch.nn import functional

from kdtoolbox.losses.detection.response import (
    ObjectnessLoss,
    RoIRegressionLoss,
    objectness_loss,
    roi_regression_loss,
)
from kdtoolbox.testing import check_loss

CLASSES = 3
# The third is background; the fourth is none, as heads that ignore rows mark it.
LABELS = torch.tensor([0, 2, CLASSES, -1, 2, 1])
DELTAS = 2 * waves((6, 4 * CLASSES), 0.9, 0.3), waves((6, 4 * CLASSES), 0.7, 0.5, 1.0)
SHAPES = [(2, 3, 4, 5), (2, 3, 2, 3), (2, 3, 1, 1)]
MAPS = [
    [scale * waves(shape, a, 0.2, level) for level, shape in enumerate(SHAPES)]
    for scale, a in ((2.0, 0.37), (3.0, 0.23))
]


# Box deltas of RoIs.


def naive_regression(student: Tensor, teacher: Tensor) -> Tensor:
    total, positives = torch.zeros((), dtype=torch.float64), 0
    for row, label in enumerate(LABELS.tolist()):
        if 0 <= label < CLASSES:
            positives += 1
            for i in range(4 * label, 4 * label + 4):
                d = (student[row, i] - teacher[row, i]).abs()
                total = total + (d**2 / 2 if d < 1 else d - 0.5)
    return total / positives


def test_regression_naive() -> None:
    student, teacher = DELTAS[0].double().requires_grad_(), DELTAS[1].double()
    reference = student.detach().clone().requires_grad_()
    value = roi_regression_loss(student, teacher, LABELS)
    expected = naive_regression(reference, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)
    # Both sides of the kink of SmoothL1 are among the positives.
    sizes = (student - teacher)[reference.grad != 0].abs()
    assert sizes.min() < 1 < sizes.max()


def test_rows_without_object_and_other_classes_do_not_count() -> None:
    expected = roi_regression_loss(*DELTAS, LABELS)
    student = DELTAS[0].clone()
    student[2:4] = 1e30
    student[0, 4:] = -1e30
    student.requires_grad_()
    value = roi_regression_loss(student, DELTAS[1], LABELS)
    value.backward()
    assert torch.equal(value, expected)
    assert not student.grad[2:4].any()
    assert student.grad[0, :4].all()
    assert not student.grad[0, 4:].any()


@pytest.mark.parametrize('rows', [0, 6])
def test_no_positives_give_zero(rows: int) -> None:
    student = DELTAS[0][:rows].clone().requires_grad_()
    labels = torch.full((rows,), CLASSES)
    value = roi_regression_loss(student, DELTAS[1][:rows], labels)
    value.backward()
    assert value == 0
    assert student.grad.shape == (rows, 12)
    assert not student.grad.any()


class OnAnyRows(RoIRegressionLoss):
    """The loss with as many labels as rows, as the contract cuts them."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(student, teacher, LABELS[: len(student)])


def test_regression_contract() -> None:
    check_loss(OnAnyRows(loss_weight=3.0), *DELTAS)


def test_regression_refusals() -> None:
    for student, teacher in [
        (DELTAS[0], DELTAS[1][:, :8]),
        (DELTAS[0][:, :10], DELTAS[1][:, :10]),
        (DELTAS[0][:, :0], DELTAS[1][:, :0]),
        (DELTAS[0][None], DELTAS[1][None]),
    ]:
        with pytest.raises(ValueError, match=r"deltas.*student='student\.roi_reg'"):
            roi_regression_loss(student, teacher, LABELS)
    with pytest.raises(ValueError, match=r'`labels` of shape \(6,\)'):
        roi_regression_loss(*DELTAS, LABELS[:1])


# Objectness of anchors.


def naive_objectness(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    total, anchors = torch.zeros((), dtype=torch.float64), 0
    for mine, theirs in zip(student, teacher, strict=True):
        for s, t in zip(mine.flatten(), theirs.flatten(), strict=True):
            p, q = t.sigmoid(), s.sigmoid()
            total = total + p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
            anchors += 1
    return total / anchors


def test_objectness_naive() -> None:
    student, reference = (
        [level.double().requires_grad_() for level in MAPS[0]] for _ in range(2)
    )
    teacher = [level.double() for level in MAPS[1]]
    value = objectness_loss(student, teacher)
    expected = naive_objectness(reference, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    for mine, theirs in zip(student, reference, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-8, atol=1e-12)


def test_gradient_is_that_of_the_binary_cross_entropy() -> None:
    student, other = (MAPS[0][0].double().requires_grad_() for _ in range(2))
    teacher = MAPS[1][0].double()
    objectness_loss([student], [teacher]).backward()
    bce = functional.binary_cross_entropy_with_logits(other, teacher.sigmoid())
    bce.backward()
    torch.testing.assert_close(student.grad, other.grad)


def test_saturated_logits_stay_finite_and_exact() -> None:
    student = torch.tensor([300.0, -300.0, 20.0]).reshape(1, 3, 1, 1).requires_grad_()
    teacher = torch.tensor([-300.0, -300.0, 20.0]).reshape(1, 3, 1, 1)
    value = objectness_loss([student], [teacher])
    value.backward()
    assert value.item() == pytest.approx(100.0)
    expected = torch.tensor([1 / 3, 0.0, 0.0]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(student.grad, expected)


class OnOneLevel(ObjectnessLoss):
    """The loss on a map whose first row is one level and the rest another."""

    per_level = True

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:  # type: ignore[override]
        levels = ([x[:, :, :1], x[:, :, 1:]] for x in (student, teacher))
        return super().forward(*levels)


def test_objectness_contract() -> None:
    check_loss(OnOneLevel(loss_weight=3.0), MAPS[0][0], MAPS[1][0])


def test_objectness_refusals() -> None:
    with pytest.raises(ValueError, match=r'\(2, 3, 4, 5\).*\(2, 3, 2, 3\) differ'):
        objectness_loss(MAPS[0][:1], MAPS[1][1:2])
    with pytest.raises(ValueError, match='zip'):
        objectness_loss(MAPS[0], MAPS[1][:2])
