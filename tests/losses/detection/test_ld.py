from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden import TOLERANCES, assert_golden, load_golden, waves
from torch import Tensor

from kdtoolbox.losses.detection import ld
from kdtoolbox.losses.detection.ld import LDClsLoss, LDLoss, mean_kl, valuable_region
from kdtoolbox.losses.detection.targets import DenseTargets
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

PRECISIONS = pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
ONE_BOX = torch.tensor([[4.0, 4.0, 28.0, 20.0]])


def targets_of(labels: list[Tensor], num_classes: int, priors: Any = None) -> Any:
    return DenseTargets(
        labels=labels,
        label_weights=[torch.ones_like(label).float() for label in labels],
        priors=priors or [torch.zeros(*label.shape, 4) for label in labels],
        strides=[],
        num_classes=num_classes,
        avg_factor=torch.ones(()),
        decode=lambda level, raw: raw,
        gt_inds=[],
    )


def samples_of(boxes: Sequence[Tensor]) -> list:
    instances = (
        SimpleNamespace(bboxes=box, labels=torch.zeros(len(box), dtype=torch.long))
        for box in boxes
    )
    return [SimpleNamespace(gt_instances=instance) for instance in instances]


@PRECISIONS
def test_divergence_equals_golden_values(dtype: torch.dtype) -> None:
    golden = load_golden('ld', 'kl_T10', dtype)
    student = golden.inputs['student'].requires_grad_()
    rows = mean_kl(student, golden.inputs['teacher'], golden.hyper['T'])
    weight = golden.hyper['loss_weight'] / golden.hyper['avg_factor']
    assert_golden(weight * (rows * golden.inputs['weight']).sum(), [student], golden)


