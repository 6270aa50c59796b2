import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

Toy = SimpleNamespace

CLS = dict(type='KDLoss', teacher='teacher.roi_cls')
REG = dict(type='FCFDRegressionLoss', teacher='teacher.roi_reg')
LEVELS = dict(student='cross.roi_levels', teacher='teacher.roi_levels')
LOSSES = dict(
    loss_levels=dict(LEVELS, type='FitNetLoss'),
    loss_cls_kd=dict(CLS, student='student.roi_cls'),
    loss_reg_kd=dict(REG, student='student.roi_reg'),
    loss_cross_cls=dict(CLS, student='cross.roi_cls'),
    loss_cross_reg=dict(REG, student='cross.roi_reg'),
    loss_back_cls=dict(CLS, student='back.roi_cls'),
    loss_back_reg=dict(REG, student='back.roi_reg'),
)
CROSS = {name: LOSSES[name] for name in ('loss_levels', 'loss_cross_cls')}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def bridge(width: int, other: int, **changes: Any) -> dict:
    config = dict(type='ConvConnector', in_channels=[width] * 2, out_channels=other)
    return dict(config, kernel_size=3, norm_cfg=dict(type='BN')) | changes


BRIDGES = dict(cross=bridge(8, 16), back=bridge(16, 8))


def fcfd(toy: Toy, student: dict | None = None, /, **changes: Any) -> Any:
    teacher = changes.pop('teacher', None) or toy.faster_rcnn(base=16, out=16)
    config = toy.distiller(student or toy.faster_rcnn(), teacher)
    config.pop('recorders')
    bridges = dict(type='BridgedRoIs', bridges=changes.pop('bridges', BRIDGES))
    config |= dict(losses=LOSSES, sources=[dict(type='RoIResponses'), bridges])
    return toy.build(dict(model=config | changes, default_scope='mmdet'))


def loss_of(model: Any, data: dict) -> dict:
    return model(**model.data_preprocessor(data, training=True), mode='loss')


def distilled(losses: dict) -> dict[str, Tensor]:
    return {name: value for name, value in losses.items() if name in LOSSES}


def wires_of(model: Any, data: dict) -> dict:
    seen: dict = {}
    collect = model.wiring.collect
    model.wiring.collect = lambda *given: seen.update(collect(*given)) or seen
    loss_of(model, data)
    return seen


def without_rois(toy: Toy) -> dict:
    config = toy.faster_rcnn()
    config['model']['train_cfg']['rpn_proposal']['min_bbox_size'] = 1000
    return config


def test_equal_weights_and_identity_bridges_give_zero(toy: Toy) -> None:
    plain = bridge(8, 8, norm_cfg=None)
    bridges = dict(cross=plain, back=plain)
    distiller = fcfd(toy, teacher=toy.faster_rcnn(), bridges=bridges).train()
    found = distilled(loss_of(distiller, toy.det_data()))
    assert all(value > 1e-6 for value in found.values())
    distiller.student.load_state_dict(distiller.teacher.model.state_dict())
    for path in distiller.bridges.values():
        for module in path.convs:
            nn.init.dirac_(module.conv.weight)
            nn.init.zeros_(module.conv.bias)
    found = distilled(loss_of(distiller, toy.det_data()))
    assert found.keys() == LOSSES.keys()
    assert all(value.abs() < 1e-6 for value in found.values())


def test_each_box_head_reads_the_others_bridged_features(toy: Toy) -> None:
    from mmengine.structures import InstanceData

    distiller = fcfd(toy).train()
    wires = wires_of(distiller, toy.det_data())
    [rois] = wires['student.rois']
    proposals = [InstanceData(bboxes=rois[rois[:, 0] == i, 1:]) for i in (0, 1)]
    student, teacher = distiller.student, distiller.teacher.model
    batch = teacher.data_preprocessor(toy.det_data(), training=True)
    student_levels, teacher_levels = (
        d.extract_feat(batch['inputs'])[:2] for d in (student, teacher)
    )
    expected = dict(
        teacher=(teacher, teacher_levels),
        cross=(teacher, distiller.bridges['cross'](student_levels)),
        back=(student, distiller.bridges['back'](teacher_levels)),
    )
    for name, (reader, levels) in expected.items():
        logits, deltas = reader.roi_head.forward(tuple(levels), proposals)
        torch.testing.assert_close(wires[f'{name}.roi_cls'], [logits])
        torch.testing.assert_close(wires[f'{name}.roi_reg'], [deltas])
    torch.testing.assert_close(wires['cross.roi_levels'], expected['cross'][1])
    torch.testing.assert_close(wires['teacher.roi_levels'], list(teacher_levels))
    for name in ('roi_cls', 'roi_reg', 'roi_levels'):
        assert not wires[f'teacher.{name}'][0].requires_grad


