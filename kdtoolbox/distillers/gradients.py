"""Check the gradients of an update and find the losses that made them non-finite."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from kdtoolbox.checkpoints.finite_values import all_finite
from kdtoolbox.distillers.finite import LOWER, NonFiniteError, describe, meta_of

_CURE = (
    'a loss may take the root, norm or logarithm of 0, or divide by 0: add a small '
    'number there, or leave that loss out; otherwise ' + LOWER
)


@torch.no_grad()
def finite_gradients(optimizer: Optimizer) -> bool:
    """Return whether all gradients of an optimizer are finite; synchronise once.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> weight.grad = torch.tensor([0.0, float('nan')])
        >>> finite_gradients(torch.optim.SGD([weight], lr=0.1))
        False
    """
    weights = [weight for group in optimizer.param_groups for weight in group['params']]
    gradients = [_values(weight.grad) for weight in weights if weight.grad is not None]
    # The norm is much faster. It may overflow although all gradients are finite.
    return bool(get_total_norm(gradients).isfinite()) or all_finite(gradients)


def _values(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def explain_gradients(
    model: BaseModel, batch: Any, wrapper: OptimWrapper
) -> NonFiniteError:
    """Return the error of an update whose gradients are not finite.

    Runs the batch again, and the backward pass of each loss separately. This changes
    buffers such as the statistics of batch norms, but no weight and no gradient.

    Args:
        model: The model, not wrapped.
        batch: The output of its data preprocessor.
        wrapper: The wrapper of its optimizer.
    """
    entries = [
        describe(name, _values(weight.grad))
        for name, weight in model.named_parameters()
        if weight.grad is not None
    ]
    batch = batch if isinstance(batch, Mapping) else {}
    found = _sources(model, batch, wrapper)
    message = '; '.join(
        f'{name}: the gradient of this loss is not finite in {_parts(model, broken)}'
        for name, broken in found.items()
    )
    message = message or _unexplained(model, entries)
    message += f'. No weight has moved in this step; {_CURE}'
    for x in entries:
        x['name'] = f'gradient of {x["name"]}'
    samples = [meta_of(sample) for sample in batch.get('data_samples') or ()]
    return NonFiniteError(
        message, dict(message=message, tensors=entries, samples=samples)
    )


def _unexplained(model: nn.Module, entries: list[dict]) -> str:
    broken = [x['name'] for x in entries if x['nan'] or x['inf']]
    if not broken:
        # Clipping divides by this norm.
        return 'the norm of all gradients, as clip_grad computes it, is not finite'
    return (
        f'the gradients of this update are not finite in {_parts(model, broken)}, '
        'although those of each loss of the last batch are'
    )


def _sources(
    model: BaseModel, batch: Mapping[str, Any], wrapper: OptimWrapper
) -> dict[str, list[str]]:
    """Return for each loss the parameters whose gradient is not finite, if any."""
    found: dict[str, list[str]] = {}
    try:
        with wrapper.optim_context(model):
            losses = model(**batch, mode='loss')
        for name, value in losses.items():
            terms = [x.mean() for x in (value if isinstance(value, list) else [value])]
            broken = _broken(model, torch.stack(terms).sum())
            if 'loss' in name and broken:
                found[_place(model, name)] = broken
    except (RuntimeError, TypeError, ValueError):
        # The memory may be too small, some graphs allow no second backward pass, and
        # some trainings pass no batch.
        return {}
    return found


def _broken(model: nn.Module, loss: Tensor) -> list[str]:
    """Return the parameters whose gradient of a loss is not finite."""
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not loss.requires_grad:
        return []
    gradients = torch.autograd.grad(
        loss, list(weights.values()), retain_graph=True, allow_unused=True
    )
    return [
        name
        for name, gradient in zip(weights, gradients, strict=True)
        if gradient is not None and not all_finite([_values(gradient)])
    ]


def _place(model: nn.Module, name: str) -> str:
    """Return the name of a loss in errors, as `Distiller.loss` uses it."""
    if 'student' not in dict(model.named_children()):
        return f'the loss {name}'
    distilled: Any = model.losses
    own = name.split('.')[0] in distilled
    return f'model.losses.{name}' if own else f"the student's own {name}"


def _parts(model: nn.Module, names: list[str]) -> str:
    """Return the number of parameters in each part, such as student.backbone."""
    depth = 2 if 'student' in dict(model.named_children()) else 1

    def count(of: list[str]) -> Counter[str]:
        return Counter('.'.join(name.split('.')[:depth]) for name in of)

    totals = count(
        [n for n, weight in model.named_parameters() if weight.requires_grad]
    )
    return ', '.join(
        f'{part} ({number} of {totals[part]} parameters)'
        for part, number in count(names).items()
    )
