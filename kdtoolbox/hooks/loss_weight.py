"""Schedule the weight of a distillation loss."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner

from kdtoolbox.hooks.curves import show
from kdtoolbox.hooks.weight_schedules import factor_at, read_schedule
from kdtoolbox.registry import HOOKS


@HOOKS.register_module()
class LossWeightHook(Hook):
    """Multiply the weight of a distillation loss by the factor of a schedule.

    The factor depends only on the runner's progress, so a resumed run has the same
    weights as an uninterrupted one. The teacher does not run while all weights are 0.
    The log and all visualization backends show ``weight/<loss>``.

    Args:
        loss: Name of the loss in ``model.losses``.
        warmup: Length of the linear increase from 0 to the configured weight, in
            iterations or epochs.
        stop_after: Number of iterations or epochs after which the weight is 0.
        by_epoch: Count epochs instead of iterations.
        schedule: Phases, instead of ``warmup`` and ``stop_after``. `read_schedule`
            lists their kinds.

    Attributes:
        base: The weight that the schedule multiplies: the configured one, unless a
            `LossBalanceHook` changes it.

    Raises:
        ValueError: If the loss does not exist, a length is negative, two hooks schedule
            the same loss, ``by_epoch`` is set for a loop without epochs, or the
            schedule is wrong.
        TypeError: If a phase of the schedule has unknown keys or lacks some.

    Example:
        >>> hook = LossWeightHook('loss_cwd', warmup=4, stop_after=10)
        >>> [hook.factor(progress) for progress in (0, 1, 3, 9, 10)]
        [0.25, 0.5, 1.0, 1.0, 0.0]
        >>> phase = dict(kind='step', milestones=[8, 11], gamma=0.5)
        >>> hook = LossWeightHook('loss_cwd', schedule=[phase], by_epoch=True)
        >>> [hook.factor(progress) for progress in (0, 8, 11)]
        [1.0, 0.5, 0.25]
    """

    def __init__(
        self,
        loss: str,
        warmup: int = 0,
        stop_after: int | None = None,
        by_epoch: bool = False,
        schedule: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        if warmup < 0 or (stop_after is not None and stop_after < 0):
            raise ValueError(
                f'LossWeightHook for {loss!r}: expected warmup and stop_after >= 0, '
                f'got {warmup} and {stop_after}'
            )
        if schedule is not None and (warmup or stop_after is not None):
            raise ValueError(
                f'LossWeightHook for {loss!r}: got a schedule beside warmup or '
                "stop_after; write them as phases, dict(kind='linear', end=...) and "
                "dict(kind='stop', begin=...)"
            )
        self.loss = loss
        self.warmup = warmup
        self.stop_after = stop_after
        self.by_epoch = by_epoch
        where = f'LossWeightHook for {loss!r}: schedule'
        self.phases = None if schedule is None else read_schedule(schedule, where)
        self.base: float | None = None

    def factor(self, progress: int) -> float:
        """Return the factor on the configured weight after ``progress`` steps."""
        if self.phases is not None:
            return factor_at(self.phases, progress)
        if self.stop_after is not None and progress >= self.stop_after:
            return 0.0
        return min(1.0, (progress + 1) / self.warmup) if self.warmup else 1.0

    def before_train(self, runner: Runner) -> None:
        """Look up the loss and its configured weight."""
        self._module = find_loss(runner, self.loss, 'LossWeightHook')
        if self.by_epoch and not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ValueError(
                f'LossWeightHook for {self.loss!r}: {type(runner.train_loop).__name__} '
                'counts no epochs; set by_epoch=False and count iterations'
            )
        same = [
            hook
            for hook in runner.hooks
            if isinstance(hook, LossWeightHook) and hook.loss == self.loss
        ]
        if len(same) > 1:
            raise ValueError(
                f'custom_hooks: {len(same)} LossWeightHooks set the weight of '
                f'{self.loss!r}; write the phases of all into one schedule=[...]'
            )
        if self.base is None:
            self.base = self._module.loss_weight

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Set the weight of this iteration."""
        assert self.base is not None  # noqa: S101  before_train has set it
        progress = runner.epoch if self.by_epoch else runner.iter
        self._module.loss_weight = self.base * self.factor(progress)
        show(runner, f'weight/{self.loss}', self._module.loss_weight)


def find_loss(runner: Runner, name: str, hook: str) -> Any:
    """Return a loss of the runner's model.

    Args:
        runner: The runner.
        name: Name of the loss in ``model.losses``.
        hook: Name of the hook, for the error.

    Raises:
        ValueError: If the model has no such loss.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    losses: Any = getattr(model, 'losses', {})
    if name not in losses:
        raise ValueError(
            f'{hook}: no loss {name!r} in model.losses, which has {list(losses)}'
        )
    return losses[name]
