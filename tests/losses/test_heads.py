"""Errors for predictions that cannot be compared, and the mending line they show."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden import waves
from pixels import samples_of
from torch import Tensor

from kdtoolbox import losses
from kdtoolbox.losses.detection.targets import DenseTargets
from kdtoolbox.losses.examples import Sizes, examples_of, loss_classes

SIZE = (4, 3)
NOTHING = SimpleNamespace(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
OBJECTS = [SimpleNamespace(gt_instances=NOTHING)] * 2
PIXELS = samples_of(torch.zeros(2, *SIZE, dtype=torch.long))
LAYERS_OF_CLASSES = ('FAKDLoss', 'SKDHolisticLoss')
"""Losses that have or read a layer for a fixed number of classes."""


def softmax_losses() -> dict[str, dict[str, Any]]:
    """Return the losses on class logits of pixels, with their arguments."""
    return {
        name: example.arguments(Sizes(classes=5))
        for name, kind in loss_classes().items()
        for example in examples_of(kind)
        if example.student == 'class logits map' and name not in LAYERS_OF_CLASSES
    }


SOFTMAX = softmax_losses()


def targets_of(num_classes: int, anchors: int = 1) -> DenseTargets:
    count = SIZE[0] * SIZE[1] * anchors
    return DenseTargets(
        labels=[torch.zeros(2, count, dtype=torch.long)],
        label_weights=[torch.ones(2, count)],
        priors=[torch.tensor([0.0, 0.0, 8.0, 8.0]).expand(2, count, 4)],
        strides=[8],
        num_classes=num_classes,
        avg_factor=torch.ones(()),
        decode=lambda level, raw: raw[..., :4],
        gt_inds=[torch.zeros(2, count, dtype=torch.long)],
    )


def predictions(channels: int, size: tuple[int, int] = SIZE) -> Tensor:
    return waves((2, channels, *size), 0.37, 0.11)


def on_levels(
    kind: str, student: Tensor, teacher: Tensor, targets: DenseTargets
) -> Any:
    """Compare one level of predictions by a loss of dense heads."""
    features, logits = [predictions(5)], [predictions(3)]
    wires: dict[str, dict[str, Any]] = {
        'CrossKDBoxLoss': dict(teacher_cls=logits[0], level=0, targets=targets),
        'CrossKDCenternessLoss': dict(level=0, targets=targets),
        'CrossKDClsLoss': dict(level=0, targets=targets),
        'CrossKDDistributionLoss': dict(teacher_cls=logits, targets=targets),
        'FRSLogitLoss': {},
        'LDClsLoss': dict(level=0, targets=targets),
        'LDLoss': dict(student_cls=logits, data_samples=OBJECTS, targets=targets),
        'ObjectnessLoss': {},
        'RMLoss': dict(data_samples=[], targets=targets),
    }
    loss = getattr(losses, kind)() if hasattr(losses, kind) else None
    if kind == 'PFILoss':
        return loss(features, features, [student], [teacher])
    if kind.startswith('GIDLoss'):
        pairs = dict(cls=(logits, logits), reg=([predictions(4)],) * 2)
        pairs[kind[-3:]] = [student], [teacher]
        pairs = [*pairs['cls'], *pairs['reg']]
        return losses.GIDLoss()(features, features, *pairs, targets, (32, 24))
    if getattr(loss, 'per_level', True):
        return loss(student, teacher, **wires[kind])
    return loss([student], [teacher], **wires[kind])


def error_of(kind: str, *arguments: Any) -> str:
    with pytest.raises(ValueError, match='.') as caught:
        on_levels(kind, *arguments)
    return str(caught.value)


CLASSES = ['CrossKDClsLoss', 'FRSLogitLoss', 'GIDLoss cls', 'LDClsLoss']
CLASSES += ['PFILoss', 'RMLoss']
BOXES = ['CrossKDBoxLoss', 'CrossKDCenternessLoss', 'GIDLoss reg', 'ObjectnessLoss']
BINS = ['CrossKDDistributionLoss', 'LDLoss']


@pytest.mark.parametrize('kind', CLASSES)
def test_other_classes_of_dense_heads_are_refused_without_naming_a_connector(
    kind: str,
) -> None:
    message = error_of(kind, predictions(3), predictions(4), targets_of(3))
    assert '(2, 3, 4, 3) and teacher (2, 4, 4, 3) differ in shape' in message
    assert 'num_classes' in message
    assert 'Connector' not in message


@pytest.mark.parametrize('kind', BOXES)
def test_other_boxes_are_refused(kind: str) -> None:
    message = error_of(kind, predictions(4), predictions(8), targets_of(3))
    assert 'teacher (2, 8, 4, 3) differ in shape' in message
    assert 'anchor_generator' in message
    assert 'Connector' not in message


@pytest.mark.parametrize('kind', [*CLASSES, *BOXES, *BINS])
def test_other_levels_are_refused(kind: str) -> None:
    pair = predictions(12), predictions(12, (2, 3))
    message = error_of(kind, *pair, targets_of(12))
    assert '(2, 12, 2, 3) differ in shape; record the same levels' in message


@pytest.mark.parametrize('kind', BINS)
def test_other_bins_are_refused_with_the_line_of_the_student(kind: str) -> None:
    message = error_of(kind, predictions(4 * 17), predictions(4 * 9), targets_of(3))
    assert '`student.bbox_head.reg_max=8`' in message
    assert 'Connector' not in message


@pytest.mark.parametrize(('channels', 'anchors'), [(4, 1), (36, 9), (9, 1)])
@pytest.mark.parametrize('kind', BINS)
def test_heads_without_box_distributions_are_refused(
    kind: str, channels: int, anchors: int
) -> None:
    pair = predictions(channels), predictions(channels)
    message = error_of(kind, *pair, targets_of(3, anchors))
    assert f'got (2, {channels}, 4, 3) of {anchors}; a GFL head' in message
    assert '`bbox_head.gfl_reg`' in message
    assert 'CrossKDBoxLoss' in message


@pytest.mark.parametrize('kind', SOFTMAX)
def test_other_classes_are_refused(kind: str) -> None:
    loss = getattr(losses, kind)(**SOFTMAX[kind])
    message = r'differ in shape; .*classes \(axis 1\): .*`num_classes`'
    with pytest.raises(ValueError, match=message) as caught:
        loss(predictions(5), predictions(6), data_samples=PIXELS)
    assert 'Connector' not in str(caught.value)
    with pytest.raises(ValueError, match='differ in shape; .*ResizeConnector'):
        loss(predictions(5), predictions(5, (2, 3)), data_samples=PIXELS)


@pytest.mark.parametrize('kind', SOFTMAX)
def test_one_class_is_refused_with_a_softmax(kind: str) -> None:
    loss = getattr(losses, kind)(**SOFTMAX[kind])
    with pytest.raises(ValueError, match=r'at least [23] classes.*use_sigmoid=True'):
        loss(predictions(1), 2 * predictions(1), data_samples=PIXELS)


@pytest.mark.parametrize('kind', ['CTKDLoss', 'KDLoss', 'TTMLoss'])
def test_one_class_gives_a_gradient_with_a_sigmoid(kind: str) -> None:
    loss = getattr(losses, kind)(use_sigmoid=True, **SOFTMAX[kind])
    student = predictions(1).requires_grad_()
    loss(student, 2 * predictions(1), data_samples=PIXELS).backward()
    assert student.grad.any()


def test_one_class_of_a_dense_head_is_refused_with_a_softmax() -> None:
    message = error_of('LDClsLoss', predictions(1), 2 * predictions(1), targets_of(1))
    assert 'num_classes=1' in message
    assert "type='kdtoolbox.KDLoss' with use_sigmoid=True" in message


def test_one_class_of_rois_is_refused_with_a_softmax() -> None:
    rows, labels = waves((6, 1), 0.9, 0.3), torch.zeros(6, dtype=torch.long)
    with pytest.raises(ValueError, match='at least 2 classes'):
        losses.DeFeatRoILoss()(rows, rows, labels)
