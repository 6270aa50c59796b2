"""Run a loss of the sweep as a Distiller does."""

import inspect
from typing import Any

import torch
from sweep_cases import REGISTERED, Case
from sweep_scenes import Inputs, Scene
from torch import Tensor, nn

from kdtoolbox.distillers.building import CONTEXT


def build(name: str, case: Case, scene: Scene, dtype: torch.dtype) -> nn.Module:
    """Build a loss of weight 1 whose parameters are all nonzero."""
    torch.manual_seed(0)
    loss = REGISTERED[name](**case.arguments(scene))
    for parameter in loss.parameters():
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    loss.loss_weight = 1.0
    loss.train(case.training)
    return loss.to(torch.promote_types(dtype, torch.float32))


def run(loss: nn.Module, scene: Scene, inputs: Inputs) -> dict[str, Tensor]:
    """Run a loss and sum each term over the levels."""
    named = inspect.signature(loss.forward).parameters
    context = {key: inputs.context[key] for key in CONTEXT[1:] if key in named}
    if not getattr(loss, 'per_level', True):
        return as_terms(loss(**inputs.wires, **context))
    totals: dict[str, Tensor] = {}
    for level in range(scene.num_levels):
        wires = {key: levels[level] for key, levels in inputs.wires.items()}
        if 'level' in named:
            context['level'] = level
        for key, term in as_terms(loss(**wires, **context)).items():
            totals[key] = totals.get(key, 0) + term
    return totals


def as_terms(value: Any) -> dict[str, Tensor]:
    return value if isinstance(value, dict) else {'loss': value}
