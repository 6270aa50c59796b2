import copy
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import Tensor

Toy = SimpleNamespace

# DINO of mmdet 3.3.0 supports a width of 256 only.
LAYERS, QUERIES, CLASSES, DIMS = 2, 10, 3, 256
CLS = dict(student='student.query_cls', teacher='teacher.query_cls')
BOX = dict(student='student.query_box', teacher='teacher.query_box')
LOSSES = dict(
    loss_query_cls=dict(CLS, type='QueryClassLoss'),
    loss_query_box=dict(BOX, type='QueryBoxLoss', teacher_cls='teacher.query_cls'),
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def layers(dropout: float, **attention: Any) -> dict:
    ffn = dict(embed_dims=DIMS, feedforward_channels=16, ffn_drop=dropout)
    shared = dict(embed_dims=DIMS, dropout=dropout)
    return dict(
        num_layers=LAYERS,
        layer_cfg={k: dict(shared, **v) for k, v in attention.items()}
        | dict(ffn_cfg=ffn),
    )


def detr(toy: Toy, kind: str = 'DeformableDETR', /, **changes: Any) -> dict:
    """Return the config of a small DINO or Deformable DETR, plain or refined."""
    dino, refined = kind == 'DINO', kind != 'DeformableDETR'
    base, dropout = changes.pop('base', 8), changes.pop('dropout', 0.0)
    config = toy.gfl(base=base)
    model = config['model']
    model |= dict(type='DINO' if dino else 'DeformableDETR', num_queries=QUERIES)
    model |= dict(num_feature_levels=2, with_box_refine=refined, as_two_stage=dino)
    model['backbone']['out_indices'] = (2, 3)
    model['neck'] = dict(
        type='ChannelMapper',
        in_channels=[4 * base, 8 * base],
        kernel_size=1,
        out_channels=DIMS,
        norm_cfg=dict(type='GN', num_groups=4),
        num_outs=2,
    )
    deformable = dict(num_levels=2, num_heads=2)
    model['encoder'] = layers(dropout, self_attn_cfg=deformable)
    model['decoder'] = layers(
        dropout, self_attn_cfg=dict(num_heads=2), cross_attn_cfg=deformable
    ) | dict(return_intermediate=True, post_norm_cfg=None)
    model['positional_encoding'] = dict(num_feats=DIMS // 2, normalize=True)
    costs = [dict(type='FocalLossCost'), dict(type='BBoxL1Cost', box_format='xywh')]
    model['bbox_head'] = dict(
        type='DINOHead' if dino else 'DeformableDETRHead',
        num_classes=CLASSES,
        embed_dims=DIMS,
        loss_cls=dict(type='FocalLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss'),
        loss_iou=dict(type='GIoULoss'),
    )
    model['train_cfg'] = dict(
        assigner=dict(type='HungarianAssigner', match_costs=costs)
    )
    model['test_cfg'] = dict(max_per_img=5)
    if dino:
        groups = dict(dynamic=True, num_dn_queries=4)
        noise = dict(label_noise_scale=0.5, box_noise_scale=1.0)
        model['dn_cfg'] = dict(noise, group_cfg=groups)
    for key, value in changes.items():
        part, _, name = key.rpartition('__')
        (model[part] if part else model)[name] = value
    return config


def pair(toy: Toy, student: dict, teacher: dict, /, **changes: Any) -> Any:
    config = toy.distiller(copy.deepcopy(student), copy.deepcopy(teacher))
    config.pop('recorders')
    config |= dict(sources=[dict(type='ObjectQueries')], losses=LOSSES) | changes
    model = toy.build(dict(model=config, default_scope='mmdet'))
    for detector in (model.student, model.teacher.model):
        # Before `init_weights` this parameter is uninitialised memory.
        torch.nn.init.normal_(detector.level_embed)
    return model.train()


def build(toy: Toy, kind: str, /, **changes: Any) -> Any:
    return pair(toy, detr(toy, kind), detr(toy, kind, base=16), **changes)


def loss_of(model: Any, data: dict) -> dict:
    return model(**model.data_preprocessor(data, training=True), mode='loss')


def wires_of(model: Any, data: dict) -> tuple[dict, dict]:
    """Return the losses of a step and the wires that they read."""
    seen: dict = {}
    collect = model.wiring.collect
    model.wiring.collect = lambda *given: seen.update(collect(*given)) or seen
    try:
        return loss_of(model, data), seen
    finally:
        del model.wiring.collect


def distilled(losses: dict) -> dict[str, Tensor]:
    return {k: v for k, v in losses.items() if k.partition('.')[0] in LOSSES}


all_kinds = pytest.mark.parametrize('kind', ['DeformableDETR', 'refined', 'DINO'])


@all_kinds
def test_equal_weights_give_equal_predictions(toy: Toy, kind: str) -> None:
    config = detr(toy, kind)
    model = pair(toy, config, config)
    losses, wires = wires_of(model, toy.det_data())
    assert all(value > 0 for value in distilled(losses).values())
    assert not torch.allclose(
        wires['student.query_box'][1], wires['teacher.query_box'][1]
    )
    model.student.load_state_dict(model.teacher.model.state_dict())
    losses, wires = wires_of(model, toy.det_data())
    for name in ('query_cls', 'query_box'):
        student_values, teacher_values = (
            wires[f'{side}.{name}'] for side in ('student', 'teacher')
        )
        torch.testing.assert_close(student_values, teacher_values, rtol=1e-5, atol=1e-5)
    assert all(value.abs() < 1e-4 for value in distilled(losses).values())


@all_kinds
def test_the_teachers_wires_are_what_it_predicts(toy: Toy, kind: str) -> None:
    model = build(toy, kind)
    # The teacher runs without gradient even if somebody has set requires_grad.
    teacher = model.teacher.model.requires_grad_()
    _, wires = wires_of(model, toy.det_data())
    batch = teacher.data_preprocessor(toy.det_data(), training=True)
    with torch.no_grad():
        logits, boxes = teacher(**batch, mode='tensor')
    rows = 2 * QUERIES
    for name, expected, size in (('cls', logits, CLASSES), ('box', boxes, 4)):
        found = wires[f'teacher.query_{name}']
        assert [x.shape for x in found] == [(rows, size)] * LAYERS
        torch.testing.assert_close(torch.stack(found), expected.flatten(1, 2))
        assert not any(x.requires_grad for x in found)
        assert all(x.requires_grad for x in wires[f'student.query_{name}'])
        assert [x.shape for x in wires[f'student.query_{name}']] == [
            (rows, size)
        ] * LAYERS


def test_the_students_own_queries_are_not_used(toy: Toy) -> None:
    model = build(toy, 'DeformableDETR')
    before = wires_of(model, toy.det_data())[1]['student.query_cls'][-1]
    torch.nn.init.normal_(model.student.query_embedding.weight)
    after = wires_of(model, toy.det_data())[1]['student.query_cls'][-1]
    assert torch.equal(before, after)
    torch.nn.init.normal_(model.teacher.model.query_embedding.weight)
    after = wires_of(model, toy.det_data())[1]['student.query_cls'][-1]
    assert not torch.allclose(before, after)


def test_denoising_queries_of_dino_are_left_out(toy: Toy) -> None:
    model = build(toy, 'DINO')
    counts = []
    hook = model.student.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: counts.append(
            (kwargs['query'].shape[1], kwargs['self_attn_mask'] is None)
        ),
        with_kwargs=True,
    )
    found = []
    for boxes in (1, 2, 0):
        torch.manual_seed(0)
        _, wires = wires_of(model, toy.det_data(boxes=boxes))
        found.append(wires['student.query_cls'][-1])
    hook.remove()
    for own, crossed in zip(counts[::2], counts[1::2], strict=True):
        assert own[0] >= QUERIES
        assert crossed == (QUERIES, True)
    assert counts[0][0] > QUERIES
    # The denoising queries, made from the ground truth, change nothing.
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


@all_kinds
def test_the_teacher_does_not_change_the_task_losses(toy: Toy, kind: str) -> None:
    config = detr(toy, kind, dropout=0.1)
    model = pair(toy, config, config)
    found = []
    for one in (model.student, model):
        torch.manual_seed(0)
        found.append(loss_of(one, toy.det_data()))
    plain, losses = found
    assert {k.partition('.')[0] for k in losses.keys() - plain.keys()} == set(LOSSES)
    for name, value in plain.items():
        torch.testing.assert_close(losses[name], value, rtol=0, atol=0)


@all_kinds
def test_one_step_trains_the_student_only(toy: Toy, kind: str) -> None:
    model = build(toy, kind)
    before = copy.deepcopy(model.teacher.model.state_dict())
    losses = loss_of(model, toy.det_data())
    student = model.student
    trained = (student.backbone.layer4[1].conv2, student.neck.convs[0].conv)
    trained += (
        student.encoder.layers[0].ffn.layers[1],
        student.decoder.layers[0].norms[0],
    )
    weights = [module.weight for module in trained]
    found = torch.autograd.grad(
        sum(distilled(losses).values()), weights, retain_graph=True
    )
    assert all(gradient.any() for gradient in found)
    log = model.train_step(
        toy.det_data(), OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
    )
    assert {name.partition('.')[0] for name in log} > set(LOSSES)
    teacher = model.teacher.model
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    plain = toy.build(detr(toy, kind)).state_dict()
    assert student.state_dict().keys() == plain.keys()


def test_encoder_memory_as_maps(toy: Toy) -> None:
    records = dict.fromkeys(('student', 'teacher'), dict(memory='encoder', maps='neck'))
    token = dict(type='TokenConnector')
    model = build(
        toy,
        'DINO',
        recorders=records,
        connectors=dict(
            student_values=token | dict(input='student.memory', like='student.maps'),
            teacher_values=token | dict(input='teacher.memory', like='teacher.maps'),
        ),
        losses=dict(
            loss_pkd=dict(
                type='PKDLoss', student='student_values', teacher='teacher_values'
            )
        ),
    )
    losses, wires = wires_of(model, toy.det_data())
    assert losses['loss_pkd'] > 0
    gradient = torch.autograd.grad(
        losses['loss_pkd'], model.student.encoder.layers[-1].norms[1].weight
    )
    assert gradient[0].any()
    student_values = model.connectors['student_values'](
        wires['student.memory'], wires['student.maps']
    )
    assert [tuple(x.shape) for x in student_values] == [
        (2, DIMS, 4, 4),
        (2, DIMS, 2, 2),
    ]


@pytest.mark.parametrize('dtype', [torch.bfloat16])
def test_autocast(toy: Toy, dtype: torch.dtype) -> None:
    with torch.autocast('cpu', dtype):
        losses = distilled(loss_of(build(toy, 'DeformableDETR'), toy.det_data()))
    assert len(losses) == 3
    for value in losses.values():
        assert value.dtype == torch.float32
        assert value > 0
    sum(losses.values()).backward()


def test_an_interrupted_step_leaves_nothing_behind(toy: Toy) -> None:
    model = build(toy, 'DeformableDETR')

    def stop(*_: Any) -> None:
        assert model.student.decoder._forward_pre_hooks
        raise KeyboardInterrupt

    handle = model.student.bbox_head.loss_cls.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        loss_of(model, toy.det_data())
    handle.remove()
    for decoder in (model.student.decoder, model.teacher.model.decoder):
        assert not decoder._forward_pre_hooks
    first, second = (loss_of(m, toy.det_data()) for m in (model, copy.deepcopy(model)))
    torch.testing.assert_close(distilled(first), distilled(second))
    [source] = model.wiring.sources
    assert vars(source).keys() == {*vars(type(source)()), 'teacher', 'where'}


@pytest.mark.parametrize('side', ['student', 'teacher'])
def test_other_detectors_are_refused(toy: Toy, side: str) -> None:
    configs = dict(student=detr(toy), teacher=detr(toy))
    configs[side] = toy.gfl()
    message = rf'model\.{side}: .* got GFL, NoneType, GFLHead; take'
    with pytest.raises(ValueError, match=message):
        pair(toy, *configs.values())


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(bbox_head__num_classes=4), 'classes: 3, the teacher has 4'),
        (dict(decoder__num_layers=3), 'layers of the decoder: 2, the teacher has 3'),
        (
            dict(with_box_refine=True, as_two_stage=True),
            'as_two_stage: False, the teacher has True',
        ),
    ],
)
def test_pairs_that_do_not_fit_are_refused(
    toy: Toy, changes: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=rf'model\.student: {message}, .*encoder'):
        pair(toy, detr(toy), detr(toy, **changes))


