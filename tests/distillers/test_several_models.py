"""Several teachers, none, teachers that follow the student, and peers."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import nn

from kdtoolbox.distillers import Distiller
from kdtoolbox.hooks import FollowStudentHook
from kdtoolbox.teachers import build_teacher

Toy = SimpleNamespace


def cwd(student: str, teacher: str, **arguments: Any) -> dict:
    return dict(type='CWDLoss', student=student, teacher=teacher, **arguments)


def records(*names: str) -> dict:
    return {name: dict(fpn='neck') for name in names}


def random(config: dict) -> dict:
    return dict(config=config, allow_random=True)


def build(toy: Toy, losses: dict, *names: str, **changes: Any) -> Distiller:
    """Return a distiller of a small GFL with several models."""
    changes = dict(teacher=None, recorders=records('student', *names)) | changes
    torch.manual_seed(0)
    model = toy.build_distiller(toy.gfl(), losses=losses, **changes)
    model.init_weights()
    return model.train()


def pair(toy: Toy, losses: dict, **changes: Any) -> Distiller:
    teachers = dict(a=random(toy.gfl()), b=random(toy.gfl()))
    return build(toy, losses, 'a', 'b', teachers=teachers, **changes)


def losses_of(model: Distiller, toy: Toy) -> dict:
    data = model.data_preprocessor(toy.det_data(), training=True)
    torch.manual_seed(1)
    return model(**data, mode='loss')


def count_calls(module: nn.Module) -> list:
    calls: list = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def train(model: Any, toy: Toy, steps: int = 2) -> list[dict]:
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
    return [model.train_step(toy.det_data(seed=s), wrapper) for s in range(steps)]


# Several teachers.


def test_each_teacher_has_its_own_wires(toy: Toy) -> None:
    losses = dict(
        loss_a=cwd('student.fpn', 'a.fpn'), loss_b=cwd('student.fpn', 'b.fpn')
    )
    model = pair(toy, losses)
    found = losses_of(model, toy)
    assert found['loss_a'] > 0
    assert found['loss_b'] > 0
    assert found['loss_a'] != found['loss_b']
    single = build(
        toy, dict(loss_a=losses['loss_a']), 'a', teachers=dict(a=random(toy.gfl()))
    )
    single.student.load_state_dict(model.student.state_dict())
    single.teachers['a'].model.load_state_dict(model.teachers['a'].model.state_dict())
    torch.testing.assert_close(losses_of(single, toy)['loss_a'], found['loss_a'])
    assert not any('a.' in key for key in model.state_dict() if key.startswith('a.'))


def test_their_mean_is_a_wire(toy: Toy) -> None:
    mean = dict(type='MeanConnector', input=['a.fpn', 'b.fpn'], weights=[3, 1])
    model = pair(
        toy, dict(loss_m=cwd('student.fpn', 'mean')), connectors=dict(mean=mean)
    )
    steps: list = []
    model.observers.append(steps.append)
    losses_of(model, toy)
    wires = steps[0].wires
    for level, a, b in zip(wires['mean'], wires['a.fpn'], wires['b.fpn'], strict=True):
        torch.testing.assert_close(level, 0.75 * a + 0.25 * b)


def test_a_teacher_that_no_active_loss_reads_does_not_run(toy: Toy) -> None:
    losses = dict(
        loss_a=cwd('student.fpn', 'a.fpn'), loss_b=cwd('student.fpn', 'aligned')
    )
    aligned = dict(type='ConvConnector', input='b.fpn', in_channels=8, out_channels=8)
    model = pair(toy, losses, connectors=dict(aligned=aligned))
    calls = {name: count_calls(t.model.backbone) for name, t in model.teachers.items()}
    model.losses['loss_b'].loss_weight = 0.0
    found = losses_of(model, toy)
    assert [len(calls[name]) for name in 'ab'] == [1, 0]
    assert found['loss_b'] == 0
    # Each trainable parameter has a gradient all the same, as DDP requires.
    model.parse_losses(found)[0].backward()
    assert all(p.grad is not None for p in model.connectors.parameters())
    model.losses['loss_b'].loss_weight = 1.0
    losses_of(model, toy)
    assert [len(calls[name]) for name in 'ab'] == [2, 1]


def test_a_teacher_runs_only_as_deep_as_active_losses_read(toy: Toy) -> None:
    recorders = dict(
        student=dict(fpn='neck', c3='backbone.layer2'),
        teacher=dict(fpn='neck', c3='backbone.layer2'),
    )
    losses = dict(
        loss_fpn=cwd('student.fpn', 'teacher.fpn'),
        loss_c3=cwd('student.c3', 'teacher.c3'),
    )
    model = build(
        toy, losses, teacher=random(toy.gfl()), recorders=recorders, teachers=None
    )
    deep = count_calls(model.teacher.model.backbone.layer3)
    losses_of(model, toy)
    assert len(deep) == 1
    model.losses['loss_fpn'].loss_weight = 0.0
    assert losses_of(model, toy)['loss_c3'] > 0
    assert len(deep) == 1


def test_recorders_name_every_model(toy: Toy) -> None:
    with pytest.raises(
        ValueError, match=r'expected dict\(student=\.\.\., a=\.\.\., b='
    ):
        pair(
            toy, dict(loss_a=cwd('student.fpn', 'a.fpn')), recorders=records('student')
        )


def test_the_only_teacher_is_asked_for_by_name(toy: Toy) -> None:
    model = pair(toy, dict(loss_a=cwd('student.fpn', 'a.fpn')))
    with pytest.raises(ValueError, match=r"expected one teacher, got \['a', 'b'\]"):
        _ = model.teacher


def test_the_student_is_initialised_from_one_of_them(toy: Toy) -> None:
    loss = dict(loss_a=cwd('student.fpn', 'a.fpn'))
    model = pair(toy, loss, init_student='b')
    for name, value in model.teachers['b'].model.bbox_head.state_dict().items():
        assert torch.equal(model.student.bbox_head.state_dict()[name], value)
    with pytest.raises(
        ValueError,
        match=r"init_student: .* \['a', 'b'\], got True; write init_student='a'",
    ):
        pair(toy, loss, init_student=True)


def test_a_source_reads_the_teacher_that_it_names(toy: Toy) -> None:
    """Its wires have the teacher's name."""
    losses = dict(
        loss_cross=dict(type='CrossKDClsLoss', student='cross.cls', teacher='b.cls')
    )
    sources = [dict(type='CrossHead', stage=1, teacher='b')]
    names = records('student', 'a', 'b')
    model = pair(toy, losses, sources=sources, recorders=names)
    calls = {name: count_calls(t.model.backbone) for name, t in model.teachers.items()}
    assert losses_of(model, toy)['loss_cross'] > 0
    assert [len(calls[name]) for name in 'ab'] == [0, 1]
    with pytest.raises(
        ValueError, match=r"sources\[0\]\.teacher: no model 'teacher'; name"
    ):
        pair(toy, losses, sources=[dict(type='CrossHead', stage=1)])