def test_what_each_loss_trains(toy: Toy) -> None:
    distiller = fcfd(toy)
    # The teacher is not trained even if somebody has set requires_grad.
    distiller.teacher.model.requires_grad_()
    losses, student = loss_of(distiller, toy.det_data()), distiller.student
    head = student.roi_head.bbox_head
    parts = {
        'cross': distiller.bridges['cross'],
        'back': distiller.bridges['back'],
        'neck': student.neck,
        'backbone': student.backbone.layer1[0].conv1,
        'shared': head.shared_fcs,
        'cls': head.fc_cls,
        'reg': head.fc_reg,
        'rpn': student.rpn_head,
        'teacher': distiller.teacher.model,
    }
    below = {'neck', 'backbone'}
    trained = dict(
        loss_levels={'cross', *below},
        loss_cls_kd={'cls', 'shared', *below},
        loss_reg_kd={'reg', 'shared', *below},
        loss_cross_cls={'cross', *below},
        loss_cross_reg={'cross', *below},
        loss_back_cls={'back', 'shared', 'cls'},
        loss_back_reg={'back', 'shared', 'reg'},
    )
    assert trained.keys() == LOSSES.keys()
    for name, expected in trained.items():
        for module in (distiller, distiller.teacher.model):
            module.zero_grad()
        losses[name].backward(retain_graph=True)
        reached = {
            part
            for part, module in parts.items()
            if any(p.grad is not None and p.grad.any() for p in module.parameters())
        }
        assert reached == expected, name


def test_one_step_trains_student_and_bridges(toy: Toy) -> None:
    student = toy.faster_rcnn()
    # Both levels have RoIs.
    student['model']['roi_head']['bbox_roi_extractor']['finest_scale'] = 20
    distiller = fcfd(toy, student).train()
    before = copy.deepcopy([distiller.state_dict(), distiller.teacher.model])
    sgd = torch.optim.SGD(distiller.parameters(), lr=0.01)
    log = distiller.train_step(toy.det_data(), OptimWrapper(sgd))
    assert LOSSES.keys() < log.keys()
    counters = ('num_batches_tracked', 'running_mean', 'running_var', 'weight', 'bias')
    state = distiller.state_dict()
    changed = [key for key in state if not torch.equal(state[key], before[0][key])]
    bridged = [key for key in state if key.startswith('bridges.')]
    assert set(bridged) <= set(changed)
    assert {key.rpartition('.')[2] for key in bridged} == set(counters)
    assert 'student.roi_head.bbox_head.fc_reg.weight' in changed
    teacher = distiller.teacher.model
    assert not any(module.training for module in teacher.modules())
    for key, value in before[1].state_dict().items():
        assert torch.equal(teacher.state_dict()[key], value)
    assert all(p.grad is None for p in teacher.parameters())
    assert not [key for key in state if 'teacher' in key]


def test_the_distillation_does_not_change_the_task_losses(toy: Toy) -> None:
    found, distiller = [], fcfd(toy)
    for model in (distiller.student, distiller):
        torch.manual_seed(0)
        found.append(loss_of(model, toy.det_data()))
    plain, losses = found
    assert losses.keys() == plain.keys() | LOSSES.keys()
    for name, value in plain.items():
        torch.testing.assert_close(losses[name], value, rtol=0, atol=0)


@pytest.mark.parametrize('boxes', [0, 1])
def test_an_image_without_boxes(toy: Toy, boxes: int) -> None:
    data = toy.det_data(boxes=boxes)
    empty = data['data_samples'][1]
    empty.gt_instances = empty.gt_instances[:0]
    distiller = fcfd(toy)
    losses = loss_of(distiller, data)
    assert all(value > 0 for value in distilled(losses).values())
    distiller.parse_losses(losses)[0].backward()
    grads = [p.grad for p in distiller.parameters() if p.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)


