from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden import assert_golden, load_golden, waves
from torch import Tensor
from torch.nn import functional

from kdtoolbox.losses.detection import fgfi
from kdtoolbox.losses.detection.fgfi import FGFILoss, imitation_regions
from kdtoolbox.losses.detection.targets import DenseTargets
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

PRECISIONS = pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
SIZES, STRIDES = ((8, 9), (4, 5)), (16, 32)
BOXES = [
    torch.tensor([[3.0, 5.0, 60.0, 58.0], [70.0, 40.0, 130.0, 80.0]]),
    # One pixel larger, the box would belong to the second level.
    torch.tensor([[10.0, 2.0, 121.5, 113.5]]),
]


def samples_of(boxes: Sequence[Tensor]) -> list:
    instances = (
        SimpleNamespace(bboxes=box, labels=torch.zeros(len(box), dtype=torch.long))
        for box in boxes
    )
    return [SimpleNamespace(gt_instances=instance) for instance in instances]


def targets_of(priors: list[Tensor], strides: Sequence[int] = STRIDES) -> DenseTargets:
    return DenseTargets(
        labels=[],
        label_weights=[],
        priors=priors,
        strides=list(strides),
        num_classes=1,
        avg_factor=torch.ones(()),
        decode=lambda level, raw: raw,
        gt_inds=[],
    )


def points(size: tuple[int, int], stride: int, images: int = 2) -> Tensor:
    """Return the centres (N, H * W, 2) of the cells of a map."""
    rows, columns = ((torch.arange(length) + 0.5) * stride for length in size)
    return torch.cartesian_prod(rows, columns).flip(1).expand(images, -1, -1)


def anchors(size: tuple[int, int], stride: int, images: int = 2) -> Tensor:
    """Return two anchors per cell, a square and a wide one, (N, H * W * 2, 4)."""
    sides = torch.tensor([[4.0, 4.0], [6.0, 2.0]]) * stride
    centers = points(size, stride, images)[:, :, None]
    return torch.cat([centers - sides / 2, centers + sides / 2], -1).flatten(1, 2)


def pyramid(phase: float, a: float) -> list[Tensor]:
    return [waves((2, 3, *size), a, 0.11, phase).double() for size in SIZES]


@PRECISIONS
def test_legacy_loss_equals_golden_values_of_the_port_in_defeat(
    dtype: torch.dtype,
) -> None:
    golden = load_golden('fgfi', 'two_levels', dtype)
    students = [student.requires_grad_() for student in golden.inputs['student']]
    aligned = [
        functional.conv2d(
            student,
            golden.params[f'{level}.weight'],
            golden.params[f'{level}.bias'],
            padding=1,
        )
        for level, student in enumerate(students)
    ]
    priors = [level.expand(2, -1, -1) for level in golden.inputs['anchors']]
    loss = MODELS.build(
        dict(
            type='kdtoolbox.FGFILoss',
            threshold=golden.hyper['phi'],
            legacy_defeat=True,
            loss_weight=golden.hyper['weight'],
        )
    )
    samples = samples_of(golden.inputs['gt_bboxes'])
    value = loss(aligned, golden.inputs['teacher'], samples, targets_of(priors))
    assert_golden(value, students, golden)


