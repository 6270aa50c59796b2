"""Look at the gradients of an update, and say which losses made them what they are."""

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
    'what a loss takes the root, norm or logarithm of, or divides by, may be 0: add a '
    'small number to it, or leave that loss out; otherwise ' + LOWER
)


@torch.no_grad()
def finite_gradients(optimizer: Optimizer) -> bool:
    """Tell whether all gradients of an optimizer are finite; waits for the device once.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> weight.grad = torch.tensor([0.0, float('nan')])
        >>> finite_gradients(torch.optim.SGD([weight], lr=0.1))
        False
    """
    weights = [weight for group in optimizer.param_groups for weight in group['params']]
    gradients = [_values(weight.grad) for weight in weights if weight.grad is not None]
    # A norm may overflow where no gradient does, and is much faster.
    return bool(get_total_norm(gradients).isfinite()) or all_finite(gradients)


def _values(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def explain_gradients(
    model: BaseModel, batch: Any, wrapper: OptimWrapper
) -> NonFiniteError:
    """Return the error of an update whose gradients are not finite.

    Runs the batch once more, and the backward of each loss by itself, to tell them
    apart. What the model remembers of batches, as batch norms do, changes by that, no
    weight and no gradient does.

    Args:
        model: The model, not wrapped.
        batch: What its data preprocessor has made of the batch.
        wrapper: The wrapper of its optimizer.
    """
    told = [
        describe(name, _values(weight.grad))
        for name, weight in model.named_parameters()
        if weight.grad is not None
    ]
    batch = batch if isinstance(batch, Mapping) else {}
    sources = _sources(model, batch, wrapper)
    message = '; '.join(
        f'{name}: the gradient of this loss is not finite in {_parts(model, broken)}'
        for name, broken in sources.items()
    )
    message = message or _untold(model, told)
    message += f'. No weight has moved in this step; {_CURE}'
    for x in told:
        x['name'] = f'gradient of {x["name"]}'
    samples = [meta_of(sample) for sample in batch.get('data_samples') or ()]
    return NonFiniteError(message, dict(message=message, tensors=told, samples=samples))


def _untold(model: nn.Module, told: list[dict]) -> str:
    broken = [x['name'] for x in told if x['nan'] or x['inf']]
    if not broken:
        # The clipping has divided by it.
        return 'the norm of all gradients, as clip_grad computes it, is not finite'
    return (
        f'the gradients of this update are not finite in {_parts(model, broken)}, and '
        'no loss of the last batch by itself has such'
    )


def _sources(
    model: BaseModel, batch: Mapping[str, Any], wrapper: OptimWrapper
) -> dict[str, list[str]]:
    """Return the parameters with broken gradients of each loss that has any."""
    sources: dict[str, list[str]] = {}
    try:
        with wrapper.optim_context(model):
            losses = model(**batch, mode='loss')
        for name, value in losses.items():
            terms = [x.mean() for x in (value if isinstance(value, list) else [value])]
            broken = _broken(model, torch.stack(terms).sum())
            if 'loss' in name and broken:
                sources[_place(model, name)] = broken
    except (RuntimeError, TypeError, ValueError):
        # Memory may not do, some graphs give no second gradient, and some trainings
        # have no batch to run.
        return {}
    return sources


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
    """Return what an error calls a loss, as `Distiller.loss` does."""
    if 'student' not in dict(model.named_children()):
        return f'the loss {name}'
    distilled: Any = model.losses
    own = name.split('.')[0] in distilled
    return f'model.losses.{name}' if own else f"the student's own {name}"


def _parts(model: nn.Module, names: list[str]) -> str:
    """Count parameters by part, such as student.backbone or connectors.aligned."""
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
