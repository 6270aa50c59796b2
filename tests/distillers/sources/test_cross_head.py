import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdtoolbox.distillers.dense_targets import record_targets
from kdtoolbox.distillers.split_head import SplitHead
from kdtoolbox.inspection.batches import made_up_batch
from kdtoolbox.inspection.quiet import make_finite
from kdtoolbox.teachers.models import build_model

Toy = SimpleNamespace

DELTAS = dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2])
ANCHORS = dict(
    type='AnchorGenerator',
    ratios=[1.0],
    octave_base_scale=4,
    scales_per_octave=1,
    strides=[8, 16, 32],
)
FOCAL = dict(type='FocalLoss', use_sigmoid=True)
CENTERNESS = dict(type='CrossEntropyLoss', use_sigmoid=True)
MAX_IOU = dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0)
HEADS: dict[str, dict] = {
    'gfl': dict(),
    'retinanet': dict(
        type='RetinaHead', bbox_coder=DELTAS, loss_bbox=dict(type='L1Loss')
    ),
    'atss': dict(
        type='ATSSHead',
        bbox_coder=DELTAS,
        loss_bbox=dict(type='GIoULoss'),
        loss_centerness=CENTERNESS,
    ),
    'fcos': dict(
        type='FCOSHead',
        strides=[8, 16, 32],
        regress_ranges=((-1, 32), (32, 64), (64, 1e8)),
        center_sampling=True,
        centerness_on_reg=True,
        norm_on_bbox=True,
        loss_bbox=dict(type='GIoULoss'),
        loss_centerness=CENTERNESS,
    ),
}
FAMILIES = pytest.mark.parametrize('family', list(HEADS))


def detector(toy: Toy, family: str, **changes: Any) -> dict:
    """Return the config of the toy GFL with another head and two convolutions."""
    config = toy.gfl()
    head = config['model']['bbox_head']
    head |= dict(stacked_convs=2)
    if family != 'gfl':
        kept = ('num_classes', 'in_channels', 'feat_channels', 'stacked_convs')
        head = {key: head[key] for key in kept} | HEADS[family] | dict(loss_cls=FOCAL)
        if family != 'retinanet':
            head['norm_cfg'] = dict(type='GN', num_groups=4)
        if family != 'fcos':
            head['anchor_generator'] = ANCHORS
        if family == 'retinanet':
            train = config['model']['train_cfg']
            train |= dict(assigner=MAX_IOU, sampler=dict(type='PseudoSampler'))
    config['model']['bbox_head'] = head | changes
    return config


def losses(family: str) -> dict:
    ends = dict(student='cross.reg', teacher='teacher.reg', teacher_cls='teacher.cls')
    kind = 'CrossKDDistributionLoss' if family == 'gfl' else 'CrossKDBoxLoss'
    found = dict(
        loss_cross_cls=dict(
            type='CrossKDClsLoss', student='cross.cls', teacher='teacher.cls'
        ),
        loss_cross_reg=dict(ends, type=kind),
    )
    if family == 'atss':
        found['loss_cross_centerness'] = dict(
            type='CrossKDCenternessLoss',
            student='cross.centerness',
            teacher='teacher.centerness',
        )
    return found


def crosskd(toy: Toy, family: str, student: dict | None = None, **changes: Any) -> Any:
    teacher = detector(toy, family)
    config = toy.distiller(student or teacher, teacher)
    arguments = {k: changes.pop(k) for k in ('stage', 'projection') if k in changes}
    config['sources'] = [dict(type='CrossHead', stage=1) | arguments]
    config |= dict(recorders=dict(student={}, teacher={}), losses=losses(family))
    return toy.build_distiller(teacher, **(config | changes))


def loss_of(model: Any, data: dict) -> dict:
    return model(**model.data_preprocessor(data, training=True), mode='loss')


def total(losses: dict, prefix: str) -> Any:
    return sum(value for name, value in losses.items() if name.startswith(prefix))


@FAMILIES
def test_gradients_reach_the_towers_and_not_the_teacher(toy: Toy, family: str) -> None:
    distiller = crosskd(toy, family)
    found = total(loss_of(distiller, toy.det_data()), 'loss_cross')
    assert found > 0
    found.backward()
    head = distiller.student.bbox_head
    # The student's towers are trained before the split only.
    for tower in (head.cls_convs, head.reg_convs):
        assert any(p.grad is not None and p.grad.any() for p in tower[0].parameters())
        assert all(p.grad is None for p in tower[1].parameters())
    assert all(p.grad is None for p in distiller.teacher.model.parameters())
    assert any(p.grad is not None for p in distiller.student.backbone.parameters())


