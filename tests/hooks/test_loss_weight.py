import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.hooks import Hook

from kdtoolbox.hooks import LossWeightHook
from kdtoolbox.registry import HOOKS

Toy = SimpleNamespace
WEIGHT = 2.0
EPOCHS = dict(by_epoch=True, max_epochs=3)
ITERATIONS = dict(by_epoch=False, max_iters=6)


class Watch(Hook):
    """Record the weight of each iteration, and whether the teacher ran."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.weights: list[float] = []
        self.ran: list[bool] = []
        self.losses: list[float] = []

    def before_train(self, runner: Any) -> None:
        backbone = runner.model.teacher.model.backbone
        backbone.register_forward_pre_hook(self.note)

    def note(self, *_: Any) -> None:
        self.ran[-1] = True

    def before_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        self.weights.append(runner.model.losses['loss_cwd'].loss_weight)
        self.ran.append(False)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any, outputs: dict
    ) -> None:
        self.losses.append(float(outputs['loss_cwd']))


def run(
    toy: Toy, make_runner: Callable, train_cfg: dict, hook: dict, **arguments: Any
) -> Watch:
    wires = dict(student='student.fpn', teacher='teacher.fpn')
    losses = dict(loss_cwd=dict(type='CWDLoss', loss_weight=WEIGHT, **wires))
    hook = dict(type='kdtoolbox.LossWeightHook', loss='loss_cwd') | hook
    watch = Watch()
    runner = make_runner(
        toy.distiller(toy.gfl(), losses=losses),
        train_cfg=train_cfg,
        custom_hooks=[hook, watch],
        **arguments,
    )
    runner.train()
    return watch


def shares(watch: Watch) -> list[float]:
    return [round(weight / WEIGHT, 6) for weight in watch.weights]


def test_warmup_and_stop_by_iteration(toy: Toy, make_runner: Callable) -> None:
    watch = run(toy, make_runner, ITERATIONS, dict(warmup=4, stop_after=5))
    assert shares(watch) == [0.25, 0.5, 0.75, 1, 1, 0]
    assert watch.ran == [True] * 5 + [False]
    assert watch.losses[-1] == 0
    assert min(watch.losses[:-1]) > 0


def test_by_epoch_holds_over_an_epoch(toy: Toy, make_runner: Callable) -> None:
    hook = dict(warmup=2, stop_after=2, by_epoch=True)
    watch = run(toy, make_runner, EPOCHS, hook)
    assert shares(watch) == [0.5, 0.5, 1, 1, 0, 0]
    assert watch.ran == [True] * 4 + [False] * 2


def test_iterations_are_counted_through_the_epochs(
    toy: Toy, make_runner: Callable
) -> None:
    watch = run(toy, make_runner, EPOCHS, dict(warmup=4))
    assert shares(watch) == [0.25, 0.5, 0.75, 1, 1, 1]


def test_without_arguments_the_weight_is_the_configured_one(
    toy: Toy, make_runner: Callable
) -> None:
    assert shares(run(toy, make_runner, ITERATIONS, {})) == [1] * 6


@pytest.mark.parametrize('by_epoch', [True, False])
def test_resumed_run_has_the_weights_of_an_uninterrupted_one(
    toy: Toy, make_runner: Callable, tmp_path: Path, by_epoch: bool
) -> None:
    hook = dict(warmup=3, by_epoch=True) if by_epoch else dict(warmup=5, stop_after=6)
    whole = run(toy, make_runner, EPOCHS, hook, work_dir=str(tmp_path / 'whole'))
    parts: list[float] = []
    for epochs in (1, 3):
        cfg = dict(by_epoch=True, max_epochs=epochs)
        parts += shares(run(toy, make_runner, cfg, hook, resume=epochs > 1))
    assert parts == shares(whole)


def test_training_twice_starts_from_the_configured_weight(
    toy: Toy, make_runner: Callable
) -> None:
    runner = make_runner(toy.distiller(toy.gfl()), train_cfg=dict(EPOCHS))
    runner.build_train_loop(dict(EPOCHS))
    hook = LossWeightHook('loss_cwd', stop_after=0)
    loss = runner.model.losses['loss_cwd']
    weight = loss.loss_weight
    hook.before_train(runner)
    hook.before_train_iter(runner)
    assert loss.loss_weight == 0
    hook.stop_after = None
    hook.before_train(runner)
    hook.before_train_iter(runner)
    assert loss.loss_weight == weight


def test_an_unknown_loss_raises_with_the_known_ones(
    toy: Toy, make_runner: Callable
) -> None:
    with pytest.raises(ValueError, match=r"no loss 'loss_pkd'.*\['loss_cwd'\]"):
        run(toy, make_runner, ITERATIONS, dict(loss='loss_pkd'))


def test_plain_model_has_no_losses(toy: Toy, make_runner: Callable) -> None:
    hooks = [dict(type='kdtoolbox.LossWeightHook', loss='loss_cwd')]
    runner = make_runner(toy.gfl()['model'], custom_hooks=hooks)
    with pytest.raises(ValueError, match="no loss 'loss_cwd' in model.losses"):
        runner.train()


def test_epochs_of_an_iteration_loop_are_refused(
    toy: Toy, make_runner: Callable
) -> None:
    with pytest.raises(ValueError, match='counts no epochs; set by_epoch=False'):
        run(toy, make_runner, ITERATIONS, dict(warmup=1, by_epoch=True))


@pytest.mark.parametrize('arguments', [dict(warmup=-1), dict(stop_after=-1)])
def test_negative_progress_is_refused(arguments: dict) -> None:
    # In mmengine -1 often means 'never', but as `stop_after` it would set all weights
    # to 0.
    with pytest.raises(ValueError, match='LossWeightHook'):
        LossWeightHook('loss_cwd', **arguments)


def test_phases_of_a_schedule_set_the_weights_of_a_run(
    toy: Toy, make_runner: Callable
) -> None:
    schedule = [
        dict(kind='linear', end=2, start=0.5, stop=1.0),
        dict(kind='step', milestones=[3], gamma=0.5, end=4),
        dict(kind='stop', begin=5),
    ]
    watch = run(toy, make_runner, ITERATIONS, dict(schedule=schedule))
    assert shares(watch) == [0.5, 0.75, 1, 0.5, 0.5, 0]
    assert watch.ran == [True] * 5 + [False]


def test_a_schedule_by_epoch_resumes_exactly(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    hook = dict(schedule=[dict(kind='cosine', end=3, stop=0.2)], by_epoch=True)
    whole = run(toy, make_runner, EPOCHS, hook, work_dir=str(tmp_path / 'whole'))
    parts: list[float] = []
    for epochs in (1, 3):
        cfg = dict(by_epoch=True, max_epochs=epochs)
        parts += run(toy, make_runner, cfg, hook, resume=epochs > 1).weights
    assert parts == whole.weights
    assert len(set(parts)) == 3


def test_the_current_weight_is_shown(toy: Toy, make_runner: Callable) -> None:
    runner = make_runner(toy.distiller(toy.gfl()), train_cfg=dict(ITERATIONS))
    runner.register_custom_hooks([LossWeightHook('loss_cwd', warmup=6)])
    runner.train()
    shown = runner.message_hub.get_scalar('train/weight/loss_cwd')
    # The log shows the mean of the last iterations.
    assert shown.mean(6) == runner.model.losses['loss_cwd'].loss_weight


def test_two_hooks_of_one_loss_are_refused(toy: Toy, make_runner: Callable) -> None:
    runner = make_runner(toy.distiller(toy.gfl()), train_cfg=dict(ITERATIONS))
    hooks = [LossWeightHook('loss_cwd', warmup=2), LossWeightHook('loss_cwd')]
    runner.register_custom_hooks(hooks)
    with pytest.raises(ValueError, match=r"2 LossWeightHooks.*'loss_cwd'.*schedule="):
        runner.train()


def test_a_schedule_beside_the_short_form_is_refused() -> None:
    schedule = [dict(kind='stop', begin=3)]
    for short in (dict(warmup=2), dict(stop_after=5)):
        with pytest.raises(ValueError, match='beside warmup or stop_after'):
            LossWeightHook('loss_cwd', schedule=schedule, **short)


def test_errors_of_a_schedule_name_hook_and_phase() -> None:
    phases = [dict(kind='linear', end=5), dict(kind='stop', begin=3)]
    with pytest.raises(ValueError, match=r"'loss_cwd': schedule\[1\] begins at 3"):
        LossWeightHook('loss_cwd', schedule=phases)


def test_the_hooks_of_the_page_can_be_built() -> None:
    page = Path(__file__).parents[2] / 'docs/weights.md'
    found: list[str] = []
    for block in re.findall(r'```python\n(.*?)```', page.read_text(), re.DOTALL):
        config: dict[str, Any] = {}
        exec(block, config)  # noqa: S102 - our own page
        hooks = [HOOKS.build(hook) for hook in config.get('custom_hooks', [])]
        found += [type(hook).__name__ for hook in hooks]
    assert found == ['LossWeightHook', 'LossWeightHook', 'LossBalanceHook']
