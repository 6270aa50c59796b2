import copy
import logging
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kdtoolbox.distillers import watching
from kdtoolbox.distillers.watching import Watch, trained_wires

Toy = SimpleNamespace
CWD = dict(type='CWDLoss', student='student.fpn', teacher='teacher.fpn')
SIDES = {f'{side}.{name}': {side} for side in ('student', 'teacher') for name in 'ab'}


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The messages of a watch of three steps."""
    messages: list[str] = []

    def print_log(message: str, logger: str, level: int) -> None:
        assert (logger, level) == ('current', logging.WARNING)
        messages.append(message)

    monkeypatch.setattr(watching, 'print_log', print_log)
    monkeypatch.setattr(watching, 'STEPS', 3)
    return messages


@pytest.fixture(scope='module')
def built(toy: Toy) -> Any:
    losses = dict(loss_a=CWD, loss_b=dict(CWD, loss_weight=0.0))
    return toy.build_distiller(toy.gfl(), losses=losses)


@pytest.fixture
def model(built: Any) -> Any:
    """A distiller with a new watch, whose second loss has the weight 0."""
    return copy.deepcopy(built)


def step(model: Any) -> list[Tensor]:
    """Train on random records, which the student's own losses also train."""
    sides = [[torch.randn(1, 8, 2, 2) for _ in range(3)] for _ in range(2)]
    student = [x.requires_grad_() for x in sides[0]]
    wires = {'student.fpn': student, 'teacher.fpn': sides[1]}
    distilled = model.wiring(wires, {})
    (sum(distilled.values()) + sum(x.square().sum() for x in student)).backward()
    assert all(x.grad.any() for x in student)
    return student


class Zero(nn.Module):
    loss_weight = 1.0

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student - student.detach()).sum()


class Detached(Zero):
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return student.detach().square().mean() + 1


class Vanishing(Zero):
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student * 0).mean() + 1


class FirstLevel(Zero):
    per_level = False

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        return student[0].square().mean()


class Checkpointed(Zero):
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return checkpoint(lambda x: x.square().mean(), student, use_reentrant=True)


@pytest.mark.parametrize('loss', [None, Checkpointed])
def test_a_sound_distillation_gives_no_warning(
    loss: type | None, model: Any, messages: list[str]
) -> None:
    if loss:
        model.losses['loss_a'] = loss()
    for _ in range(5):
        step(model)
    assert not messages
    assert model.wiring.watch._alive.keys() == {'loss_b'}


def test_a_loss_that_stays_at_zero_is_reported_once(
    model: Any, messages: list[str]
) -> None:
    model.losses['loss_a'] = Zero()
    for _ in range(3):
        step(model)
    assert not messages
    for _ in range(4):
        step(model)
    [message] = messages
    assert message.startswith('model.losses.loss_a has been exactly 0 in 3 steps. ')


@pytest.mark.parametrize(
    ('loss', 'levels'),
    [(Detached, '0, 1, 2'), (Vanishing, '0, 1, 2'), (FirstLevel, '1, 2')],
)
def test_a_record_without_gradient_is_reported_once(
    loss: type, levels: str, model: Any, messages: list[str]
) -> None:
    model.losses['loss_a'] = loss()
    for _ in range(3):
        step(model)
    assert not messages
    for _ in range(4):
        step(model)
    [message] = messages
    assert message.startswith(f"wire 'student.fpn', level {levels}: in 3 steps of loss")


def test_one_step_with_values_is_enough(model: Any, messages: list[str]) -> None:
    sound = model.losses['loss_a']
    for loss in (Zero(), Detached(), sound, Zero(), Detached()):
        model.losses['loss_a'] = loss
        step(model)
    assert not messages


def test_a_gradient_from_one_of_two_losses_is_enough(
    model: Any, messages: list[str]
) -> None:
    model.losses['loss_b'] = Detached()
    for _ in range(5):
        step(model)
    assert not messages


def test_steps_at_weight_0_and_without_gradient_do_not_count(
    model: Any, messages: list[str]
) -> None:
    model.losses['loss_b'].loss_weight = 1.0
    model.losses['loss_a'] = Zero()
    model.losses['loss_a'].loss_weight = 0.0
    for _ in range(5):
        step(model)
    model.losses['loss_a'].loss_weight = 1.0
    wires = {f'{side}.fpn': [torch.ones(1, 8, 2, 2)] for side in ('student', 'teacher')}
    with torch.no_grad():
        for _ in range(5):
            model.wiring(wires, {})
    for _ in range(3):
        step(model)
    assert not messages
    step(model)
    assert len(messages) == 1


def test_wires_are_followed_through_connectors() -> None:
    connections = dict(
        c=dict(input='student.a', like='student.b'),
        d=dict(input='c', like='teacher.a'),
        e=dict(input='teacher.a', like='student.a'),
    )
    ends = dict(loss_d='d', loss_b='student.b', loss_e='e')
    comparisons = {
        name: dict(student=wire, teacher='teacher.a', student_cls='student.b')
        for name, wire in ends.items()
    }
    expected = dict(loss_d=['student.a'], loss_b=['student.b'], loss_e=[])
    assert trained_wires(SIDES, connections, comparisons) == expected


def test_the_watch_leaves_nothing_behind(model: Any, messages: list[str]) -> None:
    seen: list[Tensor] = []
    model.losses['loss_a'].register_forward_pre_hook(
        lambda _, args, given: seen.append(given['student']), with_kwargs=True
    )
    keys = model.state_dict().keys()
    records = [record for _ in range(5) for record in step(model)]
    given = [found is record for found, record in zip(seen, records, strict=True)]
    assert given == [False] * 9 + [True] * 6
    assert not any(record._backward_hooks for record in records)
    assert model.state_dict().keys() == keys


def test_a_copy_and_a_pickle_continue_the_watch(
    model: Any, messages: list[str]
) -> None:
    model.losses['loss_a'] = Zero()
    for _ in range(3):
        step(model)
    copied = copy.deepcopy(model)
    step(copied)
    assert len(messages) == 1
    pickle.loads(pickle.dumps(model.wiring.watch)).follow({}, [])
    assert len(messages) == 2


def test_a_graph_may_outlive_the_watch(messages: list[str]) -> None:
    watch = Watch(dict(loss_a=['student.a']))
    record = torch.ones(2, requires_grad=True)
    for _ in range(3):
        [view] = watch.follow({'student.a': [record]}, ['loss_a'])['student.a']
        watch.see('loss_a', [view.sum()])
    watch.follow({'student.a': [record]}, ['loss_a'])
    view.sum().backward()
    assert record.grad.tolist() == [1, 1]
    assert len(messages) == 1


def test_watched_steps_train_to_the_same_weights(
    toy: Toy, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    aligned = dict(type='ConvConnector', input='student.fpn', kernel_size=3)
    aligned |= dict(in_channels=8, out_channels=8)
    losses = dict(loss_a=CWD, loss_b=dict(CWD, type='PKDLoss'))
    losses['loss_c'] = dict(CWD, type='FitNetLoss', student='aligned')
    ends = []
    for steps in (0, 2):
        monkeypatch.setattr(watching, 'STEPS', steps)
        torch.manual_seed(0)
        model = toy.build_distiller(
            toy.gfl(), losses=losses, connectors=dict(aligned=aligned)
        ).train()
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
        logs = [model.train_step(toy.det_data(), wrapper) for _ in range(3)]
        ends.append((logs, model.state_dict()))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(ends[0][1][key], value) for key, value in ends[1][1].items())
    assert not messages
