"""Schedule the weight of a distillation loss."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner

from kdtoolbox.registry import HOOKS


@HOOKS.register_module()
class LossWeightHook(Hook):
    """Warm up the weight of a distillation loss, and set it to 0 later.

    The weight depends only on the runner's progress, so a resumed run has the same
    weights as an uninterrupted one. The teacher does not run while all weights are 0.

    Args:
        loss: Name of the loss in ``model.losses``.
        warmup: Length of the linear increase from 0 to the configured weight, in
            iterations or epochs.
        stop_after: Number of iterations or epochs after which the weight is 0.
        by_epoch: Count epochs instead of iterations.

    Raises:
        ValueError: If the loss does not exist, a length is negative, or ``by_epoch`` is
            set for a loop without epochs.

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
                f'LossWeightHook for {loss!r}: expected warmup and stop_after >= 0, '
                f'got {warmup} and {stop_after}'
            )
        self.loss = loss
        self.warmup = warmup
        self.stop_after = stop_after
        self.by_epoch = by_epoch
        self._weight: float | None = None

    def factor(self, progress: int) -> float:
        """Return the factor on the configured weight after ``progress`` steps."""
        if self.stop_after is not None and progress >= self.stop_after:
            return 0.0
        return min(1.0, (progress + 1) / self.warmup) if self.warmup else 1.0

    def before_train(self, runner: Runner) -> None:
        """Look up the loss and its configured weight."""
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
                'counts no epochs; set by_epoch=False and count iterations'
            )
        self._module = losses[self.loss]
        if self._weight is None:
            self._weight = self._module.loss_weight

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Set the weight of this iteration."""
        assert self._weight is not None  # noqa: S101  before_train has set it
        progress = runner.epoch if self.by_epoch else runner.iter
        self._module.loss_weight = self._weight * self.factor(progress)
