"""Tell once of a loss that stays 0 and of a record that no gradient reaches."""

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from functools import partial

import torch
from mmengine.logging import print_log
from torch import Tensor

STEPS = 100
"""For how many steps each loss and each record is watched."""

Wires = dict[str, list[Tensor]]


def trained_wires(
    sides: Mapping[str, Collection[str]],
    connections: Mapping[str, Mapping[str, str]],
    comparisons: Mapping[str, Mapping[str, str]],
) -> dict[str, list[str]]:
    """Return for each loss the wire of the student that it is there to train.

    That is its ``student``, followed back through the ``input`` of connectors. Other
    wires are read for their size or their scores, often without gradient.

    Example:
        >>> sides = {'student.fpn': ['student'], 'teacher.fpn': ['teacher']}
        >>> connections = dict(a={'input': 'student.fpn', 'like': 'teacher.fpn'})
        >>> trained_wires(sides, connections, dict(loss_a=dict(student='a')))
        {'loss_a': ['student.fpn']}
    """
    trained = {}
    for name, ends in comparisons.items():
        wire = ends['student']
        while wire in connections:
            wire = connections[wire]['input']
        trained[name] = [wire] if 'student' in sides[wire] else []
    return trained


class Watch:
    """Find out whether anything comes of each loss in its first steps.

    A step counts for a loss while its weight is not 0, and for a wire while a loss
    trains it. After `STEPS` of them a warning tells of what was 0 in all, and the
    watch ends. It is no part of a checkpoint: a resumed run watches anew.

    Args:
        trained: What `trained_wires` returns.
    """

    def __init__(self, trained: Mapping[str, list[str]]) -> None:
        self._trained = dict(trained)
        # Whether a loss or a level of a wire was ever not 0; the answer stays on the
        # device until it is due.
        self._alive: dict[str, dict[int, Tensor]] = {
            subject: {} for subject in [*trained, *sum(trained.values(), [])]
        }
        self._steps: Counter[str] = Counter()

    def follow(self, wires: Wires, active: Collection[str]) -> Wires:
        """Begin a step and return the wires, with views in place of what is watched.

        To a view comes the gradient of connectors and losses, without that of the
        student's own losses. No number changes.

        Args:
            wires: What connectors and losses are to read.
            active: The losses whose weight is not 0.
        """
        if not torch.is_grad_enabled():
            return wires
        self._tell()
        losses = self._alive.keys() & {*active}
        read = self._alive.keys() & {w for name in losses for w in self._trained[name]}
        self._steps.update([*losses, *read])
        views = {
            wire: [self._view(wire, *entry) for entry in enumerate(wires[wire])]
            for wire in read
        }
        return wires | views

    def see(self, loss: str, terms: Collection[Tensor]) -> None:
        """Note the value of a loss."""
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
        # Of a watch that has ended a graph may still be alive.
        if subject in self._alive and value.numel():
            low, high = torch.aminmax(value.detach())
            levels = self._alive[subject]
            alive = low.bool() | high.bool()
            levels[level] = alive | levels[level] if level in levels else alive

    def _tell(self) -> None:
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
                f'model.losses.{subject} has been exactly 0 in {STEPS} steps. Look '
                'at its thresholds and masks: does any object lie on its levels, has '
                'the teacher the same classes, do both sides name different wires?'
            )
        readers = [name for name, wires in self._trained.items() if subject in wires]
        return (
            f'wire {subject!r}, level {", ".join(map(str, levels))}: in {STEPS} steps '
            f'of {", ".join(readers)} no gradient of the distillation has reached it, '
            'or one of exactly 0. Look for a level without objects, masks that leave '
            'nothing, a dead activation or a detach() on the way, and in float16 for '
            'too small a loss_weight'
        )
