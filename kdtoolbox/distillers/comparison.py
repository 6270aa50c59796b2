"""Call a loss on its wires, level by level."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdtoolbox.distillers.finite import Seen
from kdtoolbox.distillers.wiring import CONTEXT


def compare(
    where: str,
    loss: nn.Module,
    ends: Mapping[str, str],
    wires: Mapping[str, list[Tensor]],
    context: Mapping[str, Any],
    seen: Seen,
) -> dict[str, Tensor]:
    """Return a loss summed over levels by the ending of its name: '', or '.<term>'.

    Args:
        where: Config path of the loss, for errors.
        loss: It gets its levels one by one, or all at once if it is not `per_level`.
        ends: The wire of each of its arguments.
        wires: The levels of each wire.
        context: What losses may name beside their wires, but for the level.
        seen: Takes each value, by path and level.

    Raises:
        ValueError: If the wires have different numbers of levels, or the loss cannot
            read them.
    """
    levels = {key: wires[wire] for key, wire in ends.items()}
    counts = {ends[key]: len(tensors) for key, tensors in levels.items()}
    if len(set(counts.values())) > 1:
        told = ', '.join(f'{wire} has {n} levels' for wire, n in counts.items())
        raise ValueError(f'{where}: {told}; record the same levels on both sides')
    read = {key: context[key] for key in context_of(loss) if key != 'level'}
    if not getattr(loss, 'per_level', True):
        terms = _terms(explained(where, loss, **levels, **read))
        seen |= {where + key: term for key, term in terms.items()}
        return terms
    total: dict[str, Tensor] = {}
    for level, tensors in enumerate(zip(*levels.values(), strict=True)):
        if 'level' in context_of(loss):
            read['level'] = level
        arguments = dict(zip(levels, tensors, strict=True), **read)
        value = explained(f'{where}, level {level}', loss, **arguments)
        for key, term in _terms(value).items():
            seen.setdefault(where + key, []).append(term)
            total[key] = total[key] + term if key in total else term
    return total


def context_of(loss: nn.Module) -> list[str]:
    """Return what the ``forward`` of a loss names beside its wires."""
    return [key for key in inspect.signature(loss.forward).parameters if key in CONTEXT]


def explained(where: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a connector or a loss; an error tells its config path.

    Raises:
        ValueError: If it cannot make anything of what it is given.
    """
    try:
        return module(*args, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except ValueError as error:
        raise ValueError(f'{where}: {error}') from error
    except (AttributeError, LookupError, RuntimeError, TypeError) as error:
        shapes = [_shape(value) for value in (*args, *kwargs.values())]
        given = ', '.join(shape for shape in shapes if shape)
        told = f'{where}: {type(module).__name__} cannot read {given}: {error}'
        if 'gt_instances' in str(error):
            told += '. It reads boxes, which detectors have; take another loss'
        raise ValueError(told) from error


def _shape(value: Any) -> str:
    levels = value if isinstance(value, list) else [value]
    return ', '.join(str(tuple(x.shape)) for x in levels if isinstance(x, Tensor))


def _terms(value: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {'': value}
    return {f'.{key}': term for key, term in value.items()}
