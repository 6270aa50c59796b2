"""Schedule the weight of a distillation loss."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner

from kdtoolbox.registry import HOOKS


@HOOKS.register_module()
class LossWeightHook(Hook):
    """Warm a distillation loss up, and stop it.

    The weight follows from the runner's progress alone, so that a resumed run has the
    weights of an uninterrupted one. Once every loss is stopped the teacher rests.

    Args:
        loss: Name of the loss in ``model.losses``.
        warmup: Length of the linear rise from 0 to the configured weight.
        stop_after: Progress from which the weight is 0.
        by_epoch: Count epochs rather than iterations.

    Raises:
        ValueError: If there is no such loss, a length is negative, or epochs are asked
            of a loop that has none.

    Example:
        >>> hook = LossWeightHook('loss_cwd', warmup=4, stop_after=10)
        >>> [hook.factor(progress) for progress in (0, 1, 3, 9, 10)]
        [0.25, 0.5, 1.0, 1.0, 0.0]
    """

    def __init__(
        self,
        loss: str,
        warmup: int = 0,
        stop_after: int | None = None,
        by_epoch: bool = False,
    ) -> None:
        if warmup < 0 or (stop_after is not None and stop_after < 0):
            raise ValueError(
                f'LossWeightHook for {loss!r}: expected warmup and stop_after from 0 '
                f'on, got {warmup} and {stop_after}'
            )
        self.loss = loss
        self.warmup = warmup
        self.stop_after = stop_after
        self.by_epoch = by_epoch
        self._weight: float | None = None

    def factor(self, progress: int) -> float:
        """Return the share of the configured weight at ``progress`` steps done."""
        if self.stop_after is not None and progress >= self.stop_after:
            return 0.0
        return min(1.0, (progress + 1) / self.warmup) if self.warmup else 1.0

    def before_train(self, runner: Runner) -> None:
        """Find the loss and its configured weight."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        losses = getattr(model, 'losses', {})
        if self.loss not in losses:
            raise ValueError(
                f'LossWeightHook: no loss {self.loss!r} in model.losses, which has '
                f'{list(losses)}'
            )
        if self.by_epoch and not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ValueError(
                f'LossWeightHook for {self.loss!r}: {type(runner.train_loop).__name__} '
                'counts no epochs; set by_epoch=False and give iterations'
            )
        self._module = losses[self.loss]
        if self._weight is None:
            self._weight = self._module.loss_weight

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Set the weight of this iteration."""
        assert self._weight is not None  # noqa: S101  before_train has set it
        progress = runner.epoch if self.by_epoch else runner.iter
        self._module.loss_weight = self._weight * self.factor(progress)
