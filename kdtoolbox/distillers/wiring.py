"""Run the connectors and losses of a distillation on the wires of a step."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdtoolbox.distillers.building import (
    CONTEXT,
    Sides,
    Wires,
    build_section,
    connector_wires,
    loss_wires,
)
from kdtoolbox.distillers.finite import Seen
from kdtoolbox.distillers.graph import check_wiring, running_order
from kdtoolbox.distillers.watching import Watch, trained_wires


class Wiring(nn.Module):
    """The connectors and losses of a distillation and the wires between them.

    Args:
        losses: For each logged name a loss with the wires that it reads.
        connectors: For each new wire a connector with the wires that it reads.

    Attributes:
        connections: The wires that each connector reads.
        comparisons: The wires that each loss reads.

    Raises:
        ValueError: If an entry lacks a wire, or connectors read each other in a circle.
        TypeError: If an entry has an unknown argument.

    Example:
        >>> loss = dict(type='PKDLoss', student='student.fpn', teacher='teacher.fpn')
        >>> wiring = Wiring(dict(loss_pkd=loss))
        >>> maps = [torch.arange(4.0).reshape(1, 1, 2, 2)]
        >>> wiring({'student.fpn': maps, 'teacher.fpn': maps}, {})
        {'loss_pkd': tensor(0.)}
    """

    def __init__(
        self,
        losses: Mapping[str, dict],
        connectors: Mapping[str, dict] | None = None,
    ) -> None:
        super().__init__()
        self.connectors, self.connections = build_section(
            connectors or {}, 'model.connectors', connector_wires
        )
        self.losses, self.comparisons = build_section(
            losses, 'model.losses', loss_wires
        )
        self._order = running_order(self.connections)
        self.watch = Watch({})

    def connect(self, sides: Sides) -> None:
        """Check that all wires lead somewhere, and begin to watch the losses.

        Args:
            sides: For each wire that is recorded the models it depends on.

        Raises:
            ValueError: As `check_wiring` raises it.
        """
        graph = sides, self.connections, self.comparisons
        check_wiring(*graph)
        self.watch = Watch(trained_wires(*graph))

    @property
    def active(self) -> list[str]:
        """The losses whose weight is not 0."""
        return [name for name, loss in self.losses.items() if loss.loss_weight]

    @property
    def reads_targets(self) -> bool:
        """Whether a loss reads the targets of the student's head."""
        return any('targets' in context_of(loss) for loss in self.losses.values())

    def forward(
        self, wires: Wires, context: Mapping[str, Any], seen: Seen | None = None
    ) -> dict[str, Tensor]:
        """Return the weighted distillation losses, summed over the levels.

        Args:
            wires: The recorded wires.
            context: ``data_samples``, ``batch_input_shape`` and ``targets`` of the
                batch, for the losses that name them.
            seen: Receives the outputs of connectors and losses, level by level.

        Raises:
            ValueError: If the wires of a loss have different numbers of levels.
        """
        seen = {} if seen is None else seen
        active = self.active
        wires = dict(self.watch.follow(wires, active))
        for name in self._order:
            where = f'model.connectors.{name}'
            inputs = [wires[wire] for wire in self.connections[name].values()]
            wires[name] = seen[where] = call(where, self.connectors[name], *inputs)
        distilled: dict[str, Tensor] = {}
        for name in self.losses:
            if name in active:
                terms = self._compare(name, wires, context, seen)
                self.watch.see(name, terms.values())
                distilled |= {name + key: term for key, term in terms.items()}
            else:
                zero = self.zero(next(iter(_flatten(wires.values()))))
                distilled[name] = seen[f'model.losses.{name}'] = zero
        return distilled

    def zero(self, like: Tensor) -> Tensor:
        """Return a zero that reaches every trainable parameter of the distillation.

        DDP expects a gradient for each parameter in each step.

        Args:
            like: A tensor on the device of the result.
        """
        zero = torch.zeros((), device=like.device)
        for parameter in self.parameters():
            zero = zero + 0 * parameter.sum()
        return zero

    def _compare(
        self, name: str, wires: Wires, context: Mapping[str, Any], seen: Seen
    ) -> dict[str, Tensor]:
        """Return a loss summed over levels, by the end of its name: '' or '.<term>'."""
        where, loss = f'model.losses.{name}', self.losses[name]
        levels = {key: wires[wire] for key, wire in self.comparisons[name].items()}
        read = {key: context[key] for key in context_of(loss) if key != 'level'}
        _check_counts(where, self.comparisons[name], levels)
        if not getattr(loss, 'per_level', True):
            terms = _terms(call(where, loss, **levels, **read))
            seen |= {where + key: term for key, term in terms.items()}
            return terms
        total: dict[str, Tensor] = {}
        for level, tensors in enumerate(zip(*levels.values(), strict=True)):
            if 'level' in context_of(loss):
                read['level'] = level
            arguments = dict(zip(levels, tensors, strict=True), **read)
            value = call(f'{where}, level {level}', loss, **arguments)
            for key, term in _terms(value).items():
                seen.setdefault(where + key, []).append(term)
                total[key] = total[key] + term if key in total else term
        return total


def context_of(loss: nn.Module) -> list[str]:
    """Return the arguments of a loss's ``forward`` that are not wires.

    Example:
        >>> from kdtoolbox.losses import FGDLoss
        >>> context_of(FGDLoss(channels=8, num_levels=1))
        ['level', 'data_samples', 'batch_input_shape']
    """
    return [key for key in inspect.signature(loss.forward).parameters if key in CONTEXT]


def call(where: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a connector or a loss; its errors name its place in the config.

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
        tensors = _flatten([*args, *kwargs.values()])
        given = ', '.join(str(tuple(tensor.shape)) for tensor in tensors)
        told = f'{where}: {type(module).__name__} cannot read {given}: {error}'
        if 'gt_instances' in str(error):
            told += '. It reads boxes, which detectors have; take another loss'
        raise ValueError(told) from error


def _check_counts(where: str, ends: Mapping[str, str], levels: Wires) -> None:
    counts = {ends[key]: len(tensors) for key, tensors in levels.items()}
    if len(set(counts.values())) > 1:
        told = ', '.join(f'{wire} has {n} levels' for wire, n in counts.items())
        raise ValueError(f'{where}: {told}; record the same levels on both sides')


def _flatten(values: Iterable[Any]) -> Iterable[Tensor]:
    """Yield the tensors among values, also from their lists."""
    for value in values:
        for tensor in value if isinstance(value, list) else [value]:
            if isinstance(tensor, Tensor):
                yield tensor


def _terms(value: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {'': value}
    return {f'.{key}': term for key, term in value.items()}
