"""Measure how much of the student's gradient each loss contributes."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from kdtoolbox.distillers.observing import Step

T = TypeVar('T')

TASK = 'task'
"""The name of the sum of the student's own losses."""

Gradients = list[Tensor | None]
"""Gradients of the levels of a wire; None where a loss does not depend on a level."""


def summed_losses(step: Step) -> dict[str, Tensor]:
    """Return one scalar for each loss: `TASK` first, then the distillation losses.

    Terms such as ``loss_fgd.foreground`` are summed to their loss, ``loss_fgd``.

    Example:
        >>> loss = torch.tensor(1.0)
        >>> task = dict(loss_cls=[loss, loss], loss_bbox=loss, acc=loss)
        >>> distilled = {'loss_fgd.foreground': loss, 'loss_fgd.context': loss}
        >>> summed_losses(Step(loss, [], {}, task, distilled))
        {'task': tensor(3.), 'loss_fgd': tensor(2.)}
    """
    sums: dict[str, Tensor] = {}
    for name, value in step.task_losses.items():
        # Other logged values, such as an accuracy, train nothing.
        if 'loss' in name:
            _add(sums, TASK, value)
    for name, value in step.losses.items():
        _add(sums, name.split('.')[0], value)
    return sums


def _add(sums: dict[str, Tensor], name: str, value: Tensor | Sequence[Tensor]) -> None:
    # As `BaseModel.parse_losses` sums them.
    for term in [value] if isinstance(value, Tensor) else value:
        sums[name] = sums[name] + term.mean() if name in sums else term.mean()


def gradients_at(
    step: Step, wires: Iterable[str], losses: Iterable[str], scale: float = 1.0
) -> dict[str, dict[str, Gradients]]:
    """Return the gradient of each loss at each wire; leave the step's graph usable.

    This runs a part of the backward pass for each loss: from the loss to the wires.
    No parameter receives a gradient.

    Args:
        step: The step, as an observer of the distiller gets it.
        wires: Names of wires, such as ``student.fpn``.
        losses: Names of losses: `TASK` and keys of ``model.losses``.
        scale: Factor on the losses during the backward pass, as the loss scale of
            mixed precision. The returned gradients do not contain it.

    Returns:
        For each loss and each wire the float32 gradients of its levels, each of the
        shape of its level. Those of float64 wires are float64.

    Raises:
        KeyError: If the step has no such wire or loss.

    Example:
        >>> fpn = torch.ones(1, 2, 1, 1, requires_grad=True)
        >>> task, loss = dict(loss_cls=fpn.sum()), dict(loss_pkd=3 * fpn.sum())
        >>> step = Step(fpn, [], {'student.fpn': [fpn]}, task, loss)
        >>> found = gradients_at(step, ['student.fpn'], [TASK, 'loss_pkd'])
        >>> found['loss_pkd']['student.fpn'][0].flatten()
        tensor([3., 3.])
    """
    sums = summed_losses(step)
    levels = _chosen(step.wires, wires, 'wire')
    return {
        name: _gradients(loss, levels, scale)
        for name, loss in _chosen(sums, losses, 'loss').items()
    }


def _chosen(among: dict[str, T], names: Iterable[str], kind: str) -> dict[str, T]:
    wanted = list(names)
    for name in wanted:
        if name not in among:
            raise KeyError(
                f'this step has no {kind} {name!r}; there are {sorted(among)}'
            )
    return {name: among[name] for name in wanted}


def _gradients(
    loss: Tensor, wires: dict[str, list[Tensor]], scale: float
) -> dict[str, Gradients]:
    trained = [x for levels in wires.values() for x in levels if x.requires_grad]
    if not (loss.requires_grad and trained):
        return {wire: [None] * len(levels) for wire, levels in wires.items()}
    found = torch.autograd.grad(
        loss * scale, trained, retain_graph=True, allow_unused=True
    )
    by_level = {id(x): gradient for x, gradient in zip(trained, found, strict=True)}
    return {
        wire: [_unscaled(by_level.get(id(x)), scale) for x in levels]
        for wire, levels in wires.items()
    }


def _unscaled(gradient: Tensor | None, scale: float) -> Tensor | None:
    if gradient is None:
        return None
    precise = torch.promote_types(gradient.dtype, torch.float32)
    return gradient.to(precise) / scale


def norm_of(gradients: Gradients) -> Tensor | None:
    """Return the L2 norm over all levels, or None if all are None.

    Example:
        >>> norm_of([torch.full((2, 2), 2.0), None, torch.full((1,), 3.0)])
        tensor(5.)
    """
    norms = [torch.linalg.vector_norm(x) for x in gradients if x is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else None


def share(own: float, task: float) -> float | None:
    """Return the share of a distillation loss in itself and the task losses.

    Args:
        own: Gradient norm, or value, of the distillation loss.
        task: The same of the student's own losses.

    Returns:
        A number from 0 to 1, or None where it has no meaning: if both are 0, or one
        is negative or not finite.

    Example:
        >>> share(1.0, 3.0)
        0.25
        >>> share(0.0, 0.0) is None
        True
    """
    total = own + task
    meaningful = min(own, task) >= 0 and 0 < total < float('inf')
    return own / total if meaningful else None
