"""Measure distillation losses against the student's own losses."""

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from kdtoolbox.distillers.gradient_shares import (
    TASK,
    gradients_at,
    norm_of,
    summed_losses,
)
from kdtoolbox.distillers.observing import Step

Pairs = dict[str, tuple[Tensor | None, Tensor | None]]
"""For each loss its number and that of the task."""


class LossMeter:
    """An observer that measures gradient norms or values of losses in one step.

    Args:
        losses: The modules of the losses to measure, by name.
        wires: For each loss the wire at which its gradient is measured. None measures
            the values of the losses.

    Attributes:
        scale: Factor on the losses during the backward passes; see `gradients_at`.
    """

    def __init__(
        self, losses: Mapping[str, Any], wires: Mapping[str, str] | None
    ) -> None:
        self.scale = 1.0
        self._losses = dict(losses)
        self._wires = wires
        # The numbers stay on the device until they are read.
        self._measured: dict[str, Tensor] = {}
        self._reached: set[str] = set()

    def __call__(self, step: Step) -> None:
        """Measure the losses whose weight is not 0."""
        active = [name for name, loss in self._losses.items() if loss.loss_weight]
        if self._wires is None:
            sums = summed_losses(step)
            task = sums.get(TASK)
            pairs: Pairs = {name: (sums[name], task) for name in active}
        else:
            pairs = self._norms(step, active, self._wires)
        self._measured = {
            name: _row(own, task, step.inputs) for name, (own, task) in pairs.items()
        }

    def _norms(self, step: Step, active: list[str], wires: Mapping[str, str]) -> Pairs:
        at = {wires[name] for name in active}
        found = gradients_at(step, at, [TASK, *active], self.scale)
        return {
            name: (norm_of(found[name][wires[name]]), norm_of(found[TASK][wires[name]]))
            for name in active
        }

    def read(self) -> dict[str, tuple[float, float]]:
        """Return for each measured loss its number and that of the task.

        Both are means over all processes, each of which has to call this.

        Raises:
            ValueError: If a gradient does not reach the wire at the first time.
        """
        measured, self._measured = self._measured, {}
        if not measured:
            return {}
        rows = torch.stack(list(measured.values()))
        all_reduce(rows, 'mean')
        result = {}
        for name, (own, task, reaches) in zip(measured, rows.tolist(), strict=True):
            if not reaches and name not in self._reached:
                raise ValueError(self._unreached(name))
            self._reached.add(name)
            result[name] = (own, task)
        return result

    def _unreached(self, name: str) -> str:
        if self._wires is None:
            return f'LossBalanceHook: {name} is there, but the student has no loss'
        return (
            f'LossBalanceHook: the gradients of model.losses.{name} and of the '
            f"student's own losses do not both reach {self._wires[name]!r}; name "
            "a layer before both as at=..., or set of='loss'"
        )


def _row(own: Tensor | None, task: Tensor | None, like: Tensor) -> Tensor:
    """Return both numbers, 0 for None, and whether none of them is None."""
    reaches = torch.tensor(float(own is not None and task is not None))
    zero = torch.zeros(())
    row = [zero if x is None else x.detach() for x in (own, task)]
    return torch.stack([x.to(like.device, torch.float32) for x in (*row, reaches)])