def test_a_batch_without_any_roi_reaches_all_parameters(toy: Toy) -> None:
    distiller = fcfd(toy, without_rois(toy))
    found = distilled(loss_of(distiller, toy.det_data(boxes=0)))
    assert found.pop('loss_levels') > 0
    assert all(value == 0 for value in found.values())
    # DDP waits for a gradient of every parameter.
    sum(found.values()).backward()
    for module in (distiller.bridges, distiller.student.roi_head.bbox_head):
        assert all(p.grad is not None for p in module.parameters())


def test_bridges_are_reached_while_weights_are_zero(toy: Toy) -> None:
    losses = {name: dict(loss, loss_weight=0.0) for name, loss in LOSSES.items()}
    distiller = fcfd(toy, losses=losses)
    found = distilled(loss_of(distiller, toy.det_data()))
    assert all(value == 0 for value in found.values())
    sum(found.values()).backward()
    assert all(p.grad is not None for p in distiller.bridges.parameters())


def test_bridges_take_no_random_numbers(toy: Toy) -> None:
    draws = []
    for size in (1, 3):
        torch.manual_seed(0)
        fcfd(toy, bridges={k: dict(v, kernel_size=size) for k, v in BRIDGES.items()})
        draws.append(torch.rand(4))
    assert torch.equal(*draws)


def test_a_path_alone(toy: Toy) -> None:
    distiller = fcfd(toy, losses=CROSS, bridges=dict(cross=BRIDGES['cross']))
    wires = wires_of(distiller, toy.det_data())
    assert 'cross.roi_cls' in wires
    assert 'back.roi_cls' not in wires


def test_a_path_without_bridge_is_refused(toy: Toy) -> None:
    with pytest.raises(ValueError, match=r"loss_back_cls\.student: no wire 'back\.roi"):
        fcfd(toy, bridges=dict(cross=BRIDGES['cross']))


def test_a_bridge_that_nothing_reads_is_refused(toy: Toy) -> None:
    with pytest.raises(
        ValueError, match=r'model\.sources\[1\]\.bridges\.back: nothing'
    ):
        fcfd(toy, losses=CROSS)


def test_another_path_is_refused(toy: Toy) -> None:
    message = r"sources\[1\]\.bridges\.crossed: no such path; did you mean 'cross'"
    with pytest.raises(ValueError, match=message):
        fcfd(toy, bridges=dict(BRIDGES, crossed=BRIDGES['cross']))


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (
            bridge(8, 12),
            r'returns levels \[\(2, 12, .* the teacher reads .*channels=16',
        ),
        (bridge(4, 16), r'expected levels of \[4, 4\] channels, the wire has \[8, 8\]'),
    ],
)
def test_another_width_is_refused(toy: Toy, config: dict, message: str) -> None:
    distiller = fcfd(toy, bridges=dict(BRIDGES, cross=config))
    with pytest.raises(ValueError, match=r'sources\[1\]\.bridges\.cross: ' + message):
        loss_of(distiller, toy.det_data())


def test_another_number_of_levels_is_refused(toy: Toy) -> None:
    student = toy.faster_rcnn()
    extractor = student['model']['roi_head']['bbox_roi_extractor']
    extractor['featmap_strides'] = [8]
    cross = bridge(8, 16, in_channels=8)
    distiller = fcfd(toy, student, bridges=dict(BRIDGES, cross=cross))
    message = r'sources\[1\]\.bridges\.cross: returns levels .* the same strides'
    with pytest.raises(ValueError, match=message):
        loss_of(distiller, toy.det_data())


def test_what_roi_responses_refuses_is_refused(toy: Toy) -> None:
    with pytest.raises(ValueError, match=r'model\.teacher: .* got GFL, NoneType'):
        fcfd(toy, teacher=toy.gfl())
    recorders = dict(student=dict(roi_levels='neck'), teacher={})
    message = r"recorders\.student: .* makes \['roi_levels'\] itself"
    with pytest.raises(ValueError, match=message):
        fcfd(toy, recorders=recorders)
    losses = dict(LOSSES, loss_kd=dict(CLS, student='teacher.roi_cls'))
    with pytest.raises(ValueError, match=r"'teacher\.roi_cls' .* trains nothing"):
        fcfd(toy, losses=losses)
