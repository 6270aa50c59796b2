import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from golden import waves
from naive_pooling import naive_pool
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.detection import gid, gid_instances
from kdtoolbox.losses.detection.gid import GIDLoss, relation_error
from kdtoolbox.losses.detection.gid_instances import general_instances
from kdtoolbox.losses.detection.targets import DenseTargets
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STRIDES, SIZES, SHAPE = [8, 16], [(6, 7), (3, 4)], (48, 56)
ANCHORS, CLASSES = 2, 3
KINDS = ('', '_cls', '_reg')
WIRES = [f'{side}{kind}' for kind in KINDS for side in ('student', 'teacher')]


def anchors_of(size: tuple[int, int], stride: int) -> Tensor:
    """Return a square and a wide anchor around each cell, (1, M, 4)."""
    half = stride * torch.tensor([[-2.0, -2, 2, 2], [-3, -1.5, 3, 1.5]])
    rows, columns = ((torch.arange(side) + 0.5) * stride for side in size)
    y, x = torch.meshgrid(rows, columns, indexing='ij')
    return (torch.stack([x, y, x, y], -1)[:, :, None] + half).reshape(1, -1, 4)


def decode(priors: list[Tensor], level: int, raw: Tensor) -> Tensor:
    return priors[level] + STRIDES[level] * raw


def targets_of(count: int, sizes: list[tuple[int, int]]) -> DenseTargets:
    strides = STRIDES[: len(sizes)]
    priors = [
        anchors_of(size, stride).expand(count, -1, -1)
        for size, stride in zip(sizes, strides, strict=True)
    ]
    return DenseTargets(
        labels=[],
        label_weights=[],
        priors=priors,
        strides=strides,
        num_classes=CLASSES,
        avg_factor=torch.ones(()),
        decode=partial(decode, priors),
        gt_inds=[],
    )


def make_wires(dtype: torch.dtype = torch.float64) -> dict[str, list[Tensor]]:
    channels = dict(student=4, cls=ANCHORS * CLASSES, reg=ANCHORS * 4)
    wires = {}
    for index, name in enumerate(WIRES):
        width = channels.get(name.split('_')[-1], 4)
        rate = 0.3 + 0.11 * index
        wires[name] = [
            waves((2, width, *size), rate, 0.0171, float(index)).to(dtype)
            for size in SIZES
        ]
    [x.requires_grad_() for name in WIRES[::2] for x in wires[name]]
    return wires


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union else 0.0


def predictions(wires: dict, image: int) -> Iterator[tuple]:
    """Yield each anchor of an image, its level and its rows of the four wires."""
    for level, stride in enumerate(STRIDES):
        anchors = anchors_of(SIZES[level], stride)[0].tolist()
        rows = [
            wires[name][level][image].permute(1, 2, 0).reshape(len(anchors), -1)
            for name in WIRES[2:]
        ]
        for index, anchor in enumerate(anchors):
            yield anchor, level, [row[index] for row in rows]


def naive_instances(wires: dict, image: int, candidates: int) -> list[list[float]]:
    """Find the instances of one image, best first."""
    scored = []
    for anchor, level, rows in predictions(wires, image):
        probabilities = ([sigmoid(x) for x in row.tolist()] for row in rows[:2])
        gaps = [t - s for s, t in zip(*probabilities, strict=True)]
        gap = max(gaps, key=abs)
        raw = rows[3 if gap >= 0 else 2].tolist()
        box = [a + STRIDES[level] * r for a, r in zip(anchor, raw, strict=True)]
        limits = (SHAPE[1], SHAPE[0]) * 2
        box = [min(max(x, 0.0), m) for x, m in zip(box, limits, strict=True)]
        scored.append((abs(gap), box))
    scored.sort(key=lambda found: -found[0])
    kept: list[list[float]] = []
    for _, box in scored[:candidates]:
        if all(iou(box, other) <= 0.3 for other in kept):
            kept.append(box)
    return [b for b in kept[:10] if b[2] - b[0] >= 10 and b[3] - b[1] >= 10]


def naive_distances(rows: list[Tensor]) -> Tensor:
    distances = [
        (a - b).square().sum().sqrt()
        for i, a in enumerate(rows)
        for j, b in enumerate(rows)
        if i != j
    ]
    return torch.stack(distances) / torch.stack(distances).mean()


