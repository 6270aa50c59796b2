from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden import assert_golden, load_golden, waves
from torch import Tensor, nn

from kdtoolbox.losses.detection.pgd import (
    PGDClsLoss,
    PGDRegLoss,
    pgd_cls_terms,
    pgd_reg_terms,
)
from kdtoolbox.losses.detection.pgd_masks import teacher_masks
from kdtoolbox.losses.detection.targets import DenseTargets
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)
FOREGROUND = waves((2, 6, 5), 0.9, 0.4).relu().double()
MASKS = (FOREGROUND, (FOREGROUND == 0).double())
BOXES = [
    torch.tensor([[2.0, 3.0, 20.0, 30.0], [10.0, 10.0, 39.0, 47.0]]),
    torch.tensor([[0.0, 0.0, 15.0, 12.0]]),
]
LOGITS = waves((2, 3, 6, 5), 0.7, 0.3)
DISTANCES = waves((2, 4, 6, 5), 0.5, 0.2) + 2


def samples_of(boxes: list[Tensor]) -> list:
    return [
        SimpleNamespace(
            gt_instances=SimpleNamespace(bboxes=box, labels=torch.arange(len(box)))
        )
        for box in boxes
    ]


def targets_of(count: int, sizes: list[tuple[int, int]]) -> DenseTargets:
    """A head of points: the predictions are distances in strides of 8 and 16."""
    points = []
    for level, (height, width) in enumerate(sizes):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
        rows = (torch.stack([x, y], -1).reshape(1, -1, 2) + 0.5) * 8 * 2**level
        points.append(rows.expand(count, -1, -1))

    def decode(level: int, raw: Tensor) -> Tensor:
        first, last = (raw.abs() * 8 * 2**level).split(2, -1)
        return torch.cat([points[level] - first, points[level] + last], -1)

    return DenseTargets(
        labels=[],
        label_weights=[],
        priors=points,
        strides=[8, 16],
        num_classes=3,
        avg_factor=torch.ones(()),
        decode=decode,
        gt_inds=[],
    )


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('case', ['cls_n1', 'cls_n3_per_image_mean', 'reg'])
def test_golden(case: str, dtype: torch.dtype) -> None:
    golden = load_golden('pgd', case, dtype)
    student, hyper = golden.inputs['student'].requires_grad_(), golden.hyper
    teacher, foreground = golden.inputs['teacher'], golden.inputs['mask_fg'][:, 0]
    if case == 'reg':
        terms = pgd_reg_terms(student, teacher, foreground, hyper['temp'])
        factors = [hyper['gamma'], hyper['delta']]
    else:
        masks = (foreground, golden.inputs['mask_bg'][:, 0])
        terms = pgd_cls_terms(student, teacher, masks, hyper['temp_s'])
        factors = [hyper['alpha'], hyper['beta'], hyper['delta']]
    loss = sum(f * term for f, term in zip(factors, terms.values(), strict=True))
    assert_golden(loss, [student], golden)


def naive_cls(student: Tensor, teacher: Tensor, legacy: bool) -> list[Tensor]:
    """The terms by loops over the images and the positions."""
    count, channels, height, width = student.shape
    totals = [torch.zeros((), dtype=torch.float64)] * 3
    for n in range(count):
        mine, theirs = (
            height * width * (x[n].abs().mean(0) / 0.8).flatten().softmax(0)
            for x in (student, teacher)
        )
        totals[2] = totals[2] + (mine - theirs).abs().sum() / count
        for p in range(height * width):
            y, x = divmod(p, width)
            error, shift = naive_position(student[n, :, y, x], teacher[n, :, y, x])
            totals[2] = totals[2] + shift / (count * height * width)
            for index, mask in enumerate(MASKS):
                for other in range(count) if legacy else [n]:
                    weight = mask[other, y, x] / mask[other].count_nonzero()
                    totals[index] = totals[index] + weight * theirs[p] * error / count
    return totals


def naive_reg(student: Tensor, teacher: Tensor) -> list[Tensor]:
    totals = [torch.zeros((), dtype=torch.float64)] * 2
    positions = MASKS[0].nonzero().tolist()
    for n, y, x in positions:
        error, shift = naive_position(student[n, :, y, x], teacher[n, :, y, x])
        weight = MASKS[0][n, y, x] / student.shape[1]
        totals[0] = totals[0] + weight * error / len(positions)
        totals[1] = totals[1] + shift / len(positions)
    return totals


def naive_position(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    mine, theirs = (len(v) * (v.abs() / 0.8).softmax(0) for v in (student, teacher))
    return (theirs * (student - teacher) ** 2).sum(), (mine - theirs).abs().sum()


@pytest.mark.parametrize('kind', ['cls', 'legacy', 'reg'])
def test_naive_loops(kind: str) -> None:
    student, teacher = STUDENT.double().requires_grad_(), TEACHER.double()
    reference = STUDENT.double().requires_grad_()
    legacy = kind == 'legacy'
    if kind == 'reg':
        expected = naive_reg(reference, teacher)
        found = pgd_reg_terms(student, teacher, MASKS[0])
    else:
        expected = naive_cls(reference, teacher, legacy)
        found = pgd_cls_terms(student, teacher, MASKS, legacy_cross_image=legacy)
    torch.testing.assert_close(torch.stack(list(found.values())), torch.stack(expected))
    sum(found.values()).backward()
    sum(expected).backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-9, atol=1e-12)


