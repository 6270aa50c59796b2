from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from golden import TOLERANCES, Golden, load_golden, report_parity, waves
from torch import Tensor, nn

from kdtoolbox.distillers.sources.cross_head import align_scale
from kdtoolbox.losses.detection.crosskd import (
    CrossKDBoxLoss,
    CrossKDCenternessLoss,
    CrossKDClsLoss,
    CrossKDDistributionLoss,
    box_loss,
)
from kdtoolbox.losses.detection.targets import DenseTargets
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

PRECISIONS = pytest.mark.parametrize('dtype', [torch.float64, torch.float32])


def deltas(anchors: list[Tensor], stds: list, level: int, raw: Tensor) -> Tensor:
    from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder

    coder = DeltaXYWHBBoxCoder(target_stds=stds)
    boxes = coder.decode(anchors[level].reshape(-1, 4), raw.reshape(-1, 4))
    return boxes.reshape(raw.shape)


def distances(points: list[Tensor], level: int, raw: Tensor) -> Tensor:
    return torch.cat(
        [points[level] - raw[..., :2], points[level] + raw[..., 2:]], dim=-1
    )


def centerness_sum(golden: Golden) -> Tensor:
    [labels], [boxes] = golden.inputs['labels'], golden.inputs['bbox_targets']
    boxes = boxes[labels < golden.hyper['num_classes']]
    ratios = [
        (side.amin(1) / side.amax(1)) for side in (boxes[:, [0, 2]], boxes[:, [1, 3]])
    ]
    return (ratios[0] * ratios[1]).sqrt().sum()


def targets_of(golden: Golden) -> DenseTargets:
    inputs, hyper = golden.inputs, golden.hyper
    first = inputs['teacher_cls'][0]
    weights = inputs.get('label_weights')
    if weights is None:
        weights = [first.new_ones(2, first[0, 0].numel())]
    decode: Callable = deltas
    avg_factor = torch.tensor(hyper.get('avg_factor', 0.0), dtype=first.dtype)
    if 'points' in inputs:
        decode = partial(distances, inputs['points'])
        avg_factor = centerness_sum(golden)
    elif 'anchors' in inputs:
        decode = partial(deltas, inputs['anchors'], hyper['target_stds'])
    return DenseTargets(
        labels=inputs.get('labels', []),
        label_weights=weights,
        priors=[],
        strides=[],
        num_classes=hyper['num_classes'],
        avg_factor=avg_factor,
        decode=decode,
        gt_inds=[],
    )


def reg_loss(golden: Golden) -> Any:
    hyper, weight = golden.hyper, golden.hyper['w_reg']
    if hyper['variant'] == 'gfl':
        kind = dict(type='kdtoolbox.CrossKDDistributionLoss')
    else:
        mode = 'iou' if hyper['variant'] == 'fcos' else 'giou'
        kind = dict(type='kdtoolbox.CrossKDBoxLoss', mode=mode)
    return MODELS.build(dict(kind, loss_weight=weight))


def evaluate(golden: Golden) -> dict[str, Tensor]:
    targets, inputs, found = targets_of(golden), golden.inputs, {}
    kinds = {'cls': 'Cls', 'ctr': 'Centerness'}
    for key, name in kinds.items():
        weight = golden.hyper.get(f'w_{key}')
        if weight is None:
            continue
        loss = MODELS.build(dict(type=f'kdtoolbox.CrossKD{name}Loss'))
        loss.loss_weight = weight
        for level, student in enumerate(inputs[f'reused_{key}']):
            teacher = inputs[f'teacher_{key}'][level]
            found[f'{key}_{level}'] = loss(student, teacher, level, targets)
    wires = (inputs['reused_reg'], inputs['teacher_reg'], inputs['teacher_cls'])
    loss = reg_loss(golden)
    if golden.hyper['variant'] == 'gfl':
        found['reg'] = loss(*wires, targets)
    else:
        found['reg'] = loss(*(wire[0] for wire in wires), 0, targets)
    return found


@PRECISIONS
@pytest.mark.parametrize('case', ['gfl_two_levels', 'retinanet', 'fcos', 'atss'])
def test_losses_equal_golden_values(case: str, dtype: torch.dtype) -> None:
    golden = load_golden('crosskd', case, dtype)
    students = {k: v for k, v in golden.inputs.items() if k.startswith('reused')}
    for levels in students.values():
        [level.requires_grad_() for level in levels]
    found = evaluate(golden)
    loss = torch.stack(list(found.values())).sum()
    loss.backward()
    rtol, atol, share = TOLERANCES[dtype]
    torch.testing.assert_close(
        loss.detach(), golden.loss, rtol=rtol, atol=atol, check_dtype=False
    )
    for name, levels in students.items():
        for level, grad in zip(levels, golden.grads[name], strict=True):
            limit = max(share * float(grad.abs().max()), atol)
            torch.testing.assert_close(
                level.grad, grad, rtol=0, atol=limit, check_dtype=False
            )
    if dtype == torch.float64:
        pairs = [(maps, golden.grads[name]) for name, maps in students.items()]
        maps, grads = (sum(side, []) for side in zip(*pairs, strict=True))
        report_parity(loss, maps, grads, golden)
    parts = golden.outputs
    expected = sum(torch.as_tensor(parts['loss_reg_kd']))
    assert float(found['reg']) == pytest.approx(float(expected), rel=rtol)


