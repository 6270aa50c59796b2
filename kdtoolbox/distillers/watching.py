"""Warn once about losses that stay zero and records that receive no gradient."""

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from functools import partial

import torch
from mmengine.logging import print_log
from torch import Tensor

from kdtoolbox.distillers.building import Wires

STEPS = 100
"""Number of steps for which each loss and each record is watched."""


def trained_wires(
    sides: Mapping[str, Collection[str]],
    connections: Mapping[str, Mapping[str, str]],
    comparisons: Mapping[str, Mapping[str, str]],
    trained: Collection[str] = ('student',),
) -> dict[str, list[str]]:
    """Return for each loss the wire that it has to train.

    This is its ``student``, followed back through the ``input`` of connectors. Losses
    read other wires for their sizes or scores, often without gradient. ``trained`` has
    the names of the models that train.

    Example:
        >>> sides = {'student.fpn': ['student'], 'teacher.fpn': ['teacher']}
        >>> connections = dict(a={'input': 'student.fpn', 'like': 'teacher.fpn'})
        >>> trained_wires(sides, connections, dict(loss_a=dict(student='a')))
        {'loss_a': ['student.fpn']}
    """
    found = {}
    for name, ends in comparisons.items():
        wire = ends['student']
        while wire in connections:
            wire = next(iter(connections[wire].values()))
        found[name] = [wire] if {*trained} & {*sides[wire]} else []
    return found


class Watch:
    """Check that each loss and its gradient are nonzero in one of the first steps.

    A step counts for a loss if its weight is not 0, and for a wire if such a loss
    trains it. After `STEPS` counted steps a warning names what was 0 in all of them,
    and the watch ends. Checkpoints do not contain the watch: a resumed run starts
    another one.

    Args:
        trained: For each loss the wires it trains, as `trained_wires` returns them.
    """

    def __init__(self, trained: Mapping[str, list[str]]) -> None:
        self._trained = dict(trained)
        # Whether a loss or a level of a wire was ever nonzero. The flags stay on the
        # device until the end of the watch, to avoid a synchronisation per step.
        self._alive: dict[str, dict[int, Tensor]] = {
            subject: {} for subject in [*trained, *sum(trained.values(), [])]
        }
        self._steps: Counter[str] = Counter()

    def follow(self, wires: Wires, active: Collection[str]) -> Wires:
        """Begin a step and return the wires, with views of the watched tensors.

        A view receives the gradient of connectors and losses without the gradient of
        the student's own losses. No number changes.

        Args:
            wires: The wires of the step.
            active: The losses whose weight is not 0.
        """
        if not torch.is_grad_enabled():
            return wires
        self._warn()
        losses = self._alive.keys() & {*active}
        read = self._alive.keys() & {w for name in losses for w in self._trained[name]}
        self._steps.update([*losses, *read])
        views = {
            wire: [self._view(wire, *entry) for entry in enumerate(wires[wire])]
            for wire in read
        }
        return wires | views

    def see(self, loss: str, terms: Collection[Tensor]) -> None:
        """Record whether the value of a loss is nonzero."""
        if torch.is_grad_enabled():
            for term in terms:
                self._note(loss, 0, term)

    def _view(self, wire: str, level: int, tensor: Tensor) -> Tensor:
        self._note(wire, level, tensor.new_zeros(()))
        if not tensor.requires_grad:
            return tensor
        view = tensor[...]
        view.register_hook(partial(self._note, wire, level))
        return view

    def _note(self, subject: str, level: int, value: Tensor) -> None:
        # A graph may outlive the watch.
        if subject in self._alive and value.numel():
            low, high = torch.aminmax(value.detach())
            levels = self._alive[subject]
            alive = low.bool() | high.bool()
            levels[level] = alive | levels[level] if level in levels else alive

    def _warn(self) -> None:
        due = [subject for subject in self._alive if self._steps[subject] >= STEPS]
        flags = {
            (subject, level): flag
            for subject in due
            for level, flag in self._alive.pop(subject).items()
        }
        if not flags:
            return
        silent = defaultdict(list)
        alive = torch.stack(list(flags.values())).tolist()
        for (subject, level), was_alive in zip(flags, alive, strict=True):
            if not was_alive:
                silent[subject].append(level)
        for subject, levels in silent.items():
            print_log(self._message(subject, levels), 'current', logging.WARNING)

    def _message(self, subject: str, levels: list[int]) -> str:
        if subject in self._trained:
            return (
                f'model.losses.{subject} has been exactly 0 in {STEPS} steps. Check '
                'its thresholds and masks, whether any object lies on its levels, '
                'whether the teacher has the same classes, and whether `student` and '
                '`teacher` name different wires'
            )
        readers = [name for name, wires in self._trained.items() if subject in wires]
        return (
            f'wire {subject!r}, level {", ".join(map(str, levels))}: in {STEPS} steps '
            f'of {", ".join(readers)} it received no gradient of the distillation, or '
            'only zeros. Look for a level without objects, masks that are 0 '
            'everywhere, a dead activation or a detach() on the way, and in float16 '
            'for too small a loss_weight'
        )
