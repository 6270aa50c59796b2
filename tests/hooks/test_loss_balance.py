from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook

from kdtoolbox.checkpoints.reading import read_checkpoint
from kdtoolbox.distillers.gradient_shares import TASK, gradients_at, norm_of
from kdtoolbox.hooks import LossBalanceHook, LossWeightHook, ReadableCheckpointHook

Toy = SimpleNamespace
FPN = 'student.fpn'
WIRES = dict(student=FPN, teacher='teacher.fpn')
CWD = dict(type='CWDLoss', **WIRES)
PKD = dict(type='PKDLoss', **WIRES)
NAMES = ('loss_cwd', 'loss_pkd')


class Watch(Hook):
    """Measure the shares of each iteration in a way of its own; note the weights."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.weights: list[dict[str, float]] = []
        self.shares: list[dict[str, float]] = []
        self.observers: list[int] = []

    def before_train(self, runner: Any) -> None:
        self.model = runner.model

    def before_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        losses = self.model.losses
        self.weights.append({k: losses[k].loss_weight for k in losses})
        self.observers.append(len(self.model.observers))
        self.model.observers.append(self.see)

    def see(self, step: Any) -> None:
        names = list(self.model.losses)
        found = gradients_at(step, [FPN], [TASK, *names])
        norms = {k: float(norm_of(found[k][FPN]) or 0) for k in found}
        self.shares.append({k: norms[k] / (norms[k] + norms[TASK]) for k in names})

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        self.model.observers.remove(self.see)

    def of(self, name: str) -> list[float]:
        return [weights[name] for weights in self.weights]


def run(
    toy: Toy,
    make_runner: Callable,
    hooks: list[Hook],
    iters: int = 6,
    losses: dict | None = None,
    **arguments: Any,
) -> tuple[Any, Watch]:
    torch.manual_seed(0)
    watch = Watch()
    runner = make_runner(
        toy.distiller(toy.gfl(), losses=losses or dict(loss_cwd=CWD, loss_pkd=PKD)),
        train_cfg=dict(by_epoch=False, max_iters=iters),
        checkpoint=dict(by_epoch=False, interval=3),
        randomness=dict(seed=0),
        **arguments,
    )
    runner.register_custom_hooks([*hooks, watch, ReadableCheckpointHook()])
    runner.train()
    return runner, watch


def balance(**changes: Any) -> LossBalanceHook:
    shares = dict(loss_cwd=0.4, loss_pkd=0.2)
    arguments = dict(shares=shares, interval=1, band=0.1, max_change=20.0)
    return LossBalanceHook(**(arguments | dict(limits=(1e-6, 1e6)) | changes))


def test_shares_of_the_gradient_enter_their_bands(
    toy: Toy, make_runner: Callable
) -> None:
    # There are two batches of one image; the hook sees the second one.
    runner, watch = run(toy, make_runner, [balance(interval=2)], iters=12)
    first, last = watch.shares[1], watch.shares[-1]
    for name, target in (('loss_cwd', 0.4), ('loss_pkd', 0.2)):
        assert abs(first[name] - target) > 0.1
        assert abs(last[name] - target) < 0.12
        shown = runner.message_hub.get_scalar(f'train/share/{name}').current()
        assert shown == pytest.approx(last[name], rel=1e-4)
        weight = runner.message_hub.get_scalar(f'train/weight/{name}')
        assert weight.current() == watch.weights[-1][name]


def test_it_measures_at_its_interval_alone_and_moves_by_max_change(
    toy: Toy, make_runner: Callable
) -> None:
    shares = dict(loss_cwd=0.99)
    hook = balance(shares=shares, band=0.005, interval=3, max_change=1.5)
    runner, watch = run(toy, make_runner, [hook], iters=7)
    assert watch.observers == [0, 0, 1, 0, 0, 1, 0]
    assert watch.of('loss_cwd') == pytest.approx([1, 1, 1, 1.5, 1.5, 1.5, 2.25])
    assert watch.of('loss_pkd') == [1] * 7
    assert not runner.model.observers


def test_in_its_band_it_changes_no_bit_of_the_training(
    toy: Toy, make_runner: Callable
) -> None:
    hook = balance(shares=dict(loss_cwd=0.5, loss_pkd=0.5), band=0.49999)
    states = [
        run(toy, make_runner, hooks, iters=4)[0].model.state_dict()
        for hooks in ([], [hook])
    ]
    assert hook.factors == dict(loss_cwd=1.0, loss_pkd=1.0)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_shares_of_the_value(toy: Toy, make_runner: Callable) -> None:
    hook = balance(of='loss', band=0.05)
    runner, _ = run(toy, make_runner, [hook], iters=8)
    hub = runner.message_hub
    values = {k: hub.get_scalar(f'train/{k}').current() for k in (*NAMES, 'loss')}
    task = values['loss'] - values['loss_cwd'] - values['loss_pkd']
    for name, target in (('loss_cwd', 0.4), ('loss_pkd', 0.2)):
        share = values[name] / (values[name] + task)
        assert share == pytest.approx(target, abs=0.06)
        assert hub.get_scalar(f'train/share/{name}').current() == pytest.approx(share)


def test_terms_of_a_loss_are_balanced_as_one(toy: Toy, make_runner: Callable) -> None:
    fgd = dict(type='FGDLoss', channels=8, num_levels=3, **WIRES)
    hook = balance(shares=dict(loss_fgd=0.5), interval=2)
    runner, watch = run(toy, make_runner, [hook], losses=dict(loss_fgd=fgd))
    assert len(set(watch.of('loss_fgd'))) > 1
    assert 0.3 < runner.message_hub.get_scalar('train/share/loss_fgd').current() < 0.7


def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    def hooks() -> list[Hook]:
        return [balance(interval=2, max_change=1.5), LossWeightHook('loss_pkd', 5)]

    whole = str(tmp_path / 'whole')
    runner, watch = run(toy, make_runner, hooks(), work_dir=whole)
    content = read_checkpoint(f'{whole}/iter_3.pth')
    assert content['loss_balance'].keys() == set(NAMES)
    assert content['loss_balance'] != dict.fromkeys(NAMES, 1.0)
    again, rest = run(
        toy, make_runner, hooks(), resume=True, load_from=f'{whole}/iter_3.pth'
    )
    assert rest.weights == watch.weights[3:]
    expected = runner.model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in again.model.state_dict().items())


def test_load_from_starts_with_the_configured_weights(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    _, watch = run(toy, make_runner, [balance()], work_dir=str(tmp_path / 'first'))
    assert watch.weights[-1] != watch.weights[0]
    path = f'{tmp_path}/first/iter_6.pth'
    _, watch = run(toy, make_runner, [balance(interval=9)], load_from=path)
    assert watch.weights[0] == dict.fromkeys(NAMES, 1.0)


@pytest.mark.parametrize('balance_first', [True, False])
def test_a_schedule_multiplies_the_balanced_weight(
    toy: Toy, make_runner: Callable, balance_first: bool
) -> None:
    phases = [
        dict(kind='constant', end=2, factor=0.0),
        dict(kind='constant', end=6, factor=0.25),
        dict(kind='stop'),
    ]
    hooks = [
        balance(shares=dict(loss_cwd=0.5), max_change=1e5),
        LossWeightHook('loss_cwd', schedule=phases),
    ]
    hooks = hooks if balance_first else hooks[::-1]
    losses = dict(loss_cwd=CWD)
    runner, watch = run(toy, make_runner, hooks, iters=7, losses=losses)
    weights = watch.of('loss_cwd')
    assert weights[:3] == [0, 0, 0.25]
    assert weights[6] == 0
    # At a quarter of the weight of an equal gradient, the share is a fifth.
    assert watch.shares[-1]['loss_cwd'] == pytest.approx(0.2, abs=0.08)
    assert weights[5] != 0.25
    assert runner.message_hub.get_scalar('train/share/loss_cwd').current() == 0


def test_a_loss_without_gradient_keeps_its_weight(
    toy: Toy, make_runner: Callable
) -> None:
    # Student and teacher are the same map.
    same = dict(type='FitNetLoss', student=FPN, teacher=FPN)
    losses = dict(loss_cwd=CWD, loss_same=same)
    hook = balance(shares=dict(loss_cwd=0.5, loss_same=0.3))
    runner, watch = run(toy, make_runner, [hook], losses=losses)
    assert watch.of('loss_same') == [1] * 6
    assert watch.of('loss_cwd')[-1] != 1
    assert runner.message_hub.get_scalar('train/share/loss_same').current() == 0


def test_a_weight_at_its_limit_is_told_once(toy: Toy, make_runner: Callable) -> None:
    hook = balance(shares=dict(loss_cwd=0.99), band=0.005, limits=(0.5, 1.5))
    told: list[str] = []
    warn = Hook()
    warn.before_train = lambda runner: setattr(runner.logger, 'warning', told.append)
    _, watch = run(toy, make_runner, [warn, hook])
    assert watch.of('loss_cwd') == [1] + [1.5] * 5
    [message] = [text for text in told if 'LossBalanceHook' in text]
    assert 'weight of loss_cwd stays at its limit, 1.5, although' in message


def test_the_loss_scale_of_mixed_precision_is_no_part_of_the_share(
    toy: Toy, make_runner: Callable
) -> None:
    factors = []
    for scale in (1.0, 2.0**12):
        hook = balance()
        scaler = SimpleNamespace(get_scale=lambda scale=scale: scale)
        add = Hook()
        add.before_train = lambda runner, scaler=scaler: setattr(
            runner.optim_wrapper, 'loss_scaler', scaler
        )
        run(toy, make_runner, [add, hook], iters=2)
        factors.append(hook.factors)
    assert factors[0] == pytest.approx(factors[1], rel=1e-5)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(of='value'), "of='value'"),
        (dict(of='loss', at=FPN), "without at; got of='loss' and at='student.fpn'"),
        (dict(interval=0), 'expected interval >= 1, got 0'),
        (dict(shares=dict(loss_cwd=1.5)), 'between 0 and 1'),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        balance(**arguments)


@pytest.mark.parametrize(
    ('hooks', 'message'),
    [
        ([dict(shares=dict(loss_kd=0.3))], r"LossBalanceHook: no loss 'loss_kd'"),
        ([dict(at='student.fnp')], r"got 'student.fnp'; did you mean 'student.fpn'"),
        ([dict(at='teacher.fpn')], "layer of the student, got 'teacher.fpn'"),
        ([{}, dict(shares=dict(loss_cwd=0.3))], "two LossBalanceHooks.*'loss_cwd'"),
    ],
)
def test_hooks_that_do_not_fit_the_model_are_refused(
    toy: Toy, make_runner: Callable, hooks: list[dict], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(toy, make_runner, [balance(**changes) for changes in hooks])


def test_a_configured_weight_of_0_is_refused(toy: Toy, make_runner: Callable) -> None:
    losses = dict(loss_cwd=dict(CWD, loss_weight=0.0), loss_pkd=PKD)
    with pytest.raises(ValueError, match='loss_cwd has loss_weight=0, .* set loss_w'):
        run(toy, make_runner, [balance()], losses=losses)


def test_a_layer_that_the_loss_does_not_reach_is_refused(
    toy: Toy, make_runner: Callable
) -> None:
    recorders = dict(student=dict(fpn='neck', head='bbox_head.gfl_cls'))
    recorders['teacher'] = dict(fpn='neck')
    model = toy.distiller(toy.gfl(), recorders=recorders)
    runner = make_runner(model, train_cfg=dict(by_epoch=False, max_iters=2))
    hook = balance(shares=dict(loss_cwd=0.3), at='student.head')
    runner.register_custom_hooks([hook])
    with pytest.raises(ValueError, match=r"not both reach 'student.head'; name a la"):
        runner.train()