@FAMILIES
def test_crossed_predictions_of_a_teacher_are_its_own(toy: Toy, family: str) -> None:
    distiller = crosskd(toy, family)
    distiller.student.load_state_dict(distiller.teacher.model.state_dict())
    distiller.eval()
    seen = {}
    collect = distiller.wiring.collect
    distiller.wiring.collect = lambda *given: seen.update(collect(*given)) or seen
    loss_of(distiller, toy.det_data())
    kinds = {name.split('.')[1] for name in seen if name.startswith('cross')}
    assert kinds == {'cls', 'reg'} | ({'centerness'} if family == 'atss' else set())
    for kind in kinds:
        assert len(seen[f'cross.{kind}']) == 3
        for pair in zip(seen[f'cross.{kind}'], seen[f'teacher.{kind}'], strict=True):
            torch.testing.assert_close(*pair, rtol=1e-3, atol=1e-4)


@FAMILIES
def test_batch_without_boxes(toy: Toy, family: str) -> None:
    distiller = crosskd(toy, family)
    found = loss_of(distiller, toy.det_data(boxes=0))
    assert total(found, 'loss_cross') < 1e4
    distiller.parse_losses(found)[0].backward()
    for parameter in distiller.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


@FAMILIES
def test_targets_are_those_of_the_head(toy: Toy, family: str) -> None:
    model = toy.build(detector(toy, family))
    data = model.data_preprocessor(toy.det_data(boxes=1), training=True)
    with record_targets(model) as record:
        model(**data, mode='loss')
    assert 'get_targets' not in vars(model.bbox_head)
    targets = record.read(data['data_samples'])
    count = 0
    for level, labels in enumerate(targets.labels):
        positive = targets.positives(level)
        assert labels.shape == targets.label_weights[level].shape
        assert targets.priors[level].shape[:2] == labels.shape
        assert torch.equal(targets.gt_inds[level] >= 0, positive)
        assert (targets.gt_inds[level][positive] == 0).all()
        # Image i of the toy has one box of class i.
        for image in range(2):
            assert (labels[image][positive[image]] == image).all()
        count += int(positive.sum())
    assert count
    if family != 'fcos':
        assert float(targets.avg_factor) == count


@FAMILIES
def test_decoded_predictions_are_the_heads_own(toy: Toy, family: str) -> None:
    """A prediction at the prior's own place decodes to a box around its centre."""
    model = toy.build(detector(toy, family)).train()
    data = model.data_preprocessor(toy.det_data(), training=True)
    with record_targets(model) as record:
        model(**data, mode='loss')
    targets = record.read(data['data_samples'])
    size = dict(gfl=4 * 5).get(family, 4)
    for level, priors in enumerate(targets.priors):
        raw = torch.zeros(*priors.shape[:2], size, requires_grad=True)
        boxes = targets.decode(level, raw)
        centers = (boxes[..., :2] + boxes[..., 2:]) / 2
        expected = priors[..., :2]
        if family != 'fcos':
            expected = (priors[..., :2] + priors[..., 2:]) / 2
        torch.testing.assert_close(centers, expected)
        boxes.sum().backward()
        assert raw.grad.isfinite().all()


def test_recorders_beside_those_of_the_heads(toy: Toy) -> None:
    cwd = dict(type='CWDLoss', student='student.fpn', teacher='teacher.fpn')
    sides = dict(student=dict(fpn='neck'), teacher=dict(fpn='neck'))
    mixed = losses('gfl') | dict(loss_cwd=cwd)
    found = loss_of(crosskd(toy, 'gfl', recorders=sides, losses=mixed), toy.det_data())
    assert {'loss_cwd', 'loss_cross_cls', 'loss_cross_reg'} <= found.keys()


def test_exported_keys_are_the_plain_students(toy: Toy) -> None:
    distiller = crosskd(toy, 'gfl')
    plain = toy.build(detector(toy, 'gfl'))
    assert distiller.student.state_dict().keys() == plain.state_dict().keys()
    assert copy.deepcopy(distiller).teacher is distiller.teacher


