"""Keep NaN and Inf out of the weights of a run, and out of its checkpoints."""

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
"""Updates in a row that a loss scaler may skip. A scale halves with each, so that what
overflows from sound numbers has long ceased to."""


@HOOKS.register_module()
class FiniteWeightsHook(Hook):
    """Stop before an update with a NaN or Inf moves a weight, or one is saved.

    A finite loss can have a gradient that is not, as a root has at 0. The gradients are
    looked at when the optimizer steps: once an update, whatever wrapper it has. Where
    ``clip_grad`` has computed their norm, that is read. A loss scaler skips such
    updates by itself; the run stops when it skips all. ``tools/train.py`` adds this
    hook to every run.

    Raises:
        NonFiniteError: If gradients, or weights that are to be saved, are not finite.
    """

    # After those that put averaged weights into a checkpoint.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._batch: Any = None
        self._skipped = 0
        self._handles: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        """Listen to the optimizers and to the data preprocessor."""
        model = _bare(runner)
        for wrapper in _wrappers(runner):
            check = partial(self._check, model, wrapper)
            self._handles.append(wrapper.optimizer.register_step_pre_hook(check))
        self._handles.append(
            model.data_preprocessor.register_forward_hook(self._keep_batch)
        )

    def after_train(self, runner: Runner) -> None:
        """Let go of them."""
        while self._handles:
            self._handles.pop().remove()

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Stop a loss scaler that has skipped too many updates in a row."""
        for wrapper in _wrappers(runner):
            if _scales(wrapper) and wrapper.should_update():
                self._skipped += 1
            if self._skipped > PATIENCE:
                error = explain_gradients(_bare(runner), self._batch, wrapper)
                told = f'the loss scaler has skipped {self._skipped} updates in a row. '
                raise NonFiniteError(f'{told}{error}', error.report)
        self._batch = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuse to save weights that are not finite."""
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
        # Not that of a validation, which nobody would forget.
        if module.training:
            self._batch = batch

    def _check(
        self, model: Any, wrapper: OptimWrapper, optimizer: Optimizer, *_: Any
    ) -> None:
        if _scales(wrapper):
            # Fused optimizers skip the update themselves.
            found = getattr(optimizer, 'found_inf', None)
            self._skipped = self._skipped if found else 0
        elif not _finite(wrapper, optimizer):
            raise explain_gradients(model, self._batch, wrapper)


def _finite(wrapper: OptimWrapper, optimizer: Optimizer) -> bool:
    if wrapper.clip_grad_kwargs and wrapper.grad_name == 'grad_norm':
        return isfinite(wrapper.message_hub.get_scalar('train/grad_norm').current())
    return finite_gradients(optimizer)


def _scales(wrapper: OptimWrapper) -> bool:
    scaler = getattr(wrapper, 'loss_scaler', None)
    return scaler is not None and scaler.is_enabled()


def _wrappers(runner: Runner) -> list[OptimWrapper]:
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        return list(wrapper.optim_wrappers.values())
    return [wrapper]


def _bare(runner: Runner) -> Any:
    model = runner.model
    return model.module if is_model_wrapper(model) else model
