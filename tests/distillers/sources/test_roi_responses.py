import copy
import pickle
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import Tensor
from torch.nn import functional

Toy = SimpleNamespace

CLS = dict(student='student.roi_cls', teacher='teacher.roi_cls')
REG = dict(student='student.roi_reg', teacher='teacher.roi_reg', labels='roi.labels')
RPN = dict(student='student.rpn_cls', teacher='teacher.rpn_cls')
LOSSES = dict(
    loss_roi_kd=dict(CLS, type='KDLoss'),
    loss_roi_dkd=dict(CLS, type='DKDLoss', labels='roi.labels'),
    loss_roi_reg=dict(REG, type='RoIRegressionLoss'),
)
OBJECTNESS = dict(loss_rpn_kd=dict(RPN, type='ObjectnessLoss'))
RECORDERS = dict.fromkeys(('student', 'teacher'), dict(rpn_cls='rpn_head.rpn_cls'))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def changed(config: dict, part: str, **changes: Any) -> dict:
    """Return a detector's config with changes at a dotted path of its model."""
    config = copy.deepcopy(config)
    target = config['model']
    for key in part.split('.') if part else ():
        target = target[key]
    target.update(changes)
    return config


def roi(toy: Toy, student: dict | None = None, /, **changes: Any) -> Any:
    teacher = changes.pop('teacher', None) or toy.faster_rcnn(base=16, out=16)
    config = toy.distiller(student or toy.faster_rcnn(), teacher)
    config.pop('recorders')
    config |= dict(sources=[dict(type='RoIResponses')], losses=LOSSES) | changes
    return toy.build(dict(model=config, default_scope='mmdet'))


def loss_of(model: Any, data: dict) -> dict:
    return model(**model.data_preprocessor(data, training=True), mode='loss')


def wires_of(model: Any, data: dict) -> tuple[dict, dict]:
    """Return the losses of a step and the wires that they read."""
    seen: dict = {}
    collect = model.wiring.collect
    model.wiring.collect = lambda *given: seen.update(collect(*given)) or seen
    return loss_of(model, data), seen


def distilled(losses: dict) -> dict[str, Tensor]:
    names = {*LOSSES, *OBJECTNESS}
    return {name: value for name, value in losses.items() if name in names}


def gradients(module: Any) -> list[Tensor]:
    found = [p.grad for p in module.parameters() if p.grad is not None]
    assert all(grad.isfinite().all() for grad in found)
    return found


def test_equal_weights_give_zero(toy: Toy) -> None:
    losses = LOSSES | OBJECTNESS
    distiller = roi(
        toy, teacher=toy.faster_rcnn(), losses=losses, recorders=RECORDERS
    ).train()
    assert sum(distilled(loss_of(distiller, toy.det_data())).values()) > 0
    distiller.student.load_state_dict(distiller.teacher.model.state_dict())
    found = distilled(loss_of(distiller, toy.det_data()))
    assert found.keys() == losses.keys()
    assert all(value.abs() < 1e-6 for value in found.values())


@pytest.mark.parametrize('add_gt', [True, False])
def test_rois_and_labels_are_those_of_the_students_step(toy: Toy, add_gt: bool) -> None:
    student = toy.faster_rcnn()
    sampler = student['model']['train_cfg']['rcnn']['sampler']
    student = changed(
        student, 'train_cfg.rcnn', sampler=sampler | dict(add_gt_as_proposals=add_gt)
    )
    losses, wires = wires_of(roi(toy, student), toy.det_data())
    [logits], [labels], [rois] = (
        wires[name] for name in ('student.roi_cls', 'roi.labels', 'student.rois')
    )
    assert len(logits) == len(labels) == len(rois) > 4
    assert logits.requires_grad
    expected = functional.cross_entropy(logits, labels)
    torch.testing.assert_close(losses['loss_cls'], expected)
    for image in (0, 1):
        # Image i of the toy has one box of class i.
        ours = rois[:, 0] == image
        assert set(labels[ours].tolist()) <= {image, 3}
        box = (rois[ours, 1:] == torch.tensor([8.0, 8.0, 40.0, 40.0])).all(1)
        assert box.any() == add_gt
        assert (labels[ours][box] == image).all()