@PRECISIONS
def test_aligned_scale_equals_golden_values(dtype: torch.dtype) -> None:
    golden = load_golden('crosskd', 'align_scale', dtype)
    student = golden.inputs['student'].requires_grad_()
    output = align_scale(student, golden.inputs['teacher'])
    rtol, _, share = TOLERANCES[dtype]
    expected = golden.outputs['output']
    torch.testing.assert_close(output, expected, rtol=10 * rtol, atol=10 * rtol)
    (output * golden.inputs['probe']).sum().backward()
    grad = golden.grads['student']
    limit = share * float(grad.abs().max())
    torch.testing.assert_close(student.grad, grad, rtol=0, atol=limit)


def test_align_scale_of_closed_form_inputs() -> None:
    student = waves((2, 4, 6, 5), 0.37, 0.11)
    teacher = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)
    total = float(align_scale(student.double(), teacher.double()).abs().sum())
    assert total == pytest.approx(217.90599, rel=1e-6)


def test_align_scale_of_one_value_per_channel() -> None:
    student = waves((1, 4, 1, 1), 0.4, 0.1).requires_grad_()
    teacher = waves((1, 4, 1, 1), 0.2, 0.3)
    aligned = align_scale(student, teacher)
    aligned.sum().backward()
    torch.testing.assert_close(aligned, teacher)
    assert student.grad.isfinite().all()


def toy_targets(shape: torch.Size, classes: int = 2, weight: float = 1.0) -> Any:
    count, _, height, width = shape
    cells = height * width
    return DenseTargets(
        labels=[torch.zeros(count, cells, dtype=torch.long)],
        label_weights=[torch.full((count, cells), weight)],
        priors=[],
        strides=[8],
        num_classes=classes,
        avg_factor=torch.tensor(3.0),
        decode=lambda level, raw: torch.cat(
            [-raw[..., :2].exp(), raw[..., 2:].exp()], -1
        ),
        gt_inds=[],
    )


class OnAnyMap(nn.Module):
    """A loss with targets for maps of any size: the contract crops the maps."""

    def __init__(self, loss: nn.Module, **wires: Tensor) -> None:
        super().__init__()
        self.loss = loss
        self.wires = wires

    @property
    def loss_weight(self) -> Any:
        return self.loss.loss_weight

    @loss_weight.setter
    def loss_weight(self, value: float) -> None:
        self.loss.loss_weight = value

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        wires = dict(student=student, teacher=teacher)
        count, _, height, width = student.shape
        for name, wire in self.wires.items():
            wires[name] = wire[:count, :, :height, :width]
        targets = toy_targets(student.shape)
        if getattr(self.loss, 'per_level', True):
            return self.loss(**wires, level=0, targets=targets)
        lists = {name: [wire] for name, wire in wires.items()}
        return self.loss(**lists, targets=targets)


LOGITS = waves((2, 2, 3, 2), 0.7, 0.3)


@pytest.mark.parametrize(
    ('loss', 'channels', 'zero_at_equality'),
    [
        (OnAnyMap(CrossKDClsLoss()), 2, True),
        (OnAnyMap(CrossKDCenternessLoss()), 1, False),
        (OnAnyMap(CrossKDDistributionLoss(), teacher_cls=LOGITS), 8, True),
        (OnAnyMap(CrossKDBoxLoss(), teacher_cls=LOGITS), 4, True),
        (OnAnyMap(CrossKDBoxLoss('iou'), teacher_cls=LOGITS), 4, True),
    ],
    ids=['cls', 'centerness', 'distribution', 'giou', 'iou'],
)
def test_contract(loss: OnAnyMap, channels: int, zero_at_equality: bool) -> None:
    student = waves((2, channels, 3, 2), 0.37, 0.11)
    teacher = waves((2, channels, 3, 2), 0.23, 0.17, 0.4)
    check_loss(loss, student, teacher, zero_at_equality=zero_at_equality)


@pytest.mark.parametrize('weight', [0.0, 1.0])
def test_distribution_loss_is_zero_if_all_weights_are_zero(weight: float) -> None:
    maps = [waves((2, 4 * 3, 3, 2), 0.4, 0.1).requires_grad_()]
    teacher = [waves((2, 4 * 3, 3, 2), 0.3, 0.2)]
    logits = [torch.full((2, 2, 3, 2), -200.0 if weight else 3.0)]
    targets = toy_targets(maps[0].shape, weight=weight)
    loss = CrossKDDistributionLoss()(maps, teacher, logits, targets)
    loss.backward()
    assert loss == 0
    assert not maps[0].grad.any()


@pytest.mark.parametrize('mode', ['giou', 'iou'])
def test_box_loss_of_values_computed_by_hand(mode: Any) -> None:
    student = torch.tensor([[[0.0, 0.0, 4.0, 2.0], [0, 0, 1, 1]]]).double()
    teacher = torch.tensor([[[2.0, 1.0, 6.0, 3.0], [3, 3, 4, 5]]]).double()
    weight = torch.tensor([[1.0, 0.5]]).double()
    if mode == 'giou':  # IoU - (hull - union) / hull
        expected = 1 - (2 / 14 - 4 / 18) + 0.5 * (1 + 17 / 20)
    else:
        expected = -torch.tensor(2 / 14).log() - 0.5 * torch.tensor(1e-6).log()
    value = box_loss(student, teacher, weight, mode)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)


def test_wrong_mode_and_wrong_classes_raise() -> None:
    with pytest.raises(ValueError, match=r"mode='diou'; set mode='giou'"):
        CrossKDBoxLoss(mode='diou')  # type: ignore[arg-type]
    loss = MODELS.build(dict(type='kdtoolbox.CrossKDClsLoss'))
    maps = torch.zeros(1, 2, 3, 3)
    with pytest.raises(ValueError, match='differ in shape'):
        loss(maps, maps[:, :1], 0, toy_targets(maps.shape))
