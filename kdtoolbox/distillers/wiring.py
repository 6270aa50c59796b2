"""Make the wires of a step and run the connectors and losses on them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdtoolbox.distillers.building import (
    Sides,
    Wires,
    build_section,
    connector_wires,
    loss_wires,
)
from kdtoolbox.distillers.calls import (
    call,
    compare,
    context_of,
    tensors_among,
)
from kdtoolbox.distillers.finite import Seen
from kdtoolbox.distillers.graph import check_wiring, running_order, wires_read
from kdtoolbox.distillers.sources.assembly import (
    as_made_by,
    as_seen_by,
    connect_sources,
    models_of,
)
from kdtoolbox.distillers.sources.source import Recorders, Source
from kdtoolbox.distillers.watching import Watch, trained_wires
from kdtoolbox.recorders import Recorder


class Wiring(nn.Module):
    """The sources, connectors and losses of a distillation and the wires between them.

    A distiller needs `connect`, `observe` and `collect`. Without a distiller, call it
    with wires at once.

    Args:
        losses: For each logged name a loss with the wires that it reads.
        connectors: For each new wire a connector with the wires that it reads.
        sources: The sources of further wires. Their learned parts become child modules.

    Attributes:
        connections: The wires that each connector reads.
        comparisons: The wires that each loss reads.
        sides: The models that each wire of a recorder or source depends on; known
            after `connect`.

    Raises:
        ValueError: If an entry lacks a wire, or connectors read each other in a circle.
        TypeError: If an entry has an unknown argument.

    Example:
        >>> loss = dict(type='PKDLoss', student='student.fpn', teacher='teacher.fpn')
        >>> wiring = Wiring(dict(loss_pkd=loss))
        >>> maps = [torch.arange(4.0).reshape(1, 1, 2, 2)]
        >>> wiring({'student.fpn': maps, 'teacher.fpn': maps}, {})['loss_pkd'] < 1e-6
        tensor(True)
    """

    def __init__(
        self,
        losses: Mapping[str, dict],
        connectors: Mapping[str, dict] | None = None,
        sources: Sequence[Source] = (),
    ) -> None:
        super().__init__()
        self.connectors, self.connections = build_section(
            connectors or {}, 'model.connectors', connector_wires
        )
        self.losses, self.comparisons = build_section(
            losses, 'model.losses', loss_wires
        )
        # A tuple is not registered, so the parts keep their names in checkpoints.
        self.sources = tuple(sources)
        for source in sources:
            for name, part in source.named_children():
                self._add_part(source, name, part)
        self._order = running_order(self.connections)
        self.sides: Sides = {}
        self.watch = Watch({})

    def _add_part(self, source: Source, name: str, part: nn.Module) -> None:
        if hasattr(self, name):
            raise ValueError(
                f'{source.where}: {type(source).__name__} has a learned part called '
                f'{name!r}, which this distillation already has; rename it in the class'
            )
        self.add_module(name, part)

    def connect(
        self,
        models: Mapping[str, Any],
        recorders: Recorders,
        trained: Sequence[str] = ('student',),
    ) -> Recorders:
        """Check all wires, begin to watch the losses and return all recorders.

        Args:
            models: The student and the other models by name.
            recorders: The recorders of the config.
            trained: The names of the models that train.

        Raises:
            ValueError: As `connect_sources` and `check_wiring` raise it.
        """
        sections = (self.connections, self.comparisons)
        read = {
            w for ends in sections for wires in ends.values() for w in wires.values()
        }
        recorders, sides = connect_sources(self.sources, models, recorders, read)
        check_wiring(sides, *sections, trained=trained)
        self._check_targets(sides, trained)
        self.sides = sides
        self.watch = Watch(trained_wires(sides, *sections, trained))
        return recorders

    def _check_targets(self, sides: Sides, trained: Sequence[str]) -> None:
        for name, wires in trained_wires(
            sides, self.connections, self.comparisons, trained
        ).items():
            others = [w for w in wires if 'student' not in sides[w]]
            if others and 'targets' in context_of(self.losses[name]):
                raise ValueError(
                    f'model.losses.{name}: it reads the targets of the head of '
                    f"`model.student`, and {others[0]!r} is another model's; name a "
                    'wire of the student, or take a loss without targets'
                )

    @contextmanager
    def observe(self, models: Mapping[str, Any]) -> Iterator[list]:
        """Let all sources observe their models while they run in the block."""
        with ExitStack() as stack:
            yield [
                stack.enter_context(source.observe(models_of(source, models)))
                for source in self.sources
            ]

    def collect(
        self, models: Mapping[str, Any], records: Wires, observed: Sequence
    ) -> Wires:
        """Return the records and the wires of all sources.

        Args:
            models: The student and the other models by name.
            records: The records of all models as wires.
            observed: What `observe` yielded.
        """
        wires = dict(records)
        for source, found in zip(self.sources, observed, strict=True):
            both, seen = models_of(source, models), as_seen_by(source, wires)
            wires |= as_made_by(source, source.make_wires(both, seen, found))
        return wires

    @property
    def active(self) -> list[str]:
        """The losses whose weight is not 0."""
        return [name for name, loss in self.losses.items() if loss.loss_weight]

    @property
    def needed(self) -> set[str]:
        """The wires that the losses whose weight is not 0 read."""
        return wires_read(self.active, self.connections, self.comparisons)

    def recorders_of(self, name: str, recorders: Recorders) -> dict[str, Recorder]:
        """Return the recorders of a model that a step needs.

        Args:
            name: The name of the model.
            recorders: All recorders.
        """
        named = dict(recorders[name])
        if any(source.teacher == name for source in self.sources):
            # Sources read records of their own.
            return named
        needed = self.needed
        return {key: named[key] for key in named if f'{name}.{key}' in needed}

    @property
    def reads_targets(self) -> bool:
        """Whether a loss reads the targets of the student's head."""
        return any('targets' in context_of(loss) for loss in self.losses.values())

    def forward(
        self, wires: Wires, context: Mapping[str, Any], seen: Seen | None = None
    ) -> dict[str, Tensor]:
        """Return the weighted distillation losses, summed over the levels.

        Args:
            wires: The wires of the step, as `collect` returns them.
            context: ``data_samples``, ``batch_input_shape`` and ``targets`` of the
                batch, for the losses that name them.
            seen: Receives the outputs of connectors and losses, level by level.

        Raises:
            ValueError: If the wires of a loss have different numbers of levels.
        """
        seen = {} if seen is None else seen
        active = self.active
        wires = dict(self.watch.follow(wires, active))
        needed = self.needed
        for name in [name for name in self._order if name in needed]:
            where = f'model.connectors.{name}'
            inputs = [wires[wire] for wire in self.connections[name].values()]
            wires[name] = seen[where] = call(where, self.connectors[name], *inputs)
        distilled: dict[str, Tensor] = {}
        for name in self.losses:
            if name in active:
                where, ends = f'model.losses.{name}', self.comparisons[name]
                terms = compare(where, self.losses[name], ends, wires, context, seen)
                self.watch.see(name, terms.values())
                distilled |= {name + key: term for key, term in terms.items()}
            else:
                zero = self.zero(next(iter(tensors_among(wires.values()))))
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
