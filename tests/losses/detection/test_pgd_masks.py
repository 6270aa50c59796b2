from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden import waves
from torch import Tensor

from kdtoolbox.losses.detection.pgd_masks import (
    JITTER,
    guidance_masks,
    prediction_quality,
    teacher_masks,
)
from kdtoolbox.losses.detection.targets import DenseTargets


def cells(height: int, width: int, stride: int) -> Tensor:
    """Return the centres (P, 2) of the cells of a feature map."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    return (torch.stack([x, y], -1).reshape(-1, 2) + 0.5) * stride


# Two overlapping boxes; boxes with one cell centre, a row of them, and none.
BOXES = torch.tensor(
    [
        [[3.0, 5, 44, 40], [20, 12, 60, 61], [0, 0, 8, 7]],
        [[0.0, 25, 64, 30], [9, 9, 11, 11], [0, 0, 0, 0]],
    ]
)
EXIST = torch.tensor([[True] * 3, [True, True, False]])
CENTERS = torch.cat([cells(8, 8, 8), cells(4, 4, 16)]).expand(2, -1, -1)
QUALITY = waves((2, 3, 80), 0.37, 0.11).sigmoid()


def naive_masks(
    boxes: Tensor, centers: Tensor, quality: Tensor, topk: int
) -> tuple[Tensor, Tensor]:
    """Compute the masks of one image, one box and one cell at a time."""
    foreground = torch.zeros(len(centers), dtype=torch.float64)
    background = torch.ones(len(centers), dtype=torch.float64)
    for box, rating in zip(boxes.tolist(), quality, strict=True):
        inside = [
            index
            for index, (x, y) in enumerate(centers.tolist())
            if box[0] <= x <= box[2] and box[1] <= y <= box[3]
        ]
        background[inside] = 0
        ranked = sorted(inside, key=lambda index: -float(rating[index]))[:topk]
        chosen = centers[[i for i in ranked if rating[i] > 0]].double()
        if not len(chosen):
            continue
        offset = chosen - chosen.mean(0)
        covariance = offset.T @ offset / len(chosen) + JITTER * torch.eye(2).double()
        inverse = torch.linalg.inv(covariance)
        for index in inside:
            step = centers[index].double() - chosen.mean(0)
            weight = torch.exp(-(step @ inverse @ step) / 2)
            if weight > 1.6e-38:
                foreground[index] = max(foreground[index], weight)
    return foreground, background


@pytest.mark.parametrize('topk', [1, 2, 9, 200])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_masks_equal_naive_loops(topk: int, dtype: torch.dtype) -> None:
    quality = QUALITY.clone()
    quality[0, 0, :70] = 0  # Fewer than `topk` cells have a quality.
    parts = (BOXES.to(dtype), EXIST, CENTERS.to(dtype), quality.to(dtype))
    found = guidance_masks(*parts, topk)
    rtol = 1e-9 if dtype == torch.float64 else 1e-3
    for image in range(2):
        real = EXIST[image]
        expected = naive_masks(
            BOXES[image, real], CENTERS[image], quality[image, real], topk
        )
        for mask, goal in zip(found, expected, strict=True):
            assert mask.dtype == dtype
            torch.testing.assert_close(
                mask[image].double(), goal, rtol=rtol, atol=1e-12
            )
    assert found[0][0].count_nonzero() > found[0][1].count_nonzero() > 0


def test_collinear_cells_far_from_the_origin_keep_their_precision() -> None:
    # In float32, rounding would dominate the determinant of this covariance.
    centers = torch.arange(1200.0, 1300.0, 8).repeat(2, 1).T[None]
    off = torch.tensor([[[1250.0, 1251.0]]])
    boxes = torch.tensor([[[1000.0, 1000.0, 1400.0, 1400.0]]])
    quality = torch.cat([torch.ones(1, 1, 13), torch.zeros(1, 1, 1)], 2)
    parts = (boxes, torch.ones(1, 1) > 0, torch.cat([centers, off], 1), quality)
    weights, _ = guidance_masks(*parts, topk=13)
    expected, _ = naive_masks(boxes[0], parts[2][0], quality[0], 13)
    torch.testing.assert_close(weights[0].double(), expected, rtol=1e-2, atol=1e-9)
    assert weights[0, 6] == 1
    assert weights[0, -1] < 1e-30


def test_a_box_that_covers_one_cell_gives_weight_to_this_cell_only() -> None:
    box, exist = torch.tensor([[[0.0, 0.0, 8.0, 7.0]]]), torch.ones(1, 1) > 0
    weights, background = guidance_masks(
        box, exist, CENTERS[:1], QUALITY[:1, :1], topk=9
    )
    assert weights[0].nonzero().flatten().tolist() == [0]
    assert weights[0, 0] == 1
    assert background.sum() == 79


def test_all_cells_are_background_without_boxes() -> None:
    weights, background = guidance_masks(
        BOXES[:, :0], EXIST[:, :0], CENTERS, QUALITY[:, :0], topk=9
    )
    assert not weights.any()
    assert background.all()
    weights, _ = guidance_masks(BOXES, EXIST, CENTERS, 0 * QUALITY, topk=9)
    assert not weights.any()


def naive_quality(score: float, a: Any, b: Any, exponent: float) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    iou = width * height / (sum(areas) - width * height)
    return score ** (1 - exponent) * iou**exponent


def test_quality_equals_naive_loops() -> None:
    logits = waves((2, 2, 3, 5), 0.9, 0.3).double()
    first = 40 * waves((2, 2, 5, 2), 0.7, 0.2).sigmoid().double()
    predicted = torch.cat([first, first + 30], -1)
    labels = torch.tensor([[0, 2, 1], [1, 2, 0]])
    boxes = BOXES.double()
    boxes[1, 2] = torch.tensor([100.0, 100.0, 120.0, 130.0])  # Without any overlap.
    quality = prediction_quality(logits, predicted, boxes, labels, 0.8)
    assert tuple(quality.shape) == (2, 3, 5)
    for n, g, p in torch.cartesian_prod(*map(torch.arange, quality.shape)).tolist():
        expected = max(
            naive_quality(
                float(logits[n, a, labels[n, g], p].sigmoid()),
                predicted[n, a, p].tolist(),
                boxes[n, g].tolist(),
                0.8,
            )
            for a in range(2)
        )
        assert float(quality[n, g, p]) == pytest.approx(expected, rel=1e-9)


def scene(anchors: int) -> Any:
    """Return two levels with three classes; raw boxes are offsets of the corners."""
    points = [cells(8, 8, 8).expand(2, -1, -1), cells(4, 4, 16).expand(2, -1, -1)]
    sizes = torch.arange(1, anchors + 1).mul(8.0).reshape(-1, 1)
    rows = [
        torch.cat([x[:, :, None] - sizes, x[:, :, None] + sizes], -1) for x in points
    ]
    rows = [x.reshape(2, -1, 4) for x in rows]
    targets = DenseTargets(
        labels=[],
        label_weights=[],
        priors=rows if anchors > 1 else points,
        strides=[8, 16],
        num_classes=3,
        avg_factor=torch.ones(()),
        decode=lambda level, raw: rows[level] + raw,
        gt_inds=[],
    )
    maps = [
        [waves((2, anchors * k, x, x), a, 0.1) for x in (8, 4)]
        for k, a in ((3, 0.7), (4, 0.3))
    ]
    samples = [
        SimpleNamespace(
            gt_instances=SimpleNamespace(
                bboxes=box[exist], labels=torch.tensor([2, 0, 1])[exist]
            )
        )
        for box, exist in zip(BOXES, EXIST, strict=True)
    ]
    return SimpleNamespace(cls=maps[0], reg=maps[1], targets=targets, samples=samples)


@pytest.mark.parametrize('anchors', [1, 2])
def test_masks_of_the_teachers_predictions(anchors: int) -> None:
    batch = scene(anchors)
    masks = teacher_masks(batch.cls, batch.reg, batch.samples, batch.targets, 0.6, 3)
    quality = torch.zeros(2, 3, 80)
    for n, g, p in torch.cartesian_prod(*map(torch.arange, quality.shape)).tolist():
        level, cell = divmod(p, 64)
        side = (8, 4)[level]
        y, x = divmod(cell, side)
        for a in range(anchors if EXIST[n, g] else 0):
            score = batch.cls[level][n, 3 * a + [2, 0, 1][g], y, x].sigmoid()
            raw = batch.reg[level][n, 4 * a : 4 * a + 4, y, x]
            half = 8.0 * (a + 1)
            box = CENTERS[n, p].repeat(2) + torch.tensor([-half, -half, half, half])
            rated = naive_quality(float(score), (box + raw).tolist(), BOXES[n, g], 0.6)
            quality[n, g, p] = max(quality[n, g, p], float(rated))
    expected = guidance_masks(BOXES, EXIST, CENTERS, quality, 3)
    for found, goal in zip(zip(*masks, strict=True), expected, strict=True):
        assert [tuple(x.shape) for x in found] == [(2, 8, 8), (2, 4, 4)]
        flat = torch.cat([x.flatten(1) for x in found], 1)
        torch.testing.assert_close(flat, goal, rtol=1e-4, atol=1e-6)


def test_predictions_of_another_head_raise() -> None:
    batch = scene(2)
    with pytest.raises(ValueError, match='level 0: .*do not fit.*128 priors of 3 cla'):
        teacher_masks(
            [x[:, :3] for x in batch.cls],
            batch.reg,
            batch.samples,
            batch.targets,
            0.6,
            3,
        )
