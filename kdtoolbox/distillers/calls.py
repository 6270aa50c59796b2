"""Call a connector or a loss with its wires and the context of the batch."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdtoolbox.distillers.building import CONTEXT, Wires


def context_of(loss: nn.Module) -> list[str]:
    """Return the arguments of a loss's ``forward`` that are not wires.

    Example:
        >>> from kdtoolbox.losses import FGDLoss
        >>> context_of(FGDLoss(channels=8, num_levels=1))
        ['level', 'data_samples', 'batch_input_shape']
    """
    return [key for key in inspect.signature(loss.forward).parameters if key in CONTEXT]


def call(where: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a connector or a loss, and add its config path to errors.

    Raises:
        ValueError: If the module cannot process its arguments.
    """
    try:
        return module(*args, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except ValueError as error:
        raise ValueError(f'{where}: {error}') from error
    except (AttributeError, LookupError, RuntimeError, TypeError) as error:
        tensors = tensors_among([*args, *kwargs.values()])
        given = ', '.join(str(tuple(tensor.shape)) for tensor in tensors)
        message = f'{where}: {type(module).__name__} cannot read {given}: {error}'
        if 'gt_instances' in str(error):
            message += '. It reads boxes, which detectors have; take another loss'
        raise ValueError(message) from error


def compare(
    where: str,
    loss: nn.Module,
    ends: Mapping[str, str],
    wires: Wires,
    context: Mapping[str, Any],
    seen: dict[str, Any],
) -> dict[str, Tensor]:
    """Return a loss summed over levels, by the end of its name: '' or '.<term>'.

    Args:
        where: Config path of the loss.
        loss: The loss.
        ends: The wire of each of its arguments.
        wires: The wires of the step.
        context: The arguments that are not wires.
        seen: Receives the terms, level by level.

    Raises:
        ValueError: If the loss cannot compare its wires.
    """
    levels = {key: wires[wire] for key, wire in ends.items()}
    read = {key: context[key] for key in context_of(loss) if key != 'level'}
    check_counts(where, ends, levels)
    if not getattr(loss, 'per_level', True):
        terms = terms_of(call(where, loss, **levels, **read))
        seen |= {where + key: term for key, term in terms.items()}
        return terms
    total: dict[str, Tensor] = {}
    for level, tensors in enumerate(zip(*levels.values(), strict=True)):
        if 'level' in context_of(loss):
            read['level'] = level
        arguments = dict(zip(levels, tensors, strict=True), **read)
        value = call(f'{where}, level {level}', loss, **arguments)
        for key, term in terms_of(value).items():
            seen.setdefault(where + key, []).append(term)
            total[key] = total[key] + term if key in total else term
    return total


def check_counts(where: str, ends: Mapping[str, str], levels: Wires) -> None:
    """Raise ValueError if the wires of a loss have different numbers of levels."""
    counts = {ends[key]: len(tensors) for key, tensors in levels.items()}
    if len(set(counts.values())) > 1:
        message = ', '.join(f'{wire} has {n} levels' for wire, n in counts.items())
        raise ValueError(f'{where}: {message}; record the same levels on both sides')


def tensors_among(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among values and in lists among them."""
    for value in values:
        for tensor in value if isinstance(value, list) else [value]:
            if isinstance(tensor, Tensor):
                yield tensor


def terms_of(value: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the terms of a loss, keyed by name suffix: '' or '.<term>'."""
    if isinstance(value, Tensor):
        return {'': value}
    return {f'.{key}': term for key, term in value.items()}
