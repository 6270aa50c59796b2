from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden import waves
from torch import Tensor

from kdtoolbox.losses.detection.rm import RMLoss, logits_of_class, rank_divergence
from kdtoolbox.losses.detection.targets import DenseTargets
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

ANCHORS, CLASSES = 2, 3
SIZES = [(6, 5), (2, 3)]
STUDENT = [2 * waves((2, ANCHORS * CLASSES, *size), 0.37, 0.11) for size in SIZES]
TEACHER = [3 * waves((2, ANCHORS * CLASSES, *size), 0.23, 0.17, 0.4) for size in SIZES]
BOXES = [3, 1]


def samples_of(counts: list[int]) -> list:
    """Images with so many boxes, of classes 0, 1, 2, 0 and so on."""
    return [
        SimpleNamespace(
            gt_instances=SimpleNamespace(
                bboxes=torch.zeros(count, 4), labels=torch.arange(count) % CLASSES
            )
        )
        for count in counts
    ]


def targets_of(gt_inds: list[Tensor]) -> Any:
    return DenseTargets(
        labels=[(x % CLASSES).where(x >= 0, CLASSES) for x in gt_inds],
        label_weights=[],
        priors=[],
        strides=[],
        num_classes=CLASSES,
        avg_factor=torch.ones(()),
        decode=lambda level, raw: raw,
        gt_inds=gt_inds,
    )


def assigned(sizes: list = SIZES, counts: list[int] = BOXES) -> list[Tensor]:
    """Spread the boxes of each image over every second prediction."""
    levels = []
    for height, width in sizes:
        steps = torch.arange(height * width * ANCHORS)
        rows = [
            (steps // 4 % max(count, 1)).where((steps % 2 == 0) & (count > 0), -1)
            for count in counts
        ]
        levels.append(torch.stack(rows))
    return levels


def build(**changes: Any) -> Any:
    return MODELS.build(dict(type='kdtoolbox.RMLoss', **changes))


def naive(
    student: list[Tensor], teacher: list[Tensor], gt_inds: list[Tensor], boxes: list
) -> Tensor:
    """One box at a time, its predictions looked up one by one."""
    total = torch.zeros((), dtype=torch.float64)
    for n, count in enumerate(boxes):
        for box in range(count):
            mine, theirs = [], []
            for level, inds in enumerate(gt_inds):
                height, width = student[level].shape[2:]
                for y in range(height):
                    for x in range(width):
                        for a in range(ANCHORS):
                            if inds[n, (y * width + x) * ANCHORS + a] == box:
                                channel = a * CLASSES + box % CLASSES
                                mine.append(student[level][n, channel, y, x])
                                theirs.append(teacher[level][n, channel, y, x])
            if not mine:
                continue
            p, q = (torch.stack(x).exp() for x in (theirs, mine))
            p, q = p / p.sum(), q / q.sum()
            total = total + (p * (p / q).log()).sum() / count
    return total / len(boxes)


@pytest.mark.parametrize('boxes', [BOXES, [0, 2], [4, 0]])
def test_naive_loops(boxes: list[int]) -> None:
    gt_inds = assigned(counts=boxes)
    # A box of the first image that no prediction learns still counts as a box.
    gt_inds = [x.where(x != 1, -1) for x in gt_inds]
    teacher = [x.double() for x in TEACHER]
    mine, other = ([x.double().requires_grad_() for x in STUDENT] for _ in range(2))
    found = build(loss_weight=1.0)(
        mine, teacher, samples_of(boxes), targets_of(gt_inds)
    )
    expected = naive(other, teacher, gt_inds, boxes)
    found.backward()
    expected.backward()
    assert found > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-14)


def test_a_head_of_points() -> None:
    gt_inds, labels = torch.tensor([[0, 0, -1, -1]]), torch.tensor([[1, 1, 2, 2]])
    teacher = torch.zeros(1, 2, 2, 2)
    teacher[0, 1, 0] = torch.tensor([3.0, 1.0]).log()
    picked = logits_of_class(teacher, labels, num_classes=2)
    assert torch.equal(picked[0], teacher[0, 1].flatten())
    [value] = rank_divergence(torch.zeros(1, 4), picked, gt_inds, num_boxes=1)
    expected = torch.tensor([0.75, 0.25])
    torch.testing.assert_close(value, (expected * (2 * expected).log()).sum())


@pytest.mark.parametrize('level', [0, 1])
def test_a_shift_of_all_logits_of_a_box_changes_nothing(level: int) -> None:
    gt_inds, samples = assigned(), samples_of(BOXES)
    value = build()(STUDENT, TEACHER, samples, targets_of(gt_inds))
    shifted = [x + 5 for x in STUDENT]
    found = build()(shifted, TEACHER, samples, targets_of(gt_inds))
    torch.testing.assert_close(found, value, rtol=1e-4, atol=0)
    # The levels are one ranking: to move one of them is no shift.
    shifted[level] = STUDENT[level]
    found = build()(shifted, TEACHER, samples, targets_of(gt_inds))
    assert abs(found - value) > 0.1


def test_a_single_prediction_gives_zero() -> None:
    gt_inds = [torch.full((2, 60), -1), torch.full((2, 12), -1)]
    gt_inds[0][0, 7], gt_inds[1][0, 3], gt_inds[0][1, 59] = 0, 2, 0
    students = [x.clone().requires_grad_() for x in STUDENT]
    value = build()(students, TEACHER, samples_of(BOXES), targets_of(gt_inds))
    value.backward()
    assert value == 0
    assert not any(x.grad.any() for x in students)


def test_no_boxes_at_all() -> None:
    students = [x.clone().requires_grad_() for x in STUDENT]
    targets = targets_of(assigned(counts=[0, 0]))
    value = build()(students, TEACHER, samples_of([0, 0]), targets)
    value.backward()
    assert value == 0
    assert not any(x.grad.any() for x in students)


def test_huge_logits_stay_finite() -> None:
    students = [(1e4 * x).requires_grad_() for x in STUDENT]
    teachers = [-1e4 * x for x in TEACHER]
    # It would report the log of a group without a member.
    with torch.autograd.set_detect_anomaly(True):
        value = build()(students, teachers, samples_of(BOXES), targets_of(assigned()))
        value.backward()
    assert value.isfinite()
    assert all(x.grad.isfinite().all() for x in students)


class OnOneLevel(RMLoss):
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:  # type: ignore[override]
        counts = BOXES[: len(student)]
        targets = targets_of(assigned([student.shape[2:]], counts))
        return super().forward([student], [teacher], samples_of(counts), targets)


def test_contract() -> None:
    check_loss(OnOneLevel(loss_weight=2.0), STUDENT[1], TEACHER[1])


def test_refuses_what_the_head_does_not_train() -> None:
    targets, samples = targets_of(assigned()), samples_of(BOXES)
    with pytest.raises(ValueError, match=r'have \[180\] .* targets for \[180, 36\]'):
        build()(STUDENT[:1], TEACHER[:1], samples, targets)
    wide = [torch.cat([x, x], 1) for x in STUDENT]
    with pytest.raises(ValueError, match=r'\[360, 72\].*last layer'):
        build()(wide, wide, samples, targets)
    with pytest.raises(ValueError, match='differ in shape'):
        build()(STUDENT, wide, samples, targets)
