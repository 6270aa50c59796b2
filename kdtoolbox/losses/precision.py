"""Run the losses in float32 or wider, also in mixed precision training."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import reduce, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec('P')
R = TypeVar('R')


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function in float32 or wider, without autocast.

    All floating-point tensors among the arguments, also in lists and tuples, are cast
    to one dtype: the widest of their dtypes, or float32 if that is wider. Each gradient
    has the dtype of its argument. Arguments whose names start with ``teacher`` are
    detached.

    Args:
        function: A function of tensors, without ``*args`` and ``**kwargs``.

    Returns:
        The function with the same signature.

    Example:
        >>> @full_precision
        ... def error(student, teacher):
        ...     return (student - teacher).square().mean()
        >>> error(torch.ones(2).half(), torch.zeros(2).bfloat16())
        tensor(1.)
    """
    names = inspect.signature(function).parameters
    detached = {index for index, name in enumerate(names) if name.startswith('teacher')}

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = list(_tensors([*args, *kwargs.values()]))
        if not tensors:
            return function(*args, **kwargs)
        dtypes = (x.dtype for x in tensors if x.is_floating_point())
        dtype = reduce(torch.promote_types, dtypes, torch.float32)
        # Positional and keyword arguments stay apart, so that Python's own error names
        # a wrong one.
        positional = [
            _cast(value, dtype, detach=index in detached)
            for index, value in enumerate(args)
        ]
        named = {
            name: _cast(value, dtype, detach=name.startswith('teacher'))
            for name, value in kwargs.items()
        }
        with torch.autocast(tensors[0].device.type, enabled=False):
            return function(*positional, **named)

    return run


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _cast(value: Any, dtype: torch.dtype, detach: bool) -> Any:
    if isinstance(value, list | tuple):
        parts = [_cast(part, dtype, detach) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    if not isinstance(value, Tensor):
        return value
    value = value.detach() if detach else value
    return value.to(dtype) if value.is_floating_point() else value
