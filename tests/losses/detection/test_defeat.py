from collections.abc import Sequence
from math import floor, log2
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden import TOLERANCES, assert_golden, load_golden, waves
from torch import Tensor
from torch.nn import functional

from kdtoolbox.losses.detection.defeat import (
    DeFeatLoss,
    DeFeatRoILoss,
    box_mask,
    decoupled_divergence,
    decoupled_error,
    pyramid_levels,
)
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

PRECISIONS = pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
SHAPE = (230, 250)
SIZES = ((12, 16), (6, 8), (3, 4))
BOXES = [
    # Small, the least of the second level, thin, and all of the image.
    torch.tensor(
        [[3.0, 5.0, 30.0, 22.0], [17.0, 9.0, 129.0, 121.0], [90.0, 3.0, 92.0, 189.0]]
    ),
    torch.tensor([[0.0, 0.0, 250.0, 230.0]]),
]


def samples_of(boxes: Sequence[Tensor]) -> list:
    instances = (
        SimpleNamespace(bboxes=box, labels=torch.zeros(len(box), dtype=torch.long))
        for box in boxes
    )
    return [SimpleNamespace(gt_instances=instance) for instance in instances]


def pyramid(phase: float, a: float) -> list[Tensor]:
    return [waves((2, 3, *size), a, 0.11, phase).double() for size in SIZES]


def build(kind: str = 'DeFeatLoss', **arguments: Any) -> Any:
    return MODELS.build(dict(type=f'kdtoolbox.{kind}', **arguments))


@PRECISIONS
def test_golden(dtype: torch.dtype) -> None:
    golden = load_golden('defeat', 'gt_mask_and_head', dtype)
    inputs, hyper = golden.inputs, golden.hyper
    students = [*inputs['student'], inputs['student_roi_cls']]
    [student.requires_grad_() for student in students]
    names = dict(foreground_weight='hint_neck_w', background_weight='hint_neck_back_w')
    neck = build(**{key: hyper[name] for key, name in names.items()})
    names = dict(foreground_weight='head_cls_w', background_weight='head_cls_back_w')
    head = build('DeFeatRoILoss', **{key: hyper[name] for key, name in names.items()})
    samples = samples_of(inputs['gt_bboxes'])
    found = neck(inputs['student'], inputs['teacher'], samples, (96, 128))
    logits = inputs['student_roi_cls'], inputs['teacher_roi_cls']
    terms = [*found.values(), *head(*logits, inputs['roi_labels']).values()]
    for term, name in zip(
        terms, ('neck', 'neck_back', 'hcls', 'hcls_back'), strict=True
    ):
        expected = float(golden.outputs[f'losskd_{name}'])
        assert term.item() == pytest.approx(expected, rel=TOLERANCES[dtype][0])
    golden.grads['student'].append(golden.grads['student_roi_cls'])
    assert_golden(sum(terms), students, golden)


@PRECISIONS
def test_golden_of_given_masks(dtype: torch.dtype) -> None:
    golden = load_golden('defeat', 'mask_given', dtype)
    students = [student.requires_grad_() for student in golden.inputs['student']]
    total = torch.zeros((), dtype=dtype)
    for level, student in enumerate(students):
        layer = (golden.params[f'{level}.{name}'] for name in ('weight', 'bias'))
        aligned = functional.conv2d(student, *layer, padding=1)
        mask = golden.inputs['mask'][level] > 0
        terms = decoupled_error(aligned, golden.inputs['teacher'][level], mask)
        weights = golden.hyper['hint_neck_w'], golden.hyper['hint_neck_back_w']
        total = total + sum(w * t for w, t in zip(weights, terms, strict=True)) / 2
    assert_golden(total, students, golden)


def naive(students: list[Tensor], teachers: list[Tensor]) -> list[Tensor]:
    """Both terms with weights of 1, one box and one cell at a time."""
    totals = [torch.zeros((), dtype=torch.float64)] * 2
    for level, (student, teacher) in enumerate(zip(students, teachers, strict=True)):
        count, channels, height, width = student.shape
        parts: list[list] = [[], []]
        for n in range(count):
            covered = set()
            for x1, y1, x2, y2 in BOXES[n].tolist():
                at = floor(log2(((x2 - x1) * (y2 - y1)) ** 0.5 / 56))
                if level != min(max(at, 0), len(students) - 1):
                    continue
                left, top = int(x1 * width / SHAPE[1]), int(y1 * height / SHAPE[0])
                right, bottom = int(x2 * width / SHAPE[1]), int(y2 * height / SHAPE[0])
                for x in range(left, max(right, left + 1)):
                    covered |= {(x, y) for y in range(top, max(bottom, top + 1))}
            for y in range(height):
                for x in range(width):
                    error = ((student[n, :, y, x] - teacher[n, :, y, x]) ** 2).sum()
                    parts[(x, y) not in covered].append(error)
        for index, part in enumerate(parts):
            if part:
                mean = sum(part) / (2 * channels * len(part))
                totals[index] = totals[index] + mean / len(students)
    return totals


