"""Measure what each loss of a distillation does to the student, over a few steps."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from kdtoolbox.diagnosis.measurements import LossReport, Similarity
from kdtoolbox.diagnosis.similarity import level_similarity
from kdtoolbox.distillers import Distiller
from kdtoolbox.distillers.gradient_shares import (
    TASK,
    Gradients,
    gradients_at,
    share,
    summed_losses,
)
from kdtoolbox.distillers.observing import Step
from kdtoolbox.distillers.watching import trained_wires

PARAMETERS = 'parameters'
"""The place of a loss whose wires are no layer that the task trains too."""


class LossMeter:
    """Observe steps of a distiller and report what each loss does on average.

    Args:
        distiller: The distiller. Add this object to its ``observers``.
    """

    def __init__(self, distiller: Distiller) -> None:
        self._distiller = distiller
        self._sums: dict[tuple[str, ...], list[float]] = defaultdict(list)

    def __call__(self, step: Step) -> None:
        """Measure one step before its backward pass."""
        losses = summed_losses(step)
        for name, loss in losses.items():
            self._note(float(loss.detach()), 'value', name)
        self._compare_wires(step)
        places = [
            wire
            for wire, levels in step.wires.items()
            if wire.startswith('student.') and any(x.requires_grad for x in levels)
        ]
        found: Mapping[str, Mapping[str, Gradients]] = gradients_at(
            step, places, losses
        )
        for place in places:
            self._compare(place, {name: found[name][place] for name in losses})
        self._compare(PARAMETERS, self._parameter_gradients(losses))

    def _parameter_gradients(self, losses: Mapping[str, Tensor]) -> dict:
        weights = [p for p in self._distiller.student.parameters() if p.requires_grad]
        return {
            name: torch.autograd.grad(
                loss, weights, retain_graph=True, allow_unused=True
            )
            for name, loss in losses.items()
            if loss.requires_grad and weights
        }

    def _compare(self, place: str, gradients: Mapping[str, Gradients]) -> None:
        """Compare each loss with the task where both have a gradient.

        A part that only one of them trains tells nothing about their balance.
        """
        task = gradients.get(TASK, ())
        for name in [name for name in gradients if name != TASK]:
            pairs = [
                (one.flatten().double(), other.flatten().double())
                for one, other in zip(task, gradients[name], strict=False)
                if one is not None and other is not None
            ]
            if not pairs:
                continue
            base, own = (torch.cat(side) for side in zip(*pairs, strict=True))
            self._note(float(own.norm()), 'gradient', name, place)
            self._note(float(base.norm()), 'task', name, place)
            value = cosine(base, own)
            if value is not None:
                self._note(value, 'cosine', name, place)

    def _compare_wires(self, step: Step) -> None:
        for student, teacher in self._pairs():
            # Wires that only losses of weight 0 read were not made.
            both = step.wires.get(student, []), step.wires.get(teacher, [])
            levels = zip(*both, strict=False)
            for level, (one, other) in enumerate(levels):
                value = level_similarity(one, other)
                if value is not None:
                    self._note(value, 'cka', student, teacher, str(level))

    def _pairs(self) -> dict[tuple[str, str], None]:
        """Return the wires that losses compare, and what the connectors start from."""
        wiring = self._distiller.wiring
        pairs: dict[tuple[str, str], None] = {}
        for ends in wiring.comparisons.values():
            student, teacher = ends.get('student'), ends.get('teacher')
            while student is not None and teacher is not None:
                pairs[student, teacher] = None
                student = wiring.connections.get(student, {}).get('input')
        return pairs

    def _note(self, value: float, *key: str) -> None:
        self._sums[key].append(value)

    def _means(self, kind: str, name: str) -> dict[str, float]:
        return {
            key[2]: _mean(values)
            for key, values in self._sums.items()
            if key[:2] == (kind, name)
        }

    @property
    def similarities(self) -> list[Similarity]:
        """The mean similarity of all compared wires, level by level."""
        return [
            Similarity(key[1], key[2], int(key[3]), _mean(values))
            for key, values in self._sums.items()
            if key[0] == 'cka'
        ]

    @property
    def task_values(self) -> list[float]:
        """The task loss of each step."""
        return self._sums['value', TASK]

    def reports(self) -> dict[str, LossReport]:
        """Return a report on each loss, that of the task first."""
        values = {k[1]: _mean(v) for k, v in self._sums.items() if k[0] == 'value'}
        total = sum(map(abs, values.values()))
        reports = {}
        for name, value in values.items():
            report = LossReport(value, abs(value) / total if total else None)
            if name != TASK:
                self._complete(report, name)
            reports[name] = report
        return reports

    def _complete(self, report: LossReport, name: str) -> None:
        report.weight = float(self._distiller.losses[name].loss_weight)
        report.gradients = self._means('gradient', name)
        report.cosines = self._means('cosine', name)
        report.task = self._means('task', name)
        for place, base in report.task.items():
            part = share(report.gradients[place], base)
            if part is not None:
                report.shares[place] = part
        wiring = self._distiller.wiring
        ends = (wiring.sides, wiring.connections, wiring.comparisons)
        report.place = _place(report, trained_wires(*ends)[name])


def _place(report: LossReport, trained: Iterable[str]) -> str | None:
    """Return where to compare a loss with the task: best at the wire it trains."""
    order = [*trained, *(x for x in report.shares if x != PARAMETERS), PARAMETERS]
    return next((place for place in order if place in report.shares), None)


def cosine(first: Tensor, second: Tensor) -> float | None:
    """Return the cosine of two vectors (N,), or None if one of them is 0.

    Example:
        >>> cosine(torch.tensor([3.0, 4.0]), torch.tensor([-6.0, -8.0]))
        -1.0
    """
    length = float(first.norm() * second.norm())
    return float(first @ second) / length if 0 < length < float('inf') else None


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