def two_levels() -> dict[str, Any]:
    maps = [
        waves((2, 4, *size), a, 0.1) for size in ((6, 5), (3, 3)) for a in (0.3, 0.7)
    ]
    return dict(
        student=[maps[0].requires_grad_(), maps[2].requires_grad_()],
        teacher=[maps[1], maps[3]],
        teacher_cls=[LOGITS, LOGITS[..., :3, :3]],
        teacher_reg=[DISTANCES, DISTANCES[..., :3, :3]],
        data_samples=samples_of(BOXES),
        targets=targets_of(2, [(6, 5), (3, 3)]),
    )


@pytest.mark.parametrize('kind', ['Cls', 'Reg'])
def test_the_levels_and_the_weights(kind: str) -> None:
    inputs = two_levels()
    options = dict(level_weights=(1.0, 3.0)) if kind == 'Cls' else {}
    loss = MODELS.build(
        dict(type=f'kdtoolbox.PGD{kind}Loss', topk=5, loss_weight=2.0, **options)
    )
    found = loss(**inputs)
    wires = [inputs[k] for k in ('teacher_cls', 'teacher_reg', 'data_samples')]
    exponent = 0.8 if kind == 'Cls' else 0.6
    masks = teacher_masks(*wires, inputs['targets'], exponent, 5)
    pairs = zip(inputs['student'], inputs['teacher'], masks, strict=True)
    if kind == 'Cls':
        levels = [pgd_cls_terms(*maps) for maps in pairs]
        factors = dict(foreground=(0.16, 0.48), background=(0.08, 0.24))
    else:
        levels = [pgd_reg_terms(s, t, mask) for s, t, (mask, _) in pairs]
        factors = dict(foreground=(0.256, 0.256))
    factors['attention'] = (1.6e-3, 1.6e-3)
    for name, term in found.items():
        expected = sum(f * x[name] for f, x in zip(factors[name], levels, strict=True))
        torch.testing.assert_close(term, expected)


@pytest.mark.parametrize('loss', [PGDClsLoss(level_weights=(1.0, 1.0)), PGDRegLoss()])
def test_no_boxes(loss: Any) -> None:
    inputs = two_levels() | dict(data_samples=samples_of([BOXES[0][:0]] * 2))
    terms = loss(**inputs)
    sum(terms.values()).backward()
    assert terms['foreground'] == 0
    moved = inputs['student'][0].grad
    assert moved.isfinite().all()
    # The background and the attention of the whole map stay; the boxes' tower rests.
    assert bool(moved.any()) == isinstance(loss, PGDClsLoss)


class OnOneLevel(nn.Module):
    """A loss on one map of any size, as the contract cuts it."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    @property
    def loss_weight(self) -> Any:
        return self.loss.loss_weight

    @loss_weight.setter
    def loss_weight(self, value: float) -> None:
        self.loss.loss_weight = value

    def forward(self, student: Tensor, teacher: Tensor) -> Any:
        count, _, *size = student.shape
        cut = [[x[:count, :, : size[0], : size[1]]] for x in (LOGITS, DISTANCES)]
        rest = (samples_of(BOXES[:count]), targets_of(count, [tuple(size)]))
        return self.loss([student], [teacher], *cut, *rest)


@pytest.mark.parametrize('loss', [PGDClsLoss(level_weights=[1.0]), PGDRegLoss()])
def test_contract(loss: nn.Module) -> None:
    check_loss(OnOneLevel(loss), STUDENT[..., :4, :3], TEACHER[..., :4, :3])


@pytest.mark.parametrize('kind', ['Cls', 'Reg'])
def test_towers_of_a_real_head(toy: Any, kind: str) -> None:
    tower = dict(tower=f'bbox_head.{kind.lower()}_convs[-1]')
    predictions = dict(cls='bbox_head.gfl_cls', reg='bbox_head.scales.*')
    loss = dict(type=f'PGD{kind}Loss', student='student.tower', teacher='teacher.tower')
    loss |= dict(teacher_cls='teacher.cls', teacher_reg='teacher.reg')
    loss |= dict(level_weights=[1.0, 1.25, 1.5]) if kind == 'Cls' else {}
    model = toy.build_distiller(
        toy.gfl(),
        recorders=dict(student=tower, teacher=tower | predictions),
        losses=dict(loss_pgd=loss),
    )
    batch = model.data_preprocessor(toy.det_data(), training=True)
    losses = model(**batch, mode='loss')
    assert losses['loss_pgd.foreground'] > 0
    losses['loss_pgd.foreground'].backward()
    conv = getattr(model.student.bbox_head, f'{kind.lower()}_convs')[-1].conv
    assert conv.weight.grad.any()


def test_refusals() -> None:
    with pytest.raises(ValueError, match='5 level_weights and wires of 2 levels'):
        PGDClsLoss()(**two_levels())
    masks = (torch.ones(2, 5, 5),) * 2
    with pytest.raises(ValueError, match=r'\(2, 4, 6, 5\) and masks \(2, 5, 5\)'):
        pgd_cls_terms(STUDENT, TEACHER, masks)
    with pytest.raises(ValueError, match='differ in shape'):
        pgd_reg_terms(STUDENT, TEACHER[:, :3], masks[0])
