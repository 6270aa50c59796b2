"""Keep NaN and Inf out of the weights and the checkpoints of a run."""

from functools import partial
from math import isfinite
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn
from torch.optim import Optimizer

from kdtoolbox.checkpoints.finite_values import listed, non_finite
from kdtoolbox.distillers.finite import LOWER, NonFiniteError, describe
from kdtoolbox.distillers.gradients import explain_gradients, finite_gradients
from kdtoolbox.registry import HOOKS

PATIENCE = 64
"""Consecutive updates that a loss scaler may skip. Each one halves the scale, so finite
gradients stop to overflow much earlier."""


@HOOKS.register_module()
class FiniteWeightsHook(Hook):
    """Stop a run before it updates a weight with NaN or Inf, or saves one.

    A finite loss can have an infinite gradient, such as a square root at 0. The
    gradients are checked once per update, when the optimizer steps. If ``clip_grad``
    has computed their norm, only the norm is checked. A loss scaler skips such updates
    itself; then the run stops if too many in a row are skipped. ``tools/train.py``
    adds this hook to every run.

    Raises:
        NonFiniteError: If gradients, or weights of a checkpoint, are not finite.
    """

    # Hooks that add averaged weights to a checkpoint have to run before.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._batch: Any = None
        self._skipped = 0
        self._handles: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        """Register hooks on the optimizers and the data preprocessor."""
        model = _unwrapped_model(runner)
        for wrapper in _wrappers(runner):
            check = partial(self._check, model, wrapper)
            self._handles.append(wrapper.optimizer.register_step_pre_hook(check))
        self._handles.append(
            model.data_preprocessor.register_forward_hook(self._keep_batch)
        )

    def after_train(self, runner: Runner) -> None:
        """Remove the hooks."""
        while self._handles:
            self._handles.pop().remove()

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Raise if a loss scaler has skipped too many updates in a row."""
        for wrapper in _wrappers(runner):
            if _uses_loss_scaler(wrapper) and wrapper.should_update():
                self._skipped += 1
            if self._skipped > PATIENCE:
                error = explain_gradients(
                    _unwrapped_model(runner), self._batch, wrapper
                )
                raise NonFiniteError(
                    f'the loss scaler has skipped {self._skipped} updates in a row. '
                    f'{error}',
                    error.report,
                )
        self._batch = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Raise if a weight of the checkpoint is not finite."""
        for key in ('state_dict', 'ema_state_dict'):
            weights = checkpoint.get(key) or {}
            broken = non_finite(weights)
            if broken:
                message = (
                    f'no checkpoint is written after {runner.iter} iterations, since '
                    f'{listed(broken)} of {len(weights)} weights and buffers have NaN '
                    f'or Inf; {LOWER}'
                )
                tensors = [describe(name, weights[name]) for name in broken]
                report = dict(message=message, tensors=tensors, samples=[])
                raise NonFiniteError(message, report)

    def _keep_batch(self, module: nn.Module, inputs: Any, batch: Any) -> None:
        # The batch of a validation would stay in memory, since only a training
        # iteration releases it.
        if module.training:
            self._batch = batch

    def _check(
        self, model: Any, wrapper: OptimWrapper, optimizer: Optimizer, *_: Any
    ) -> None:
        if _uses_loss_scaler(wrapper):
            # A fused optimizer steps at every update and skips it inside.
            skips = getattr(optimizer, 'found_inf', None)
            self._skipped = self._skipped if skips else 0
        elif not _has_finite_gradients(wrapper, optimizer):
            raise explain_gradients(model, self._batch, wrapper)


def _has_finite_gradients(wrapper: OptimWrapper, optimizer: Optimizer) -> bool:
    if wrapper.clip_grad_kwargs and wrapper.grad_name == 'grad_norm':
        return isfinite(wrapper.message_hub.get_scalar('train/grad_norm').current())
    return finite_gradients(optimizer)


def _uses_loss_scaler(wrapper: OptimWrapper) -> bool:
    scaler = getattr(wrapper, 'loss_scaler', None)
    return scaler is not None and scaler.is_enabled()


def _wrappers(runner: Runner) -> list[OptimWrapper]:
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        return list(wrapper.optim_wrappers.values())
    return [wrapper]


def _unwrapped_model(runner: Runner) -> Any:
    model = runner.model
    return model.module if is_model_wrapper(model) else model