def naive(wires: dict, candidates: int, cells: int) -> dict[str, Tensor]:
    """Compute the three terms with the authors' weights, one image at a time."""
    pooled: list[list[Tensor]] = [[], []]
    response, matched = torch.zeros(()).double(), 0
    for image in range(2):
        instances = naive_instances(wires, image, candidates)
        for box in instances:
            scale = math.sqrt((box[2] - box[0]) * (box[3] - box[1])) / 112
            level = min(max(math.floor(math.log2(scale)), 0), 1)
            for side, name in enumerate(WIRES[:2]):
                maps = wires[name][level][image]
                pooled[side].append(naive_pool(maps, STRIDES[level], box, cells))
        for anchor, _, rows in predictions(wires, image):
            if any(iou(anchor, box) >= 0.5 for box in instances):
                matched += 1
                s, p = rows[0], rows[1].sigmoid()
                entropy = -(p * s.sigmoid().log() + (1 - p) * (-s).sigmoid().log())
                gap = (rows[2] - rows[3]).abs()
                error = torch.where(gap < 0.1, gap**2 / 0.2, gap - 0.05)
                response = response + 0.1 * entropy.sum() + error.sum()
    count = len(pooled[0])
    assert count > 4
    assert matched > 4
    squares = sum(((s - t) ** 2).sum() for s, t in zip(*pooled, strict=True))
    gap = (naive_distances(pooled[0]) - naive_distances(pooled[1])).abs()
    relation = torch.where(gap < 1, gap**2 / 2, gap - 0.5).sum() / (count**2 - count)
    return dict(
        feature=5e-4 * squares / (count * cells**2),
        relation=40 * relation,
        response=response / matched,
    )


@pytest.mark.parametrize(
    ('dtype', 'candidates', 'chunk'),
    [(torch.float64, 3000, 8), (torch.float64, 20, 1), (torch.float32, 3000, 8)],
)
def test_terms_and_gradients_equal_naive_loops(
    dtype: torch.dtype, candidates: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gid_instances, 'CANDIDATES', candidates)
    monkeypatch.setattr(gid_instances, 'SLICE', chunk)
    monkeypatch.setattr(gid, 'CELLS', 2)
    wires, reference = make_wires(dtype), make_wires()
    loss = MODELS.build(dict(type='kdtoolbox.GIDLoss'))
    terms = loss(**wires, targets=targets_of(2, SIZES), batch_input_shape=SHAPE)
    expected = naive(reference, candidates, cells=2)
    rtol = 1e-9 if dtype == torch.float64 else 2e-5
    for name, value in terms.items():
        assert value.dtype == dtype
        torch.testing.assert_close(value.double(), expected[name], rtol=rtol, atol=0)
    torch.stack(list(terms.values())).sum().backward()
    torch.stack(list(expected.values())).sum().backward()
    for wire in WIRES[::2]:
        for x, y in zip(wires[wire], reference[wire], strict=True):
            grad = torch.zeros_like(y) if y.grad is None else y.grad
            atol = 10 * rtol * float(grad.abs().max())
            torch.testing.assert_close(x.grad.double(), grad, rtol=0, atol=atol)
    assert all(reference[wire][0].grad.any() for wire in WIRES[::2])


def test_feature_term_equals_that_of_roi_align() -> None:
    from mmcv.ops import roi_align

    wires = make_wires(torch.float32)
    boxes, exist = find(wires)
    image, _ = exist.nonzero(as_tuple=True)
    rois = torch.cat([image[:, None], boxes[exist]], dim=1)
    # All boxes are small enough for the first level.
    gap = wires['student'][0] - wires['teacher'][0]
    pooled = roi_align(gap, rois, 10, 1 / STRIDES[0], 2, 'avg', True)
    expected = 5e-4 * pooled.square().sum() / (len(rois) * 100)
    terms = GIDLoss()(**wires, targets=targets_of(2, SIZES), batch_input_shape=SHAPE)
    torch.testing.assert_close(terms['feature'], expected, rtol=1e-5, atol=0)


def find(wires: dict) -> tuple[Tensor, Tensor]:
    logits = list(zip(wires['student_cls'], wires['teacher_cls'], strict=True))
    regs = list(zip(wires['student_reg'], wires['teacher_reg'], strict=True))
    return general_instances(logits, regs, targets_of(2, SIZES), SHAPE)


def test_instances_have_fixed_shapes_and_no_gradient() -> None:
    boxes, exist = find(make_wires())
    assert boxes.shape == (2, 10, 4)
    assert exist.shape == (2, 10)
    assert not boxes.requires_grad
    # NMS removes some of the ten per image, others are too small.
    assert 4 < int(exist.sum()) < 20


def test_boxes_are_decoded_in_full_precision_under_autocast() -> None:
    wires, targets = make_wires(torch.float32), targets_of(2, SIZES)
    priors = targets.priors

    def decode_distribution(level: int, raw: Tensor) -> Tensor:
        # As the heads of GFL, whose boxes are the result of a linear map.
        return priors[level] + functional.linear(raw, STRIDES[level] * torch.eye(4))

    targets = replace(targets, decode=decode_distribution)
    logits, regs = (
        list(zip(wires[f'student_{kind}'], wires[f'teacher_{kind}'], strict=True))
        for kind in ('cls', 'reg')
    )
    expected, _ = general_instances(logits, regs, targets, SHAPE)
    with torch.autocast('cpu', torch.bfloat16):
        found, _ = general_instances(logits, regs, targets, SHAPE)
    assert torch.equal(found, expected)