def test_a_head_of_another_width_is_refused(toy: Toy) -> None:
    student = detector(toy, 'gfl', feat_channels=4)
    message = r'width of the towers: 4, the teacher has 8.*set model\.sources\[0\]'
    message += r'\.projection=.*in_channels=4, out_ch.*=8'
    with pytest.raises(ValueError, match=message):
        crosskd(toy, 'gfl', student)
    projection = dict(type='ConvConnector', in_channels=4, out_channels=8)
    distiller = crosskd(toy, 'gfl', student, projection=projection)
    total(loss_of(distiller, toy.det_data()), 'loss_cross').backward()
    assert len(distiller.projections) == 2
    assert all(p.grad.any() for p in distiller.projections.parameters())
    # DDP waits for a gradient of every parameter, also while all weights are 0.
    distiller.zero_grad()
    for loss in distiller.losses.values():
        loss.loss_weight = 0.0
    everything, _ = distiller.parse_losses(loss_of(distiller, toy.det_data()))
    everything.backward()
    assert all(p.grad is not None for p in distiller.projections.parameters())


def test_a_head_of_another_family_is_refused(toy: Toy) -> None:
    with pytest.raises(ValueError, match="kind of head: 'atss', the teacher has 'gfl'"):
        crosskd(toy, 'gfl', detector(toy, 'atss'))


@pytest.mark.parametrize('stage', [0, 3])
def test_a_stage_outside_the_towers_is_refused(toy: Toy, stage: int) -> None:
    with pytest.raises(ValueError, match=rf'stage={stage}: GFLHead has 2 conv.*1 to 2'):
        crosskd(toy, 'gfl', stage=stage)


def test_a_head_without_towers_is_refused(toy: Toy) -> None:
    with pytest.raises(ValueError, match='Linear has no towers'):
        SplitHead(torch.nn.Linear(1, 1), 1)


def test_targets_of_an_unknown_head_are_refused(toy: Toy) -> None:
    model = toy.build(toy.faster_rcnn())
    with record_targets(model) as record, pytest.raises(ValueError, match='NoneType'):
        record.read([])


@pytest.mark.parametrize(
    'config',
    ['paa/paa_r50_fpn_1x_coco.py', 'yolof/yolof_r50-c5_8xb8-1x_coco.py'],
)
def test_targets_of_another_form_are_refused(config: str) -> None:
    torch.manual_seed(0)
    model = build_model(f'mmdet::{config}')
    make_finite(model)
    images, samples = made_up_batch(model, 64)
    with record_targets(model) as record:
        model.loss(images, samples)
    with pytest.raises(ValueError, match=r'model.losses.* a (PAA|YOLOF)Head.*PKDLoss'):
        record.read(samples)


# init_student.


def test_neck_and_head_are_copied_from_the_teacher(
    toy: Toy, caplog: pytest.LogCaptureFixture
) -> None:
    student, teacher = toy.gfl(base=4), toy.gfl(base=8)
    distiller = toy.build_distiller(student, teacher, init_student=True)
    distiller.init_weights()
    teacher_values, student_values = (
        distiller.teacher.model.state_dict(),
        distiller.student.state_dict(),
    )
    assert all(
        torch.equal(student_values[k], teacher_values[k])
        for k in student_values
        if k.startswith('bbox')
    )
    # The backbone is half as wide, so the neck does not fit.
    assert not torch.equal(
        distiller.student.neck.fpn_convs[0].conv.weight,
        distiller.teacher.model.neck.fpn_convs[0].conv.weight,
    )


def test_init_student_is_off_by_default(toy: Toy) -> None:
    distiller = toy.build_distiller(toy.gfl())
    distiller.init_weights()
    weight = distiller.student.bbox_head.gfl_cls.weight
    assert not torch.equal(weight, distiller.teacher.model.bbox_head.gfl_cls.weight)


def test_init_student_from_nothing_that_fits(toy: Toy) -> None:
    distiller = toy.build_distiller(
        toy.gfl(out=8), toy.gfl(base=16, out=16), losses={}, init_student=True
    )
    with pytest.raises(ValueError, match=r'init_student: no part.*neck.*bbox_head'):
        distiller.init_weights()