def test_the_teachers_box_head_runs_on_the_students_rois(toy: Toy) -> None:
    from mmengine.structures import InstanceData

    distiller = roi(toy)
    # The teacher runs without gradient even if somebody has set requires_grad.
    teacher = distiller.teacher.model.requires_grad_()
    _, wires = wires_of(distiller, toy.det_data())
    [rois] = wires['student.rois']
    proposals = [InstanceData(bboxes=rois[rois[:, 0] == i, 1:]) for i in (0, 1)]
    batch = teacher.data_preprocessor(toy.det_data(), training=True)
    features = teacher.extract_feat(batch['inputs'])
    logits, deltas = teacher.roi_head.forward(features, proposals)
    torch.testing.assert_close(wires['teacher.roi_cls'], [logits])
    torch.testing.assert_close(wires['teacher.roi_reg'], [deltas])
    assert not wires['teacher.roi_cls'][0].requires_grad
    assert not wires['teacher.roi_reg'][0].requires_grad


def test_the_teacher_does_not_change_the_task_losses(toy: Toy) -> None:
    found = []
    distiller = roi(toy)
    for model in (distiller.student, distiller):
        torch.manual_seed(0)
        found.append(loss_of(model, toy.det_data()))
    plain, losses = found
    assert losses.keys() == plain.keys() | LOSSES.keys()
    for name, value in plain.items():
        torch.testing.assert_close(losses[name], value, rtol=0, atol=0)


def test_one_step_trains_the_student_only(toy: Toy) -> None:
    losses = LOSSES | OBJECTNESS
    distiller = roi(toy, losses=losses, recorders=RECORDERS).train()
    before = copy.deepcopy([distiller.state_dict(), distiller.teacher.model])
    sgd = torch.optim.SGD(distiller.parameters(), lr=0.01)
    log = distiller.train_step(toy.det_data(), OptimWrapper(sgd))
    assert losses.keys() < log.keys()
    for name in ('roi_head.bbox_head.fc_reg', 'rpn_head.rpn_cls', 'neck.fpn_convs.0'):
        module = distiller.student.get_submodule(name)
        for key, value in module.state_dict().items():
            assert not torch.equal(value, before[0][f'student.{name}.{key}'])
    teacher = distiller.teacher.model
    for key, value in before[1].state_dict().items():
        assert torch.equal(teacher.state_dict()[key], value)
    assert not gradients(teacher)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not [key for key in distiller.state_dict() if 'teacher' in key]
    plain = toy.build(toy.faster_rcnn())
    assert distiller.student.state_dict().keys() == plain.state_dict().keys()


def test_what_each_loss_trains(toy: Toy) -> None:
    distiller = roi(toy, losses=LOSSES | OBJECTNESS, recorders=RECORDERS)
    losses, student = loss_of(distiller, toy.det_data()), distiller.student
    outputs = {
        'cls': student.roi_head.bbox_head.fc_cls,
        'reg': student.roi_head.bbox_head.fc_reg,
        'objectness': student.rpn_head.rpn_cls,
        'proposals': student.rpn_head.rpn_reg,
        'backbone': student.backbone.layer1[0].conv1,
    }
    trained = dict(
        loss_roi_kd={'cls', 'backbone'},
        loss_roi_dkd={'cls', 'backbone'},
        loss_roi_reg={'reg', 'backbone'},
        loss_rpn_kd={'objectness', 'backbone'},
    )
    weights = [module.weight for module in outputs.values()]
    for name, expected in trained.items():
        found = torch.autograd.grad(
            losses[name], weights, retain_graph=True, allow_unused=True
        )
        reached = zip(outputs, found, strict=True)
        assert {k for k, g in reached if g is not None and g.any()} == expected, name


def test_an_image_without_boxes(toy: Toy) -> None:
    data = toy.det_data()
    empty = data['data_samples'][1]
    empty.gt_instances = empty.gt_instances[:0]
    distiller = roi(toy)
    losses, wires = wires_of(distiller, data)
    [labels], [rois] = wires['roi.labels'], wires['student.rois']
    assert set(labels[rois[:, 0] == 1].tolist()) == {3}
    assert all(value > 0 for value in distilled(losses).values())
    distiller.parse_losses(losses)[0].backward()
    assert gradients(distiller)


def test_a_batch_without_boxes_has_no_deltas_to_compare(toy: Toy) -> None:
    distiller = roi(toy)
    losses = loss_of(distiller, toy.det_data(boxes=0))
    assert losses['loss_roi_reg'] == 0
    assert losses['loss_roi_kd'] > 0
    distiller.parse_losses(losses)[0].backward()
    assert not any(
        g.any() for g in gradients(distiller.student.roi_head.bbox_head.fc_reg)
    )


