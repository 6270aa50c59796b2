"""Parts of real students learn without labels, and nothing else is left of them."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement

from kdtoolbox.distillers import Distiller, Pretrainer
from kdtoolbox.inspection.faults import examine, find_faults
from kdtoolbox.runs.rehearsal import rehearse

Toy = SimpleNamespace
RADIO = dict(type='CosineSmoothL1Loss', student='student.fpn', teacher='teacher.fpn')
TASKS = pytest.mark.parametrize('task', ['gfl', 'faster_rcnn', 'segmentor'])


def config_of(toy: Toy, task: str = 'gfl', /, **changes: Any) -> dict:
    """Return the config of a pre-training on the last part that both sides have."""
    config = toy.distiller(getattr(toy, task)(), losses=dict(loss_radio=RADIO))
    config['type'] = 'kdtoolbox.Pretrainer'
    if task == 'segmentor':
        config['parts'] = ('backbone',)
    return config | changes


def build(toy: Toy, task: str = 'gfl', /, **changes: Any) -> Any:
    return MODELS.build(config_of(toy, task, **changes))


def images(*sizes: tuple[int, int]) -> dict:
    """Return raw images whose samples have no labels."""
    samples = [BaseDataElement(metainfo=dict(img_shape=size)) for size in sizes]
    generator = torch.Generator().manual_seed(0)
    raw = [
        torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)
        for size in sizes
    ]
    return dict(inputs=raw, data_samples=samples)


def loss_of(model: Any, data: dict) -> dict:
    return model(**model.data_preprocessor(data, training=True), mode='loss')


@TASKS
def test_a_step_without_labels_trains_the_parts_alone(toy: Toy, task: str) -> None:
    model = build(toy, task)
    parts = {'backbone'} if task == 'segmentor' else {'backbone', 'neck'}
    assert {key.split('.')[1] for key in model.state_dict()} == parts
    assert all(key.startswith('student.') for key in model.state_dict())
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel()
        for name, p in toy.build(getattr(toy, task)()).named_parameters()
        if name.split('.')[0] in parts
    )
    before = copy.deepcopy([model.state_dict(), model.teacher.model.state_dict()])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total, logged = model.train().parse_losses(
        loss_of(model, images((64, 64), (64, 64)))
    )
    assert {*logged} == {'loss', 'loss_radio'}
    total.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    optimizer.step()
    moved = [
        key
        for key, v in model.state_dict().items()
        if not torch.equal(v, before[0][key])
    ]
    assert {key.split('.')[1] for key in moved} == parts
    teacher = model.teacher.model.state_dict()
    assert all(torch.equal(teacher[key], before[1][key]) for key in teacher)


@TASKS
def test_maps_and_first_weights_are_those_of_the_whole_student(
    toy: Toy, task: str
) -> None:
    states = []
    for make in (lambda: toy.build(getattr(toy, task)()), lambda: build(toy, task)):
        torch.manual_seed(0)
        model = make()
        model.init_weights()
        states.append(model)
    plain, student = states[0].eval(), states[1].eval().student
    for name, value in student.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name
    inputs = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = plain.extract_feat(inputs), states[1](inputs)
    assert len(found) == len(expected) > 1
    assert all(map(torch.equal, found, expected))


def test_the_backbone_alone_is_trained_with_a_neck_in_the_config(toy: Toy) -> None:
    recorders = dict(student=dict(fpn='backbone'), teacher=dict(fpn='backbone'))
    model = build(toy, recorders=recorders, parts=['backbone'])
    assert {key.split('.')[1] for key in model.state_dict()} == {'backbone'}
    assert loss_of(model, images((64, 64)))['loss_radio'] > 0


def test_a_teacher_of_other_channels_and_stride_is_brought_to_the_students_maps(
    toy: Toy,
) -> None:
    model = build(
        toy,
        teacher=dict(config=toy.segmentor(base=16), allow_random=True),
        recorders=dict(
            student=dict(last='neck.fpn_convs.1'),
            teacher=dict(deep='backbone.layer4', shallow='backbone.layer2'),
        ),
        connectors=dict(
            aligned=dict(
                type='ConvConnector',
                input='student.last',
                in_channels=8,
                out_channels=128,
            ),
            resized=dict(
                type='ResizeConnector', input='teacher.deep', like='student.last'
            ),
        ),
        losses=dict(
            loss_radio=dict(RADIO, student='aligned', teacher='resized'),
            loss_patch=dict(
                type='PatchRelationLoss',
                student='student.last',
                teacher='teacher.shallow',
            ),
            loss_queue=dict(
                type='QueueRelationLoss',
                channels=128,
                slots=8,
                student='aligned',
                teacher='teacher.deep',
            ),
        ),
    )
    sizes = {wire: tuple(levels[0].shape) for wire, levels in wires_of(model).items()}
    assert sizes['student.last'] == (2, 8, 4, 4)
    assert sizes['teacher.shallow'] == (2, 32, 8, 8)
    assert sizes['teacher.deep'] == (2, 128, 2, 2)
    losses = loss_of(model.train(), images((64, 64), (64, 64)))
    assert {*losses} == {'loss_radio', 'loss_patch', 'loss_queue'}
    assert all(value > 0 for value in losses.values())
    assert model.state_dict()['losses.loss_queue.queues.0.ends'] == 4


def wires_of(model: Any) -> dict:
    steps: list = []
    model.observers.append(steps.append)
    loss_of(model.train(), images((64, 64), (64, 64)))
    model.observers.pop()
    return steps[0].wires


def test_several_teachers_and_one_that_follows_the_parts(toy: Toy) -> None:
    config = config_of(
        toy,
        teachers=dict(
            wide=dict(config=toy.gfl(out=8, base=16), allow_random=True),
            mean=dict(type='SelfTeacher'),
        ),
        recorders=dict.fromkeys(('student', 'wide', 'mean'), dict(fpn='neck')),
        losses=dict(
            loss_wide=dict(RADIO, teacher='wide.fpn'),
            loss_mean=dict(RADIO, teacher='mean.fpn'),
        ),
    )
    del config['teacher']
    model = MODELS.build(config).train()
    model.init_weights()
    losses = loss_of(model, images((64, 64), (64, 64)))
    assert losses['loss_wide'] > 0
    mean = model.teachers['mean'].model
    assert {*dict(mean.named_children())} == {'data_preprocessor', 'backbone', 'neck'}
    # It starts as a copy.
    assert losses['loss_mean'] < 1e-6


def test_a_step_without_weights_moves_nothing_and_does_not_fail(toy: Toy) -> None:
    model = build(toy).train()
    model.losses['loss_radio'].loss_weight = 0.0
    total, logged = model.parse_losses(loss_of(model, images((64, 64))))
    assert logged['loss_radio'] == 0
    total.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and not p.grad.any() for p in trained)


def test_a_checkpoint_of_a_whole_detector_fills_the_parts(toy: Toy) -> None:
    plain, model = toy.build(toy.gfl()), build(toy)
    missing = model.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert not missing
    for name, value in model.student.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name])


def test_a_copy_shares_the_teacher_and_moves_alone(toy: Toy) -> None:
    model = build(toy)
    other = copy.deepcopy(model)
    assert other.teacher is model.teacher
    assert other.double().teacher.model.backbone.conv1.weight.dtype == torch.float64
    assert model.teacher.model.backbone.conv1.weight.dtype == torch.float32


def test_it_is_a_distiller_and_predicts_nothing(toy: Toy) -> None:
    model = build(toy)
    assert isinstance(model, Distiller)
    with pytest.raises(ValueError, match='predicts nothing; set val_dataloader = '):
        model(torch.rand(1, 3, 64, 64), mode='predict')


def wrong_configs(toy: Toy) -> dict[str, tuple[dict, str]]:
    head = dict(student=dict(fpn='bbox_head.gfl_cls'), teacher=dict(fpn='neck'))
    early = dict(student=dict(fpn='backbone'), teacher=dict(fpn='backbone'))
    none = dict(student={}, teacher=dict(fpn='neck'))
    return {
        'heads': (
            config_of(toy, parts=('backbone', 'bbox_head')),
            r"model\.parts: expected \('backbone', 'neck'\) .*heads need labels",
        ),
        'order': (config_of(toy, parts=('neck',)), r'model\.parts: expected'),
        'text': (config_of(toy, parts='backbone'), r'model\.parts: expected'),
        'no neck': (
            config_of(toy, 'segmentor', parts=('backbone', 'neck')),
            r"EncoderDecoder, has no neck; set parts=\('backbone',\)",
        ),
        'head recorded': (
            config_of(toy, recorders=head),
            r"model\.recorders\.student\.fpn.*no module 'bbox_head",
        ),
        'neck not reached': (
            config_of(toy, recorders=early),
            r"no recorder reads the neck, so no loss trains it; record 'neck'",
        ),
        'backbone not reached': (
            config_of(toy, recorders=none, parts=('backbone',)),
            r'student\.fpn',
        ),
    }


@pytest.mark.parametrize(
    'case',
    [
        *('heads', 'order', 'text', 'no neck', 'head recorded', 'neck not reached'),
        'backbone not reached',
    ],
)
def test_wrong_configs_raise_and_are_found(toy: Toy, case: str) -> None:
    config, message = wrong_configs(toy)[case]
    with pytest.raises(ValueError, match=message):
        MODELS.build(config)
    [fault] = find_faults(Config(dict(default_scope='mmdet', model=trained(config))))
    assert fault.problem.startswith('model.')


def trained(config: dict) -> dict:
    """Return a config whose teacher seems to have weights, which are not read."""
    teacher = dict(config=config['teacher']['config'], checkpoint='not_read.pth')
    return dict(config, teacher=teacher)


@TASKS
def test_the_inspection_tries_a_right_config(toy: Toy, task: str) -> None:
    scope = getattr(toy, task)()['default_scope']
    model = trained(config_of(toy, task))
    found = examine(Config(dict(default_scope=scope, model=model)))
    assert not [*found.faults]
    assert found.trial.compared == ['loss_radio']
    assert not found.trial.missed
    typo = Config(
        dict(default_scope=scope, model=dict(model, type='kdtoolbox.Pretrain'))
    )
    [fault] = find_faults(typo)
    assert "kdtoolbox has no 'Pretrain'; did you mean 'kdtoolbox.Pretrainer'" in (
        fault.problem + str(fault.cure)
    )


@TASKS
def test_the_rehearsal_tries_the_losses_without_labels(
    toy: Toy, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(
        'kdtoolbox.runs.rehearsal.print_log', lambda text, logger: told.append(text)
    )
    model = build(toy, task)
    before = copy.deepcopy(model.state_dict())
    rehearse(model)
    assert not told
    assert all(torch.equal(v, before[key]) for key, v in model.state_dict().items())
    wide = dict(config=toy.gfl(base=16, out=16), allow_random=True)
    if task == 'gfl':
        with pytest.raises(ValueError, match=r'model\.losses\.loss_radio.*differ'):
            rehearse(build(toy, teacher=wide))


def test_parts_are_an_argument_of_the_pretrainer_alone(toy: Toy) -> None:
    model = dict(trained(config_of(toy)), type='kdtoolbox.Distiller', parts=['neck'])
    [fault] = find_faults(Config(dict(default_scope='mmdet', model=model)))
    assert "takes no 'parts'" in fault.problem
    assert issubclass(Pretrainer, Distiller)