def naive_iou(a: Sequence[float], b: Sequence[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return width * height / (sum(areas) - width * height)


def naive(
    students: list[Tensor], teachers: list[Tensor], priors: list[Tensor], legacy: bool
) -> Tensor:
    """Compute the unweighted loss, one pair of anchor and box at a time."""
    chosen = set()
    for n, boxes in enumerate(BOXES):
        for box in boxes.tolist():
            side = ((box[2] - box[0] + 1) * (box[3] - box[1] + 1)) ** 0.5
            best: dict[tuple, float] = {}
            for level in [side >= 112] if legacy else range(len(students)):
                for index, anchor in enumerate(priors[level][n].tolist()):
                    key = (level, n, index // 2)
                    best[key] = max(best.get(key, 0), naive_iou(anchor, box))
            chosen |= {key for key, iou in best.items() if iou > max(best.values()) / 2}
    errors: list[list] = [[] for _ in students]
    for level, n, cell in chosen:
        pair = students[level][n], teachers[level][n]
        s, t = (x.flatten(1)[:, cell] for x in pair)
        errors[level].append((s - t).square().sum())
    if legacy:
        means = [sum(e) / (2 * 3 * len(e)) for e in errors if e]
        return sum(means) / len(students)
    return sum(map(sum, errors)) / (2 * len(chosen))


@pytest.mark.parametrize('legacy', [False, True])
def test_loss_and_gradients_equal_naive_loops(legacy: bool) -> None:
    priors = [anchors(*level) for level in zip(SIZES, STRIDES, strict=True)]
    loss = FGFILoss(legacy_defeat=legacy, loss_weight=1.0)
    targets, samples = targets_of(priors), samples_of(BOXES)
    results = []
    for compute in (
        lambda s, t: loss(s, t, samples, targets),
        lambda s, t: naive(s, t, priors, legacy),
    ):
        students = [level.requires_grad_() for level in pyramid(0.0, 0.37)]
        value = compute(students, pyramid(0.4, 0.23))
        value.backward()
        grads = [torch.zeros(()) if s.grad is None else s.grad for s in students]
        results.append([value, *grads])
    for found, expected in zip(*results, strict=True):
        expected = expected.expand(found.shape).to(found.dtype)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_regions_do_not_depend_on_the_number_of_boxes_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    priors = [anchors(*level) for level in zip(SIZES, STRIDES, strict=True)]
    boxes = torch.cat([BOXES[0], BOXES[1], BOXES[1] + 5]).expand(2, -1, -1)
    exist = torch.tensor([[True, True, False, False], [True, False, True, True]])
    at_once = imitation_regions(priors, boxes, exist)
    monkeypatch.setattr(fgfi, 'BOXES_AT_ONCE', 1)
    in_turn = imitation_regions(priors, boxes, exist)
    # Padding has no influence.
    alone = imitation_regions([x[:1] for x in priors], BOXES[0][None], exist[:1, :2])
    for level, found in enumerate(at_once):
        assert torch.equal(found, in_turn[level])
        assert torch.equal(found[0], alone[level][0])
        assert 0 < found.sum() < found.numel()


def test_a_box_without_overlap_selects_no_anchor() -> None:
    boxes = torch.tensor([[[900.0, 900.0, 950.0, 950.0]]])
    [region] = imitation_regions([anchors((4, 4), 8, 1)], boxes, torch.ones(1, 1) > 0)
    assert not region.any()


def test_points_are_treated_as_anchors_of_eight_strides() -> None:
    maps = [level.requires_grad_() for level in pyramid(0.0, 0.37)]
    centers = [points(*level) for level in zip(SIZES, STRIDES, strict=True)]
    half = 4 * torch.tensor(STRIDES)
    priors = [torch.cat([x - h, x + h], -1) for x, h in zip(centers, half, strict=True)]
    values = [
        FGFILoss()(maps, pyramid(0.4, 0.23), samples_of(BOXES), targets_of(p))
        for p in (centers, priors)
    ]
    assert values[0] == values[1] > 0


@pytest.mark.parametrize('legacy', [False, True])
def test_loss_and_gradients_are_zero_without_boxes(legacy: bool) -> None:
    maps = [level.requires_grad_() for level in pyramid(0.0, 0.37)]
    priors = [anchors(*level) for level in zip(SIZES, STRIDES, strict=True)]
    samples = samples_of([BOXES[0][:0]] * 2)
    loss = FGFILoss(legacy_defeat=legacy)
    value = loss(maps, pyramid(0.4, 0.23), samples, targets_of(priors))
    value.backward()
    assert value == 0
    assert not any(level.grad.any() for level in maps)


class OnOneLevel(FGFILoss):
    """FGFI on a map of any size, with a box in each image."""

    def forward(self, student: Tensor, teacher: Tensor) -> Any:  # type: ignore[override]
        count, _, *size = student.shape
        priors = [anchors(tuple(size), 16, count)]
        samples = samples_of([BOXES[0][:1]] * count)
        return super().forward([student], [teacher], samples, targets_of(priors))


@pytest.mark.parametrize('legacy', [False, True])
def test_contract(legacy: bool) -> None:
    student, teacher = waves((2, 3, 6, 5), 0.37, 0.11), waves((2, 3, 6, 5), 0.23, 0.17)
    check_loss(OnOneLevel(legacy_defeat=legacy), student, teacher)


def test_maps_that_do_not_match_the_anchors_raise() -> None:
    priors = [anchors(*level) for level in zip(SIZES, STRIDES, strict=True)]
    maps, samples = pyramid(0.0, 0.37), samples_of(BOXES)
    with pytest.raises(
        ValueError, match="anchors on 2 levels and the wires have 1.*'neck"
    ):
        FGFILoss()(maps[:1], maps[:1], samples, targets_of(priors))
    with pytest.raises(ValueError, match='level 0: .* 40 anchors.* 8 x 9 positions'):
        FGFILoss()(maps, maps, samples, targets_of(priors[::-1]))
    with pytest.raises(ValueError, match='differ in shape'):
        FGFILoss()(maps, [x[:, :2] for x in maps], samples, targets_of(priors))