def test_a_source_needs_the_students_images(toy: Toy) -> None:
    losses = dict(
        loss_cross=dict(
            type='CrossKDClsLoss', student='cross.cls', teacher='teacher.cls'
        )
    )
    teacher = random(toy.gfl()) | dict(view=dict(scale=2.0))
    with pytest.raises(ValueError, match='remove `view` and `dtype` of model.teacher'):
        build(
            toy,
            losses,
            'teacher',
            teacher=teacher,
            sources=[dict(type='CrossHead', stage=1)],
        )


def test_another_view_is_brought_back_by_a_connector(toy: Toy) -> None:
    resized = dict(type='ResizeConnector', input='teacher.fpn', like='student.fpn')
    model = build(
        toy,
        dict(loss_v=cwd('student.fpn', 'back')),
        'teacher',
        teacher=random(toy.gfl()) | dict(view=dict(scale=1.5)),
        connectors=dict(back=resized),
    )
    assert losses_of(model, toy)['loss_v'] > 0


# No teacher: the student's deeper layers.


def test_a_deeper_layer_teaches_and_gets_no_gradient(toy: Toy) -> None:
    recorders = dict(student=dict(c3='backbone.layer2', c5='backbone.layer4'))
    like = dict(type='ResizeConnector', input='student.c5', like='student.c3')
    wider = dict(
        type='ConvConnector', input='student.c3', in_channels=16, out_channels=64
    )
    model = build(
        toy,
        dict(loss_self=cwd('wider', 'deep')),
        recorders=recorders,
        connectors=dict(deep=like, wider=wider),
    )
    assert model.teachers == {}
    loss = losses_of(model, toy)['loss_self']
    assert loss > 0
    loss.backward()
    assert model.student.backbone.layer2[0].downsample[0].weight.grad.abs().sum() > 0
    assert model.student.backbone.layer4[0].downsample[0].weight.grad is None
    assert train(model, toy)[0]['loss_self'] > 0


