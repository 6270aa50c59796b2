"""Try a loss as its cure would have it, to find the fault behind the first one."""

import torch
from torch import Tensor

from kdtoolbox.distillers.building import build_section, loss_wires
from kdtoolbox.distillers.calls import compare
from kdtoolbox.inspection.context import Context
from kdtoolbox.inspection.loss_cures import right_arguments
from kdtoolbox.inspection.trial import Trial
from kdtoolbox.losses.inputs import SAME_CLASSES, SAME_HEADS


def fault_behind(name: str, context: Context, trial: Trial) -> Exception | None:
    """Return the error of a loss on maps that fit, or None.

    A loss that gets maps of wrong shapes or counts says nothing about what else is
    wrong with it. Only losses on two wires of maps are tried: what fits is known.

    Args:
        name: The name of a loss that failed.
        context: What is known about the distillation.
        trial: The wires, with what losses read besides them.
    """
    ends = context.parts.comparisons[name]
    wires = [trial.wires[wire] for wire in ends.values()]
    if {*ends} != {'student', 'teacher'} or any(t.dim() != 4 for t in sum(wires, [])):
        return None
    teacher = trial.wires[ends['teacher']]
    config = dict(context.model['losses'][name])
    shapes = [tuple(level.shape) for level in teacher]
    config |= right_arguments(config['type'], shapes, shapes)
    built: list[Exception] = []
    losses, _ = build_section({name: config}, 'model.losses', loss_wires, built.append)
    if built:
        return None
    fitting = {ends['teacher']: teacher, ends['student']: _like(teacher)}
    where = f'model.losses.{name}'
    try:
        compare(where, losses[name], ends, fitting, trial.context, {})
    except ValueError as error:
        same = any(cure in str(error) for cure in (SAME_CLASSES, SAME_HEADS))
        return None if same else error
    return None


def _like(levels: list[Tensor]) -> list[Tensor]:
    return [torch.randn_like(level).requires_grad_() for level in levels]
