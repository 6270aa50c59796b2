"""The error of a checkpoint that does not fit names the cause and a working fix."""

from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdtoolbox.checkpoints.weights import load_strictly

Toy = SimpleNamespace
State = dict[str, Tensor]


def refusal(model: Any, state: State) -> str:
    """Return the message of the error that `load_strictly` raises."""
    with pytest.raises(ValueError, match='does not fit') as caught:
        load_strictly(model, state, "'x.pth'", "'model.py'")
    message = str(caught.value)
    assert message.startswith("checkpoint 'x.pth' does not fit")
    assert "of 'model.py'" in message.partition('\n')[0]
    return message


def changed(config: dict, **parts: dict) -> dict:
    """Return a config with changed arguments of some parts."""
    model = {**config['model']}
    for part, arguments in parts.items():
        model[part] = {**model[part], **arguments}
    return {**config, 'model': model}


def of_backbone(state: State) -> State:
    return {key: state[key] for key in state if key.startswith('backbone.')}


def test_classifier_of_mmpretrain(toy: Toy) -> None:
    model = toy.build(toy.gfl())
    state = of_backbone(model.state_dict()) | {'head.fc.weight': torch.ones(9, 64)}
    message = refusal(model, state)
    assert 'holds a backbone' in message
    assert 'no bbox_head, neck' in message
    assert 'Name a checkpoint of a whole GFL' in message
    assert '`model.backbone.init_cfg' in message


@pytest.mark.parametrize('bare', [True, False])
def test_backbone_alone(toy: Toy, bare: bool) -> None:
    """Use the keys of mmdet and of torchvision."""
    model = toy.build(toy.gfl())
    state = of_backbone(model.state_dict())
    if bare:
        state = {key.removeprefix('backbone.'): value for key, value in state.items()}
        state['fc.weight'] = torch.ones(9, 64)
    assert 'holds a backbone' in refusal(model, state)


def test_other_task_is_no_backbone_alone(toy: Toy) -> None:
    message = refusal(toy.build(toy.gfl()), toy.build(toy.segmentor()).state_dict())
    assert 'holds a backbone' not in message
    assert 'Name the config that the checkpoint was trained with' in message
    assert message.endswith("instead of 'model.py'")


HEADS = {
    'gfl': ('bbox_head', '`model.bbox_head.num_classes=7`'),
    'segmentor': ('decode_head', '`model.decode_head.num_classes=7`'),
    'faster_rcnn': ('roi_head', '`model.roi_head.bbox_head.num_classes=7`'),
}


@pytest.mark.parametrize('kind', HEADS)
@pytest.mark.parametrize('model_classes', [1, 3, 4])
def test_other_number_of_classes(toy: Toy, kind: str, model_classes: int) -> None:
    part, fix = HEADS[kind]

    def build(classes: int) -> Any:
        change = dict(num_classes=classes)
        config = getattr(toy, kind)()
        if kind == 'faster_rcnn':
            head = config['model']['roi_head']['bbox_head']
            return toy.build(changed(config, roi_head=dict(bbox_head=head | change)))
        if kind == 'segmentor':
            change |= dict(out_channels=classes)
            return toy.build(changed(config, decode_head=change, auxiliary_head=change))
        return toy.build(changed(config, **{part: change}))

    message = refusal(build(model_classes), build(7).state_dict())
    assert 'Only the layers of the classes differ' in message
    assert f'set {fix}' in message
    assert "in 'model.py'" in message
    load_strictly(build(7), build(7).state_dict(), 'a')


def test_the_fix_for_a_config_of_a_package_inherits_from_it(toy: Toy) -> None:
    state = toy.build(changed(toy.gfl(), bbox_head=dict(num_classes=7))).state_dict()
    with pytest.raises(ValueError, match='classes') as caught:
        load_strictly(toy.build(toy.gfl()), state, 'a', "'mmdet::gfl/a.py'")
    fix = "num_classes=7` in dict(_base_='mmdet::gfl/a.py', model=dict(...))"
    assert fix in str(caught.value)


def test_other_width_is_not_taken_for_classes(toy: Toy) -> None:
    message = refusal(toy.build(toy.gfl()), toy.build(toy.gfl(out=16)).state_dict())
    assert 'classes' not in message
    assert 'Name the config' in message


