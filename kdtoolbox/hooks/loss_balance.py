"""Hold distillation losses at a chosen share of the gradient or of the loss."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from kdtoolbox.configuration import did_you_mean
from kdtoolbox.distillers.gradient_shares import share
from kdtoolbox.distillers.watching import trained_wires
from kdtoolbox.hooks.balancing import make_balances
from kdtoolbox.hooks.curves import show
from kdtoolbox.hooks.loss_meter import LossMeter
from kdtoolbox.hooks.loss_weight import LossWeightHook, find_loss
from kdtoolbox.registry import HOOKS

_KEY = 'loss_balance'
"""Entry of a checkpoint with the factor on the weight of each balanced loss."""


@HOOKS.register_module()
class LossBalanceHook(Hook):
    """Hold each named distillation loss at a chosen share by scaling its weight.

    The share of a loss is ``own / (own + task)``. ``own`` is the norm of its gradient
    at the recorded layer of the student that it trains, and ``task`` the norm of the
    gradient of the student's own losses there. With ``of='loss'`` both are the values
    of the losses. Both are means over the processes, so all have the same weight.

    The hook measures every ``interval`` iterations. If a share is outside of its band,
    the weight moves towards the target. Nothing changes where one of the two numbers is
    0 or not finite, or the weight is 0. Checkpoints contain the factors on the weights,
    so a resumed run is exact. The log and all visualization backends show
    ``share/<loss>`` and ``weight/<loss>``.

    A `LossWeightHook` on the same loss multiplies the balanced weight. The hook then
    holds the share that the loss would have with a factor of 1.

    Args:
        shares: For each loss in ``model.losses`` its share, between 0 and 1.
        of: 'gradient' or 'loss'.
        at: The recorded layer for all losses of this hook, such as ``student.fpn``. By
            default, it is the one that the loss trains.
        band: Distance from the share at which the hook acts.
        interval: Number of iterations between two measurements.
        max_change: Largest factor by which a weight rises or falls at once.
        limits: Smallest and largest weight, as factors on the configured one.

    Attributes:
        factors: The current factor on the configured weight of each loss.

    Raises:
        ValueError: If a number is out of range, a loss or layer does not exist, the
            weight of a loss is 0, two hooks balance one loss, or a gradient does not
            reach the layer.
    """

    def __init__(
        self,
        shares: Mapping[str, float],
        of: str = 'gradient',
        at: str | None = None,
        band: float = 0.1,
        interval: int = 50,
        max_change: float = 2.0,
        limits: Sequence[float] = (0.01, 100.0),
    ) -> None:
        if of not in ('gradient', 'loss') or (of == 'loss' and at is not None):
            raise ValueError(
                "LossBalanceHook: expected of='gradient', or of='loss' without at; got "
                f'of={of!r} and at={at!r}'
            )
        if interval < 1:
            raise ValueError(
                f'LossBalanceHook: expected interval >= 1, got {interval}; write '
                'interval=50'
            )
        self.of = of
        self.at = at
        self.interval = interval
        self.balances = make_balances(shares, band, max_change, limits)
        self.factors = dict.fromkeys(shares, 1.0)
        self._configured: dict[str, float] = {}
        self._loaded: dict[str, float] = {}
        self._limited: set[str] = set()

    def before_train(self, runner: Runner) -> None:
        """Look up losses, layers and schedules, and set the weights."""
        self._losses = {
            name: find_loss(runner, name, 'LossBalanceHook') for name in self.balances
        }
        self._check_hooks(runner)
        if not self._configured:
            self._configured = {k: v.loss_weight for k, v in self._losses.items()}
        self._check_weights()
        self._schedules = {
            hook.loss: hook for hook in runner.hooks if isinstance(hook, LossWeightHook)
        }
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._observers: Any = model.observers
        wires = self._find_wires(model.wiring) if self.of == 'gradient' else None
        self._meter = LossMeter(self._losses, wires)
        # A run with `load_from` starts afresh from the weights of another one.
        if runner.iter:
            self.factors |= {k: v for k, v in self._loaded.items() if k in self.factors}
        for name in self.balances:
            self._set(name)

    def _check_hooks(self, runner: Runner) -> None:
        hooks = [hook for hook in runner.hooks if isinstance(hook, LossBalanceHook)]
        for name in self.balances:
            if sum(name in hook.balances for hook in hooks) > 1:
                raise ValueError(
                    f'custom_hooks: two LossBalanceHooks set the weight of {name!r}; '
                    'leave it in the shares of one'
                )

    def _check_weights(self) -> None:
        for name, weight in self._configured.items():
            if not weight:
                raise ValueError(
                    f'LossBalanceHook: model.losses.{name} has loss_weight=0, which no '
                    'factor changes; set loss_weight=1.0'
                )

    def _find_wires(self, wiring: Any) -> dict[str, str]:
        """Return for each loss the wire at which its gradient is measured."""
        known = sorted(w for w, sides in wiring.sides.items() if 'student' in sides)
        if self.at is not None and self.at not in known:
            raise ValueError(
                f'LossBalanceHook: expected at=... to be a recorded layer of the '
                f'student, got {self.at!r}{did_you_mean(self.at, known)}'
            )
        trained = trained_wires(wiring.sides, wiring.connections, wiring.comparisons)
        for name in self.balances:
            if self.at is None and not trained[name]:
                raise ValueError(
                    f'LossBalanceHook: model.losses.{name} trains no recorded layer of '
                    f'the student; name one of {known} as at=...'
                )
        return {name: self.at or trained[name][0] for name in self.balances}

    def _set(self, name: str) -> None:
        weight = self._configured[name] * self.factors[name]
        if name in self._schedules:
            self._schedules[name].base = weight
        else:
            self._losses[name].loss_weight = weight

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Observe the step if a measurement is due."""
        for name in self.balances.keys() - self._schedules.keys():
            show(runner, f'weight/{name}', self._losses[name].loss_weight)
        if self.every_n_train_iters(runner, self.interval):
            scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
            self._meter.scale = scaler.get_scale() if scaler is not None else 1.0
            self._observers.append(self._meter)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Move the weights if they were measured."""
        if self._meter not in self._observers:
            return
        self._observers.remove(self._meter)
        measured = self._meter.read()
        for name in self.balances:
            # A loss whose weight is 0 was not measured.
            own, task = measured.get(name, (0.0, 1.0))
            found = share(own, task)
            if found is not None:
                show(runner, f'share/{name}', found)
            if name in measured:
                self._move(runner, name, own, task)

    def _move(self, runner: Runner, name: str, own: float, task: float) -> None:
        balance, factor = self.balances[name], self.factors[name]
        full = self._configured[name] * factor
        own = own / (self._losses[name].loss_weight / full)
        self.factors[name] = balance.moved(factor, own, task)
        self._set(name)
        stuck = self.factors[name] == factor and not balance.holds(own, task)
        if stuck and name not in self._limited:
            self._limited.add(name)
            runner.logger.warning(
                f'LossBalanceHook: the weight of {name} stays at its limit, {full:g}, '
                f'although its share is not {balance.target}; choose another share, '
                'loss_weight or limits'
            )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save the factors."""
        checkpoint.setdefault(_KEY, {}).update(self.factors)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the factors of a checkpoint for a run that resumes from it."""
        self._loaded = dict(checkpoint.get(_KEY, {}))