# Teachers that follow the student.


def follower(toy: Toy, **average: Any) -> Distiller:
    average = dict(type='ExponentialMovingAverage', momentum=0.5) | average
    teacher = dict(type='SelfTeacher', average=average)
    loss = dict(loss_t=cwd('student.fpn', 'teacher.fpn'))
    return build(toy, loss, 'teacher', teacher=teacher)


def runner_of(make: Callable, model: Any, **arguments: Any) -> Any:
    runner = make(model, **arguments)
    runner.register_hook(FollowStudentHook())
    return runner


def test_a_moving_average_follows_the_student(toy: Toy, make_runner: Callable) -> None:
    """Each update is ``0.5 * average + 0.5 * student``, from the student's start."""
    model = follower(toy)
    seen: list = []
    expected = copy.deepcopy(model.student.state_dict())

    class Watching(FollowStudentHook):
        def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
            super().after_train_iter(runner, *args, **kwargs)
            for key, value in model.student.named_parameters():
                expected[key] = 0.5 * expected[key] + 0.5 * value.detach()
            seen.append(1)

    runner = make_runner(model)
    runner.register_hook(Watching())
    runner.train()
    assert len(seen) == 4
    for key, value in model.teacher.model.named_parameters():
        torch.testing.assert_close(value, expected[key])
    assert not torch.equal(
        model.teacher.model.bbox_head.gfl_cls.weight,
        model.student.bbox_head.gfl_cls.weight,
    )