def test_a_batch_without_any_roi(toy: Toy) -> None:
    student = changed(toy.faster_rcnn(), 'train_cfg.rpn_proposal', min_bbox_size=1000)
    distiller = roi(toy, student)
    losses, wires = wires_of(distiller, toy.det_data(boxes=0))
    assert wires['teacher.roi_cls'][0].shape == (0, 4)
    assert wires['teacher.roi_reg'][0].shape == (0, 12)
    assert all(value == 0 for value in distilled(losses).values())
    # DDP waits for a gradient of every parameter, including the classifier.
    sum(distilled(losses).values()).backward()
    head = distiller.student.roi_head.bbox_head
    assert len(gradients(head)) == len(list(head.parameters()))


@pytest.fixture
def half_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two CPU kernels of mmcv accept half precision, as the GPU kernels do."""
    from mmcv.ops import RoIAlign, nms

    pool = RoIAlign.forward
    kernels = nms.__wrapped__.__globals__['ext_module']
    suppress = kernels.nms

    def lifted(self: Any, features: Tensor, rois: Tensor) -> Tensor:
        return pool(self, features.float(), rois.float()).to(features.dtype)

    def suppressed(boxes: Tensor, scores: Tensor, **options: Any) -> Tensor:
        return suppress(boxes.float(), scores.float(), **options)

    monkeypatch.setattr(RoIAlign, 'forward', lifted)
    monkeypatch.setattr(kernels, 'nms', suppressed)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures('half_kernels')
def test_autocast(toy: Toy, dtype: torch.dtype) -> None:
    distiller = roi(toy, losses=LOSSES | OBJECTNESS, recorders=RECORDERS)
    with torch.autocast('cpu', dtype):
        losses, wires = wires_of(distiller, toy.det_data())
    for side in ('student', 'teacher'):
        assert wires[f'{side}.roi_cls'][0].dtype == dtype
    for value in distilled(losses).values():
        assert value.dtype == torch.float32
        assert value > 0
    sum(distilled(losses).values()).backward()
    assert gradients(distiller.student)
    assert not gradients(distiller.teacher.model)


def test_class_agnostic_deltas_under_class_wise_ones(toy: Toy) -> None:
    agnostic = changed(toy.faster_rcnn(), 'roi_head.bbox_head', reg_class_agnostic=True)
    distiller = roi(toy, agnostic)
    losses, wires = wires_of(distiller, toy.det_data())
    [student_values], [teacher_values], [labels] = (
        wires[wire] for wire in REG.values()
    )
    assert student_values.shape == teacher_values.shape == (len(labels), 12)
    positive = labels < 3
    first = 4 * labels[positive, None] + torch.arange(4)
    expected = functional.smooth_l1_loss(
        student_values[positive, :4],
        teacher_values[positive].gather(1, first),
        reduction='sum',
    )
    torch.testing.assert_close(losses['loss_roi_reg'], expected / positive.sum())
    losses['loss_roi_reg'].backward()
    assert any(g.any() for g in gradients(distiller.student.roi_head.bbox_head.fc_reg))


def test_a_teacher_without_neck(toy: Toy) -> None:
    teacher = toy.faster_rcnn(out=32)
    del teacher['model']['neck']
    teacher = changed(teacher, 'backbone', out_indices=(2,))
    teacher = changed(teacher, 'rpn_head.anchor_generator', strides=[16])
    teacher = changed(teacher, 'roi_head.bbox_roi_extractor', featmap_strides=[16])
    found = distilled(loss_of(roi(toy, teacher=teacher), toy.det_data()))
    assert all(value > 0 for value in found.values())


def test_mask_rcnn(toy: Toy) -> None:
    from mmdet.structures.mask import BitmapMasks

    mask_head = dict(
        type='FCNMaskHead',
        num_convs=1,
        in_channels=8,
        conv_out_channels=8,
        num_classes=3,
        loss_mask=dict(type='CrossEntropyLoss', use_mask=True),
    )
    config = toy.faster_rcnn()
    extractor = config['model']['roi_head']['bbox_roi_extractor']
    heads = dict(mask_roi_extractor=extractor, mask_head=mask_head)
    config = changed(changed(config, '', type='MaskRCNN'), 'roi_head', **heads)
    config = changed(config, 'train_cfg.rcnn', mask_size=14)
    data = toy.det_data()
    for sample in data['data_samples']:
        masks = BitmapMasks(np.ones((1, *sample.img_shape)), *sample.img_shape)
        sample.gt_instances.masks = masks
    losses = loss_of(roi(toy, config, teacher=config), data)
    assert losses['loss_mask'] > 0
    assert all(value > 0 for value in distilled(losses).values())


def test_an_interrupted_step_leaves_the_head_as_it_was(toy: Toy) -> None:
    distiller = roi(toy)
    head = distiller.student.roi_head.bbox_head

    def stop(*_: Any) -> None:
        assert 'loss' in vars(head)
        raise KeyboardInterrupt

    handle = head.loss_cls.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        loss_of(distiller, toy.det_data())
    handle.remove()
    assert 'loss' not in vars(head)
    copies = copy.deepcopy(distiller), pickle.loads(pickle.dumps(distiller))
    assert copies[0].teacher is distiller.teacher
    losses = []
    for model in (distiller, *copies):
        torch.manual_seed(0)
        losses.append(distilled(loss_of(model, toy.det_data())))
        assert 'loss' not in vars(head)
    assert losses[0] == losses[1] == losses[2]


def cascade(toy: Toy) -> dict:
    config = toy.faster_rcnn()
    head = config['model']['roi_head']['bbox_head']
    rcnn = config['model']['train_cfg']['rcnn']
    stages = dict(num_stages=2, stage_loss_weights=[1, 0.5], bbox_head=[head, head])
    config = changed(config, 'roi_head', type='CascadeRoIHead', **stages)
    return changed(
        changed(config, 'train_cfg', rcnn=[rcnn, rcnn]), '', type='CascadeRCNN'
    )


@pytest.mark.parametrize('side', ['student', 'teacher'])
def test_other_roi_heads_are_refused(toy: Toy, side: str) -> None:
    def build(config: dict) -> None:
        pair = (config, None) if side == 'student' else (toy.faster_rcnn(), config)
        roi(toy, pair[0], teacher=pair[1])

    message = rf'model\.{side}: .*CascadeRoIHead, ModuleList, where `loss` differs from'
    with pytest.raises(ValueError, match=message):
        build(cascade(toy))
    with pytest.raises(ValueError, match=rf'model\.{side}: .* got GFL, NoneType'):
        build(toy.gfl())
    seesaw = dict(type='SeesawLoss', num_classes=3)
    for change in (dict(loss_cls=seesaw), dict(with_reg=False)):
        config = changed(toy.faster_rcnn(), 'roi_head.bbox_head', **change)
        message = rf'model\.{side}\.roi_head\.bbox_head: .* one logit for each class'
        with pytest.raises(ValueError, match=message):
            build(config)


def test_another_number_of_classes_is_refused(toy: Toy) -> None:
    teacher = changed(toy.faster_rcnn(), 'roi_head.bbox_head', num_classes=4)
    message = r'num_classes: 3, the teacher has 4; .*same classes'
    with pytest.raises(ValueError, match=message):
        roi(toy, teacher=teacher)


def test_deltas_of_another_scale_are_refused(toy: Toy) -> None:
    coder = dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2])
    teacher = changed(toy.faster_rcnn(), 'roi_head.bbox_head', bbox_coder=coder)
    with pytest.raises(ValueError, match=r'target_stds: \(1\.0, .* has \(0\.1, 0\.1'):
        roi(toy, teacher=teacher)


@pytest.mark.parametrize('side', ['student', 'teacher'])
def test_records_with_names_of_the_source_are_refused(toy: Toy, side: str) -> None:
    names = ['roi_cls', 'roi_labels', 'roi_levels', 'roi_reg', 'rois']
    recorders: dict = dict(student={}, teacher={})
    recorders[side] = dict.fromkeys([*names, 'roi'], 'neck')
    message = rf'model\.recorders\.{side}: .* makes {re.escape(str(names))} itself'
    with pytest.raises(ValueError, match=message):
        roi(toy, recorders=recorders)


def test_a_loss_on_labels_is_refused(toy: Toy) -> None:
    losses = dict(loss_kd=dict(CLS, type='KDLoss', student='roi.labels'))
    with pytest.raises(ValueError, match=r"'roi\.labels' .* trains nothing"):
        roi(toy, losses=losses)


def test_the_wires_need_this_source(toy: Toy) -> None:
    recorders: dict = dict(student={}, teacher={})
    with pytest.raises(ValueError, match=r"no wire 'student\.roi_cls'"):
        roi(toy, sources=[], recorders=recorders)