def test_terms_and_gradients_are_zero_if_all_boxes_are_too_small() -> None:
    wires = make_wires()
    for name in ('student_reg', 'teacher_reg'):
        centers = [decode_to_points(*args) for args in zip(SIZES, STRIDES, strict=True)]
        wires[name] = [c.expand(2, -1, -1, -1).clone() for c in centers]
    [x.requires_grad_() for x in wires['student_reg']]
    assert not find(wires)[1].any()
    terms = GIDLoss()(**wires, targets=targets_of(2, SIZES), batch_input_shape=SHAPE)
    torch.stack(list(terms.values())).sum().backward()
    assert not any(terms.values())
    for name in WIRES[::2]:
        assert all(x.grad is not None and not x.grad.any() for x in wires[name])


def decode_to_points(size: tuple[int, int], stride: int) -> Tensor:
    """Return raw boxes (1, A * 4, H, W) that shrink each anchor to its centre."""
    anchors = anchors_of(size, stride).double()
    centers = (anchors[..., :2] + anchors[..., 2:]) / 2
    raw = (centers.repeat(1, 1, 2) - anchors) / stride
    return raw.reshape(1, *size, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize(('count', 'positive'), [(0, False), (2, False), (3, True)])
def test_relation_is_zero_below_three_instances(count: int, positive: bool) -> None:
    student = waves((5, 6), 0.4, 0.3).requires_grad_()
    value = relation_error(student, waves((5, 6), 0.7, 0.2), torch.arange(5) < count)
    value.backward()
    assert bool(value > 0) == positive
    assert student.grad.isfinite().all()
    assert bool(student.grad[:3].any()) == positive
    assert not student.grad[3:].any()


def test_relation_of_equal_rows_is_finite() -> None:
    student = torch.ones(4, 6).requires_grad_()
    value = relation_error(student, waves((4, 6), 0.7, 0.2), torch.ones(4) > 0)
    value.backward()
    assert value > 0
    assert not student.grad.any()


@cache
def fixed_wires(dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: maps[0].detach() for name, maps in make_wires(dtype).items()}


class OnOneLevel(nn.Module):
    """GID with one given pair of wires; the other wires are cut to its size."""

    def __init__(self, kind: str, **weights: float) -> None:
        super().__init__()
        self.loss = GIDLoss(**weights)
        self.kind = kind

    @property
    def loss_weight(self) -> Any:
        return self.loss.loss_weight

    @loss_weight.setter
    def loss_weight(self, value: float) -> None:
        self.loss.loss_weight = value

    def forward(self, student: Tensor, teacher: Tensor) -> Any:
        count, _, height, width = student.shape
        wires = {
            name: [maps[:count, :, :height, :width]]
            for name, maps in fixed_wires(student.dtype).items()
        }
        wires[f'student{self.kind}'] = [student]
        wires[f'teacher{self.kind}'] = [teacher]
        targets = targets_of(count, [(height, width)])
        return self.loss(**wires, targets=targets, batch_input_shape=SHAPE)


FEATURES_ALONE = dict(cls_weight=0.0, reg_weight=0.0)
BOXES_ALONE = dict(cls_weight=0.0, feature_weight=0.0, relation_weight=0.0)


@pytest.mark.parametrize(
    ('loss', 'channels', 'zero_at_equality'),
    [
        (OnOneLevel(''), 4, False),
        (OnOneLevel('', **FEATURES_ALONE), 4, True),
        (OnOneLevel('_cls'), ANCHORS * CLASSES, False),
        (OnOneLevel('_reg', **BOXES_ALONE), ANCHORS * 4, True),
    ],
    ids=['all', 'features', 'cls', 'reg'],
)
def test_contract(loss: OnOneLevel, channels: int, zero_at_equality: bool) -> None:
    student = waves((2, channels, 3, 3), 0.37, 0.11)
    teacher = waves((2, channels, 3, 3), 0.23, 0.17, 0.4)
    # The test with naive loops checks the gradients of the predictions.
    checks = dict(zero_at_equality=zero_at_equality, gradcheck=not loss.kind)
    check_loss(loss, student, teacher, **checks)


def test_maps_of_different_sizes_and_heads_with_points_raise() -> None:
    wires = make_wires()
    arguments: dict = dict(targets=targets_of(2, SIZES), batch_input_shape=SHAPE)
    reversed_maps = dict(student=wires['student'][::-1], teacher=wires['teacher'][::-1])
    with pytest.raises(ValueError, match=r'level 0: features \(3, 4\) and logits'):
        GIDLoss()(**wires | reversed_maps, **arguments)
    with pytest.raises(ValueError, match='differ in shape'):
        GIDLoss()(**wires | dict(student=wires['student_cls']), **arguments)
    points = [x[..., :2] for x in arguments['targets'].priors]
    arguments['targets'].priors[:] = points
    with pytest.raises(
        ValueError, match='points instead of anchors; GID needs anchors'
    ):
        GIDLoss()(**wires, **arguments)