def test_a_resumed_run_has_the_same_average(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    whole = follower(toy)
    start = copy.deepcopy(whole.state_dict())
    runner_of(make_runner, whole, work_dir=str(tmp_path / 'whole')).train()
    cut = follower(toy)
    cut.load_state_dict(start)
    folder = str(tmp_path / 'cut')
    short = dict(by_epoch=True, max_epochs=1)
    runner_of(make_runner, cut, work_dir=folder, train_cfg=short).train()
    resumed = follower(toy)
    runner_of(make_runner, resumed, work_dir=folder, resume=True).train()
    for models in ('student', 'teacher'):
        state, goal = (
            (x.student if models == 'student' else x.teacher).state_dict()
            for x in (resumed, whole)
        )
        assert state.keys() == goal.keys()
        assert all(torch.equal(state[key], goal[key]) for key in goal), models


def test_a_checkpoint_without_the_teacher_is_refused(
    toy: Toy, make_runner: Callable
) -> None:
    short = dict(by_epoch=True, max_epochs=1)
    make_runner(follower(toy), train_cfg=short).train()
    with pytest.raises(ValueError, match="has no teacher 'teacher' that fits; resume"):
        runner_of(make_runner, follower(toy), resume=True).train()


@pytest.mark.parametrize('saved', ['nothing', 'another model'])
def test_a_partly_resumed_teacher_starts_as_the_student(
    toy: Toy, make_runner: Callable, saved: str
) -> None:
    short = dict(by_epoch=True, max_epochs=1)
    make_runner(follower(toy), train_cfg=short).train()

    class Removing(FollowStudentHook):
        def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
            if saved != 'nothing':
                state = nn.Conv2d(1, 1, 1).state_dict()
                checkpoint['teachers'] = dict(teacher=state)
            super().after_load_checkpoint(runner, checkpoint)

        def before_train(self, runner: Any) -> None:
            super().before_train(runner)
            started.append(model.teacher.model.bbox_head.gfl_cls.weight.clone())
            started.append(model.student.bbox_head.gfl_cls.weight.clone())

    started: list = []
    model = follower(toy)
    runner = make_runner(model, resume=True)
    runner.register_hook(Removing(partly=True))
    runner.train()
    assert torch.equal(*started)


def test_a_snapshot_is_the_student_of_an_earlier_step(toy: Toy) -> None:
    model = follower(toy)
    teacher = dict(type='SelfTeacher', average=dict(type='Snapshot', interval=2))
    loss = dict(loss_t=cwd('student.fpn', 'teacher.fpn'))
    model = build(toy, loss, 'teacher', teacher=teacher)
    weight, own = (
        x.backbone.conv1.weight for x in (model.teacher.model, model.student)
    )
    # The first two layers of a ResNet are frozen in training, not here.
    for step in range(1, 5):
        with torch.no_grad():
            own.fill_(float(step))
        model.teacher.update(model.student)
        assert weight.unique().tolist() == [2.0] if step in (2, 3) else True
    assert weight.unique().tolist() == [4.0]


@pytest.mark.parametrize(
    ('average', 'kind', 'message'),
    [
        (dict(type='NormConnector'), ValueError, r"type: 'NormConnector' is not an"),
        ('Snapshot', TypeError, "expected a dict with `type`, got 'Snapshot'"),
        (dict(momentum=0.1), TypeError, r"expected a dict with `type`, got \{'mom"),
        (dict(type='Snapshot'), TypeError, "Snapshot needs 'interval'"),
        (dict(type='Snapshot', interval=0), ValueError, r'\.interval: .*got 0; write'),
        (dict(type='Snapshot', interval=1.5), ValueError, r'\.interval: .*got 1\.5;'),
        (
            dict(type='Snapshot', interval=2, device='cuda'),
            TypeError,
            "takes no 'device'",
        ),
        (
            dict(type='ExponentialMovingAverage', moment=0.1),
            TypeError,
            r"takes no 'moment' \(did you mean 'momentum'",
        ),
        (
            dict(type='ExponentialMovingAverage', momentum=2.0),
            ValueError,
            'momentum must be in range .* got 2.0; write average=',
        ),
        (
            dict(type='ExponentialMovingAverage', momentum='0.1'),
            ValueError,
            "'str'; write average=",
        ),
    ],
)
def test_a_wrong_average_is_refused(average: Any, kind: type, message: str) -> None:
    with pytest.raises(kind, match=rf'^model\.teacher\.average.*{message}'):
        build_teacher(
            dict(type='SelfTeacher', average=average), student=nn.Conv2d(1, 1, 1)
        )


# Peers.


def mutual(toy: Toy) -> Distiller:
    losses = dict(
        loss_to_peer=cwd('peer.fpn', 'student.fpn'),
        loss_to_student=cwd('student.fpn', 'peer.fpn'),
    )
    return build(toy, losses, 'peer', peers=dict(peer=toy.gfl()))


def test_two_students_teach_each_other(toy: Toy) -> None:
    model = mutual(toy)
    first = losses_of(model, toy)
    own = {key for key in first if not key.startswith(('peer.', 'loss_to'))}
    assert {key.removeprefix('peer.') for key in first if 'peer.' in key} == own
    for name, trained, other in (
        ('loss_to_peer', model.peers['peer'], model.student),
        ('loss_to_student', model.student, model.peers['peer']),
    ):
        model.zero_grad()
        losses_of(model, toy)[name].backward()
        grads = [p.grad for p in trained.neck.parameters()]
        assert any(g is not None and g.abs().sum() > 0 for g in grads), name
        assert all(p.grad is None for p in other.neck.parameters()), name


def test_both_train_and_only_the_student_predicts(toy: Toy) -> None:
    model = mutual(toy)
    before = copy.deepcopy(model.state_dict())
    train(model, toy)
    moved = {
        key.partition('.')[0]
        for key, value in model.state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert moved == {'student', 'peers'}
    model.eval()
    calls = count_calls(model.peers['peer'].backbone)
    model.test_step(toy.det_data())
    assert not calls


def test_a_peer_starts_from_its_own_initialisation(toy: Toy) -> None:
    model = mutual(toy)
    plain = toy.build(toy.gfl())
    torch.manual_seed(0)
    plain.init_weights()
    bias = model.peers['peer'].bbox_head.gfl_cls.bias
    torch.testing.assert_close(bias, plain.bbox_head.gfl_cls.bias)


def test_a_peer_with_another_normalisation_sees_the_same_images(toy: Toy) -> None:
    other = toy.gfl()
    other['model'] = dict(
        other['model'],
        data_preprocessor=dict(
            other['model']['data_preprocessor'], mean=[0.0] * 3, bgr_to_rgb=False
        ),
    )
    losses = dict(loss_p=cwd('peer.fpn', 'student.fpn'))
    model = build(toy, losses, 'peer', peers=dict(peer=other))
    seen: list = []
    model.peers['peer'].backbone.register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    losses_of(model, toy)
    expected = model.peers['peer'].data_preprocessor(toy.det_data(), training=True)
    # Its padding is 0 after the normalisation, like the student's.
    torch.testing.assert_close(seen[0], expected['inputs'], rtol=1e-4, atol=1e-3)


def test_names_of_models_differ(toy: Toy) -> None:
    with pytest.raises(ValueError, match=r'model\.peers\.a: a teacher has that name'):
        build(
            toy,
            dict(loss_a=cwd('student.fpn', 'a.fpn')),
            'a',
            teachers=dict(a=random(toy.gfl())),
            peers=dict(a=toy.gfl()),
        )


@pytest.mark.parametrize(
    ('peers', 'kind', 'message'),
    [
        (['x.py'], TypeError, r"\.peers: expected configs by name, got \['x\.py'\]"),
        ('x.py', TypeError, r"\.peers: .*; write peers=dict\(peer='config\.py'\)"),
        (dict(items='x.py'), ValueError, r'\.peers\.items: every module of torch'),
        (dict(training='x.py'), ValueError, r'\.peers\.training: every module of'),
    ],
)
def test_peers_without_names_of_their_own_are_refused(
    toy: Toy, peers: Any, kind: type, message: str
) -> None:
    loss = dict(loss_a=cwd('student.fpn', 'student.fpn'))
    with pytest.raises(kind, match=rf'^model{message}'):
        build(toy, loss, peers=peers)


def test_a_peer_cannot_train_on_the_students_targets(toy: Toy) -> None:
    losses = dict(
        loss_ld=dict(
            type='LDLoss',
            student='peer.reg',
            teacher='student.reg',
            student_cls='student.cls',
        )
    )
    head = dict(reg='bbox_head.gfl_reg', cls='bbox_head.gfl_cls')
    names = dict(student=head, peer=head)
    with pytest.raises(
        ValueError, match=r"loss_ld: it reads the targets .* 'peer\.reg'"
    ):
        build(toy, losses, recorders=names, peers=dict(peer=toy.gfl()))