def test_naive_loops() -> None:
    loss = DeFeatLoss(foreground_weight=1.0, background_weight=1.0)
    results = []
    for compute in (
        lambda s, t: list(loss(s, t, samples_of(BOXES), SHAPE).values()),
        naive,
    ):
        students = [level.requires_grad_() for level in pyramid(0.0, 0.37)]
        terms = compute(students, pyramid(0.4, 0.23))
        (terms[0] + 2 * terms[1]).backward()
        results.append([*terms, *(student.grad for student in students)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert all(found.any() for found in results[0])


def test_naive_rois() -> None:
    student = waves((7, 4), 0.9, 0.3).double().requires_grad_()
    teacher = waves((7, 4), 0.7, 0.5, 1.0).double()
    labels = torch.tensor([3, 0, 2, 3, 1, 3, 3])
    parts: list[list] = [[], []]
    for s, t, label in zip(student, teacher, labels, strict=True):
        p, q = t.exp() / t.exp().sum(), s.exp() / s.exp().sum()
        divergence = sum(p[k] * (p[k] / q[k]).log() for k in range(4))
        parts[label == 3].append(divergence)
    expected = torch.stack([sum(part) / len(part) for part in parts])
    found = torch.stack(decoupled_divergence(student, teacher, labels))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    grads = [torch.autograd.grad(x[0] + 3 * x[1], student) for x in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


def test_a_box_belongs_to_one_level() -> None:
    sides = torch.tensor([0.0, 55.0, 111.9, 112.0, 447.9, 448.0, 3000.0])
    boxes = torch.stack([sides, sides, 2 * sides, 2 * sides], 1)
    assert pyramid_levels(boxes, 4).tolist() == [0, 0, 0, 1, 2, 3, 3]


def test_masks_truncate_and_have_at_least_one_cell() -> None:
    boxes = torch.tensor([[[0.9, 1.1, 3.0, 1.9], [0.0, 0.0, 4.0, 4.0]]])
    mask = box_mask(boxes, torch.tensor([[True, False]]), (3, 4))
    assert mask.nonzero().tolist() == [[0, 1, 0], [0, 1, 1], [0, 1, 2]]


def test_no_boxes_leave_the_background() -> None:
    students = [level.requires_grad_() for level in pyramid(0.0, 0.37)]
    teachers = pyramid(0.4, 0.23)
    terms = DeFeatLoss()(students, teachers, samples_of([BOXES[0][:0]] * 2), SHAPE)
    errors = [(s - t).square().mean() for s, t in zip(students, teachers, strict=True)]
    torch.testing.assert_close(terms['background'], 6 * sum(errors) / 3)
    terms['foreground'].backward()
    assert terms['foreground'] == 0
    assert not any(student.grad.any() for student in students)


def test_no_rois_give_zero() -> None:
    logits = torch.zeros(0, 4, requires_grad=True)
    terms = DeFeatRoILoss()(logits, torch.zeros(0, 4), torch.zeros(0).long())
    sum(terms.values()).backward()
    assert [term.item() for term in terms.values()] == [0, 0]


class OnOneLevel(DeFeatLoss):
    """DeFeat on a map of any size, with a box in each image."""

    def forward(self, student: Tensor, teacher: Tensor) -> Any:  # type: ignore[override]
        samples = samples_of([BOXES[0][:1]] * len(student))
        return super().forward([student], [teacher], samples, (48, 40))


class OnRows(DeFeatRoILoss):
    def forward(self, student: Tensor, teacher: Tensor) -> Any:  # type: ignore[override]
        return super().forward(student, teacher, torch.arange(len(student)) % 4)


@pytest.mark.parametrize(
    ('loss', 'shape'), [(OnOneLevel(), (2, 3, 6, 5)), (OnRows(), (8, 4))]
)
def test_contract(loss: Any, shape: tuple) -> None:
    check_loss(loss, waves(shape, 0.37, 0.11), waves(shape, 0.23, 0.17, 0.4))


def test_refuses_shapes() -> None:
    with pytest.raises(ValueError, match='differ in shape.*connectors'):
        OnOneLevel()(torch.ones(2, 3, 6, 5), torch.ones(2, 4, 6, 5))
    with pytest.raises(ValueError, match='differ in shape.*RoIResponses'):
        OnRows()(torch.ones(8, 4), torch.ones(7, 4))
    with pytest.raises(ValueError, match=r"labels='roi.labels'"):
        DeFeatRoILoss()(torch.ones(8, 4), torch.ones(8, 4), torch.ones(7).long())