def resnet(toy: Toy, depth: int) -> dict:
    wide = 4 if depth >= 50 else 1
    return changed(
        toy.gfl(),
        backbone=dict(depth=depth),
        neck=dict(in_channels=[8 * wide * 2**stage for stage in range(4)]),
    )


@pytest.mark.parametrize(('saved', 'built'), [(34, 18), (101, 50), (50, 101)])
def test_other_depth_of_equal_widths(toy: Toy, saved: int, built: int) -> None:
    state = toy.build(resnet(toy, saved)).state_dict()
    message = refusal(toy.build(resnet(toy, built)), state)
    assert f'set `model.backbone.depth={saved}`' in message
    fixed = changed(resnet(toy, built), backbone=dict(depth=saved))
    load_strictly(toy.build(fixed), state, 'a')


def test_other_depth_of_other_widths(toy: Toy) -> None:
    """Another depth is not enough here, since the neck differs, too."""
    state = toy.build(resnet(toy, 50)).state_dict()
    message = refusal(toy.build(resnet(toy, 18)), state)
    assert 'is a ResNet-50 and that of the model a ResNet-18' in message
    assert 'name the config that it was trained with' in message


def test_other_norm_layers(toy: Toy) -> None:
    groups = dict(norm_cfg=dict(type='GN', num_groups=4))
    state = toy.build(changed(toy.gfl(), backbone=groups)).state_dict()
    message = refusal(toy.build(toy.gfl()), state)
    assert 'called gn and those of the model bn' in message
    assert "`norm_cfg=dict(type='GN', ...)`" in message
    assert '`model.backbone`' in message


def test_batch_norm_takes_the_weights_of_sync_batch_norm(toy: Toy) -> None:
    sync = changed(toy.gfl(), backbone=dict(norm_cfg=dict(type='SyncBN')))
    load_strictly(toy.build(toy.gfl()), toy.build(sync).state_dict(), 'a')


def test_two_models(toy: Toy) -> None:
    """mmdet's semi-supervised detectors write such checkpoints."""
    model = toy.build(toy.gfl())
    state = model.state_dict()
    both = {
        f'{side}.{key}': state[key] for side in ('student', 'teacher') for key in state
    }
    message = refusal(model, both)
    assert 'holds two models, `student` and `teacher`' in message
    one = {key: value for key, value in both.items() if key.startswith('teacher.')}
    load_strictly(model, one, 'teacher.pth')


def test_foreign_keys(toy: Toy) -> None:
    message = refusal(toy.build(toy.gfl()), {'proposal_generator.w': torch.ones(1)})
    assert "No key of it is one of the model's" in message


@pytest.mark.parametrize(('built', 'saved'), [('gfl', 'rpn'), ('faster_rcnn', 'gfl')])
def test_keys_that_mmdet_renames_while_it_loads(
    toy: Toy, built: str, saved: str
) -> None:
    """mmdet loads `rpn_head` keys into a `bbox_head`, and the reverse."""
    if saved == 'gfl':
        state = toy.build(toy.gfl()).state_dict()
        # The head of the RPN has this key, too, with another shape.
        state['bbox_head.rpn_cls.weight'] = torch.ones(5, 8, 1, 1)
    else:
        state = toy.build(toy.faster_rcnn()).state_dict()
        state['rpn_head.gfl_cls.weight'] = torch.ones(5, 8, 1, 1)
    message = refusal(toy.build(getattr(toy, built)()), state)
    assert 'size mismatch' not in message
    assert '1 misshapen' in message
    assert '(5, 8, 1, 1) for (' in message
    assert 'Name the config' in message


def test_other_errors_of_torch_are_not_changed(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy.build(toy.gfl())

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError('out of memory')

    state = OrderedDict(model.state_dict())
    monkeypatch.setattr(model, 'load_state_dict', fail)
    with pytest.raises(RuntimeError, match='out of memory'):
        load_strictly(model, state, 'a')


@pytest.mark.parametrize('cause', [dict(strict=True), dict(strict=False)])
def test_mmdet_renames_keys_while_it_loads(toy: Toy, cause: dict) -> None:
    """The test above depends on it."""
    state = toy.build(toy.faster_rcnn()).state_dict()
    state['rpn_head.gfl_cls.weight'] = torch.ones(5, 8, 1, 1)
    load: Callable = toy.build(toy.gfl()).load_state_dict
    with pytest.raises(RuntimeError, match=r'mismatch for bbox_head\.gfl_cls'):
        load(state, **cause)