def test_a_dino_cannot_teach_a_deformable_detr(toy: Toy) -> None:
    with pytest.raises(ValueError, match='kind of decoder: .* has .DinoTransformer'):
        pair(toy, detr(toy), detr(toy, 'DINO'))


@pytest.mark.parametrize('side', ['student', 'teacher'])
def test_records_with_names_of_the_source_are_refused(toy: Toy, side: str) -> None:
    names = ['query_box', 'query_cls', 'query_states']
    recorders: dict = dict(student={}, teacher={})
    recorders[side] = dict.fromkeys([*names, 'query'], 'neck')
    message = rf'model\.recorders\.{side}: .* makes {re.escape(str(names))} itself'
    with pytest.raises(ValueError, match=message):
        build(toy, 'DINO', recorders=recorders)


def test_a_cached_teacher_is_refused(toy: Toy) -> None:
    config = toy.distiller(detr(toy), detr(toy, base=16))
    config.pop('recorders')
    config |= dict(sources=[dict(type='ObjectQueries')], losses=LOSSES)
    config['teacher']['cache'] = dict(path='unused', views=1)
    message = r'model.sources\[0\]: ObjectQueries watches .*remove model.teacher.cache'
    with pytest.raises(ValueError, match=message):
        toy.build(dict(model=config, default_scope='mmdet'))
