"""Find the tensors with a NaN or Inf."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether all values of the tensors are finite; syncs the device once."""
    extremes: dict[tuple, list[Tensor]] = defaultdict(list)
    # By id, since connectors may return their input and so repeat a tensor.
    for tensor in {id(tensor): tensor for tensor in tensors}.values():
        # `aminmax` keeps NaN and Inf and, unlike a sum, cannot overflow.
        ends = torch.aminmax(tensor) if tensor.dim() else [tensor]
        extremes[tensor.dtype, tensor.device] += ends
    flags = [torch.stack(ends).isfinite().all() for ends in extremes.values()]
    if not flags:
        return True
    return bool(torch.stack([flag.to(flags[0].device) for flag in flags]).all())


def non_finite(state: Mapping[str, Any]) -> list[str]:
    """Return the names of the tensors of a state dict with a NaN or Inf.

    Example:
        >>> non_finite(dict(a=torch.ones(2), b=torch.tensor([0.0, float('inf')])))
        ['b']
    """
    tensors = dict(tensors_of(state))
    if all_finite(tensors.values()):
        return []
    return [name for name, tensor in tensors.items() if not all_finite([tensor])]


def listed(names: Sequence[str]) -> str:
    """Join the first three names, and add how many more there are.

    Example:
        >>> listed(['a', 'b', 'c', 'd', 'e'])
        'a, b, c and 2 more'
    """
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return ', '.join(names[:3]) + more


def tensors_of(values: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield the non-empty floating-point tensors of a mapping with their names.

    The name of a tensor in a list ends with its level.
    """
    for name, value in values.items():
        levels = {name: value}
        if isinstance(value, Sequence):
            levels = {f'{name}, level {level}': x for level, x in enumerate(value)}
        for level_name, x in levels.items():
            if isinstance(x, Tensor) and x.is_floating_point() and x.numel():
                yield level_name, x