@PRECISIONS
def test_terms_equal_golden_values(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = load_golden('ld', 'head_two_levels', dtype)
    inputs, hyper = golden.inputs, golden.hyper
    students = [*inputs['student_reg'], *inputs['student_cls']]
    [student.requires_grad_() for student in students]
    targets = targets_of(inputs['labels'], hyper['num_classes'])
    monkeypatch.setattr(ld, 'valuable_region', lambda *_: inputs['vlr_region'])
    loss = MODELS.build(
        dict(
            type='kdtoolbox.LDLoss',
            tau=hyper['T'],
            main_weight=hyper['w_ld'],
            region_weight=hyper['w_vlr'],
        )
    )
    cls_loss = MODELS.build(
        dict(type='kdtoolbox.LDClsLoss', tau=hyper['T_kd'], loss_weight=hyper['w_kd'])
    )
    samples = samples_of([ONE_BOX] * 2)
    regs = (inputs['student_reg'], inputs['teacher_reg'], inputs['student_cls'])
    terms = loss(*regs, samples, targets)
    logits = zip(inputs['student_cls'], inputs['teacher_cls'], strict=True)
    terms['cls'] = sum(
        cls_loss(*pair, level, targets) for level, pair in enumerate(logits)
    )
    rtol = TOLERANCES[dtype][0]
    names = dict(main='loss_ld', region='loss_ld_vlr', cls='loss_kd')
    for name, stored in names.items():
        expected = float(sum(golden.outputs[stored]))
        assert terms[name].item() == pytest.approx(expected, rel=rtol)
    golden.grads['student'] = [
        *golden.grads['student_reg'],
        *golden.grads['student_cls'],
    ]
    for student, grad in zip(students, golden.grads['student'], strict=True):
        if not grad.any():
            student.grad = torch.zeros_like(student)
    assert_golden(terms['main'] + terms['region'] + terms['cls'], students, golden)


def test_divergence_of_closed_form_inputs() -> None:
    student, teacher = waves((8, 17), 0.9, 0.3), waves((8, 17), 0.7, 0.5, 1.0)
    value = float(mean_kl(student.double(), teacher.double(), 10.0).mean())
    # The expected value is written with six digits.
    assert value == pytest.approx(0.0339983, rel=2e-6)


def grid(size: int, stride: int, scale: int = 4) -> Tensor:
    """Return square anchors around the cells of a feature map, for one image."""
    centers = (torch.arange(size) + 0.5) * stride
    y, x = torch.meshgrid(centers, centers, indexing='ij')
    half = torch.tensor(scale * stride / 2)
    corners = torch.stack([x, y, x, y], -1).reshape(1, -1, 4)
    return corners + torch.stack([-half, -half, half, half])


def naive_region(anchors: list[Tensor], boxes: Tensor) -> Tensor:
    """Compute the weights of one image, one pair of anchor and box at a time."""

    def overlap(a: Any, b: Any) -> tuple[float, float, float]:
        width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
        iou = width * height / (sum(areas) - width * height)
        dx = (a[0] + a[2] - b[0] - b[2]) / 2
        dy = (a[1] + a[3] - b[1] - b[3]) / 2
        hull = (max(a[2], b[2]) - min(a[0], b[0])) ** 2
        hull += (max(a[3], b[3]) - min(a[1], b[1])) ** 2
        distance = dx**2 + dy**2
        return iou, iou - distance / hull, distance

    total = torch.zeros(sum(level.shape[1] for level in anchors))
    for box in boxes.tolist():
        near = []
        for level in anchors:
            found = [overlap(anchor, box) for anchor in level[0].tolist()]
            near += [iou for iou, _, _ in sorted(found, key=lambda f: f[2])[:9]]
        threshold = float(torch.tensor(near).mean() + torch.tensor(near).std())
        every = [overlap(a, box)[1] for level in anchors for a in level[0].tolist()]
        for index, diou in enumerate(every):
            if threshold / 4 <= diou < threshold:
                total[index] = max(total[index], diou)
    return total


def test_region_equals_naive_loops() -> None:
    anchors = [grid(8, 8), grid(4, 16)]
    boxes = torch.tensor([[[3.0, 5.0, 34.0, 31.0], [20.0, 22.0, 60.0, 50.0]]])
    found = torch.cat(valuable_region(anchors, boxes, torch.ones(1, 2) > 0), dim=1)[0]
    expected = naive_region(anchors, boxes[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert 0 < int((found > 0).sum()) < len(found)
    # Padding has no influence.
    padded = torch.cat([boxes, boxes + 5], 1)
    exist = torch.tensor([[True, True, False, False]])
    again = torch.cat(valuable_region(anchors, padded, exist), dim=1)[0]
    assert torch.equal(again, found)


def test_terms_and_gradients_are_zero_without_boxes() -> None:
    maps = [waves((2, 20, 8, 8), 0.3, 0.2).requires_grad_()]
    labels = [torch.full((2, 64), 3)]
    targets = targets_of(labels, 3, [grid(8, 8).expand(2, -1, -1)])
    samples = samples_of([ONE_BOX[:0]] * 2)
    logits = [waves((2, 3, 8, 8), 0.5, 0.1)]
    terms = LDLoss()(maps, [maps[0].detach().cos()], logits, samples, targets)
    (terms['main'] + terms['region']).backward()
    assert terms['main'] == terms['region'] == 0
    assert not maps[0].grad.any()


class OnOneLevel(LDLoss):
    """LD on a map of any size with one class; every third anchor is positive."""

    per_level = True

    def forward(self, student: Tensor, teacher: Tensor) -> Any:  # type: ignore[override]
        count, _, height, width = student.shape
        labels = (torch.arange(height * width) % 3).clamp(max=1).expand(count, -1)
        priors = grid(max(height, width), 8)[:, : height * width].expand(count, -1, -1)
        logits = student.new_zeros(count, 1, height, width)
        samples = samples_of([ONE_BOX] * count)
        targets = targets_of([labels], 1, [priors])
        return super().forward([student], [teacher], [logits], samples, targets)


class ClsOnOneLevel(LDClsLoss):
    def forward(self, student: Tensor, teacher: Tensor) -> Any:  # type: ignore[override]
        cells = student[0, 0].numel()
        labels = torch.arange(cells).remainder(4).expand(len(student), -1)
        return super().forward(student, teacher, 0, targets_of([labels], 3))


@pytest.mark.parametrize(
    ('loss', 'channels'), [(OnOneLevel(), 12), (ClsOnOneLevel(), 3)]
)
def test_contract(loss: Any, channels: int) -> None:
    student = waves((2, channels, 4, 3), 0.37, 0.11)
    teacher = waves((2, channels, 4, 3), 0.23, 0.17, 0.4)
    check_loss(loss, student, teacher)


def test_a_head_with_points_raises() -> None:
    maps = [torch.zeros(1, 20, 2, 2)]
    targets = targets_of([torch.zeros(1, 4).long()], 1, [torch.zeros(1, 4, 2)])
    with pytest.raises(ValueError, match='points instead of anchors; LD needs anchors'):
        LDLoss()(maps, maps, maps, samples_of([ONE_BOX]), targets)
