"""What is known about a distillation that was tried, for those who advise on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from kdtoolbox.inspection.outline import Outline
from kdtoolbox.inspection.parts import Parts

Shape = tuple[int, ...]


@dataclass
class Context:
    """What is known about a distillation that was tried.

    Attributes:
        model: The ``model`` of the config.
        parts: Its parts.
        outlines: The outlines of both models, by side.
        shapes: The shapes of each wire that was made.
        advised: The name of each connector that a cure has made.
    """

    model: Mapping[str, Any]
    parts: Parts
    outlines: Mapping[str, Outline]
    shapes: Mapping[str, Sequence[Shape]]
    advised: dict[str, str] = field(default_factory=dict)

    def name(self, kind: str, connector: str) -> str:
        """Return a free name for a connector: the same one for the same connector."""
        taken = {*(self.model.get('connectors') or {}), *self.advised.values()}
        names = (f'{kind}_{i}' if i > 1 else kind for i in count(1))
        free = next(name for name in names if name not in taken)
        return self.advised.setdefault(connector, free)
