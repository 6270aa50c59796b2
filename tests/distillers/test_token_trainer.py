import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdtoolbox.registry import MODELS

Toy = SimpleNamespace

SIZES = dict(channels=8, num_levels=3, num_tokens=4)
SEGMENTS = dict(channels=4, num_levels=1, source='decode_head.conv_seg')
FCOS = dict(
    type='FCOSHead',
    num_classes=3,
    in_channels=8,
    feat_channels=8,
    stacked_convs=1,
    strides=[8, 16, 32],
    regress_ranges=((-1, 32), (32, 64), (64, 1e8)),
    norm_on_bbox=True,
    norm_cfg=dict(type='GN', num_groups=4),
)


def trainer_of(teacher: dict, /, **changes: Any) -> Any:
    config = dict(type='kdtoolbox.TokenTrainer', **SIZES)
    config |= dict(teacher=dict(config=teacher, allow_random=True))
    return MODELS.build(config | changes)


def loss_of(model: Any, data: dict) -> dict:
    return model(**model.data_preprocessor(data, training=True), mode='loss')


def fcos(toy: Toy) -> dict:
    config = toy.gfl()
    config['model'] |= dict(type='FCOS', bbox_head=FCOS, train_cfg=None)
    return config


@pytest.mark.parametrize('teacher', ['gfl', 'faster_rcnn', 'segmentor'])
def test_a_step_trains_the_tokens_and_leaves_the_teacher(
    toy: Toy, teacher: str
) -> None:
    segments, config = teacher == 'segmentor', getattr(toy, teacher)()
    model = trainer_of(config, **(SEGMENTS if segments else {}))
    before = copy.deepcopy([model.teacher.model.state_dict(), model.state_dict()])
    assert all(key.startswith('tokens.') for key in model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    data = toy.seg_data() if segments else toy.det_data()
    total, logged = model.train().parse_losses(loss_of(model, data))
    assert {'loss_similarity', 'loss'} < logged.keys()
    total.backward()
    for level in model.tokens.vectors.grad:
        assert level.abs().sum(1).all()
    # Not at every level: a random head may sample no anchors of a level.
    assert sum(layer.weight.grad.abs().sum() for layer in model.tokens.projections) > 0
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()
    teacher = model.teacher.model
    for old, new in zip(before, (teacher, model), strict=True):
        equal = [torch.equal(old[k], v) for k, v in new.state_dict().items()]
        assert all(equal) if new is teacher else not any(equal)
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize('kind', ['gfl', 'fcos'])
def test_whole_maps_leave_the_teachers_own_training_loss(toy: Toy, kind: str) -> None:
    # FCOS's head behaves differently in training and evaluation.
    config = fcos(toy) if kind == 'fcos' else toy.gfl()
    model, plain = trainer_of(config), toy.build(config).train()
    plain.load_state_dict(model.teacher.model.state_dict())

    def whole(features: Tensor, level: int) -> tuple[Tensor, Tensor]:
        return torch.ones_like(features[:, :2]), torch.full((len(features), 2), 0.5)

    model.tokens.forward = whole
    found = loss_of(model, toy.det_data())
    for name, expected in loss_of(plain, toy.det_data()).items():
        torch.testing.assert_close(found[name], expected)
    assert found['loss_similarity'] == 3


def test_maps_are_multiplied_by_the_weighted_masks(toy: Toy) -> None:
    model, seen = trainer_of(toy.gfl()), []
    model.tokens.vectors.data *= 100
    recorders = dict(fpn='neck')
    data = model.data_preprocessor(toy.det_data(), training=True)
    whole = model.teacher.observe(recorders, **data)['fpn']
    head = model.teacher.model.bbox_head
    forward = head.forward
    head.forward = lambda maps: (seen.extend(maps), forward(maps))[1]
    model(**data, mode='loss')
    for level, (found, features) in enumerate(zip(seen, whole, strict=True)):
        masks, weights = model.tokens(features, level)
        expected = sum(
            weights[:, k, None, None, None] * masks[:, k : k + 1] * features
            for k in range(4)
        )
        torch.testing.assert_close(found, expected)


def test_norms_and_dropout_of_the_teacher_stay_in_eval_mode(toy: Toy) -> None:
    model = trainer_of(toy.segmentor(), **SEGMENTS)
    totals = [
        model.parse_losses(loss_of(model.train(), toy.seg_data()))[0] for _ in range(2)
    ]
    assert totals[0] == totals[1]


@pytest.mark.parametrize('mode', ['predict', 'tensor'])
def test_outputs_equal_the_teachers(toy: Toy, mode: str) -> None:
    model = trainer_of(toy.gfl())
    plain = toy.build(toy.gfl()).eval()
    plain.load_state_dict(model.teacher.model.state_dict())
    loss_of(model, toy.det_data())
    answers = []
    for each in (model, plain):
        data = each.data_preprocessor(toy.det_data(((64, 64),) * 2), training=False)
        with torch.no_grad():
            answers.append(each(**data, mode=mode))
    if mode == 'tensor':
        answers = [[*classes, *boxes] for classes, boxes in answers]
    else:
        answers = [[s.pred_instances.bboxes for s in answer] for answer in answers]
    assert all(torch.equal(*pair) for pair in zip(*answers, strict=True))


def test_no_hook_stays_behind_an_error(toy: Toy) -> None:
    model = trainer_of(toy.gfl())
    head = model.teacher.model.bbox_head
    head.loss = None
    with pytest.raises(TypeError):
        loss_of(model, toy.det_data())
    neck = model.teacher.model.neck
    assert not neck._forward_hooks
    assert not any(module.training for module in model.teacher.model.modules())


def test_a_batch_without_boxes(toy: Toy) -> None:
    model = trainer_of(toy.gfl())
    total, _ = model.parse_losses(loss_of(model, toy.det_data(boxes=0)))
    total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_it_moves_the_teacher_and_keeps_it_hidden(toy: Toy) -> None:
    model = copy.deepcopy(trainer_of(toy.gfl())).double()
    assert {p.dtype for p in model.teacher.model.parameters()} == {torch.float64}
    assert len(list(model.parameters())) == len(list(model.tokens.parameters()))


def test_the_loss_reads_the_checkpoint_of_the_tokens(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    model = trainer_of(toy.gfl())
    before = copy.deepcopy(model.state_dict())
    cosine = dict(type='CosineAnnealingLR', T_max=2, by_epoch=False)
    runner = make_runner(
        model,
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=2),
        checkpoint=dict(by_epoch=False, interval=2),
        param_scheduler=[cosine],
    )
    runner.train()
    loss = dict(type='MasKDLoss', student='student.fpn', teacher='teacher.fpn')
    loss |= dict(SIZES, tokens=str(tmp_path / 'iter_2.pth'))
    distiller = toy.build_distiller(toy.gfl(), losses=dict(loss_maskd=loss))
    tokens = distiller.losses['loss_maskd'].tokens.state_dict()
    for name, value in model.tokens.state_dict().items():
        assert torch.equal(tokens[name], value)
        assert not torch.equal(before[f'tokens.{name}'], value)
    assert loss_of(distiller, toy.det_data())['loss_maskd'] > 0


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            dict(channels=4),
            r"model: 'neck': .*channels=4, the maps have 8; set channels=8",
        ),
        (dict(num_levels=2), r"model: 'neck': .*num_levels=2, got level 2"),
        (dict(num_levels=4), r"num_levels is 4, and 'neck' returned 3 maps"),
        (dict(source='data_preprocessor'), 'returned 0 maps for the loss; .*`source`'),
        (dict(source='bbox_head'), "'bbox_head' returns other values.*set `source`"),
    ],
)
def test_another_pyramid_is_refused(toy: Toy, changes: dict, message: str) -> None:
    model = trainer_of(toy.gfl(), **changes)
    with pytest.raises(ValueError, match=message):
        loss_of(model, toy.det_data())


def test_a_missing_part_is_refused(toy: Toy) -> None:
    with pytest.raises(ValueError, match=r"model\.source: GFL has no module 'necks'"):
        trainer_of(toy.gfl(), source='necks')
    with pytest.raises(ValueError, match=r'model\.teacher\.checkpoint is None'):
        trainer_of(toy.gfl(), teacher=dict(config=toy.gfl()))
