"""The sections of a new recipe, and questions about them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from kdtoolbox.distillers.building import build_section, connector_wires, loss_wires
from kdtoolbox.recipes.templates import class_of

Shapes = list[tuple[int, ...]]


@dataclass
class Fitted:
    """The sections of a new distillation.

    Attributes:
        recorders: For 'student' and 'teacher' the recorders by name.
        connectors: The connectors by name.
        losses: The losses by name.
        sources: The sources.
        shapes: For each known wire the shape of each level.
    """

    recorders: dict[str, dict[str, Any]]
    connectors: dict[str, dict[str, Any]]
    losses: dict[str, dict[str, Any]]
    sources: list[dict[str, Any]]
    shapes: dict[str, Shapes] = field(default_factory=dict)


def source_of(wire: str, fitted: Fitted) -> str:
    """Return the wire at the beginning of the connectors behind a wire."""
    while wire in fitted.connectors:
        wire = fitted.connectors[wire]['input']
    return wire


def connections_of(fitted: Fitted) -> dict[str, dict[str, str]]:
    """Return for each connector the wires that it reads."""
    return {
        name: {
            key: config[key]
            for key in connector_wires(class_of(config))
            if key in config
        }
        for name, config in fitted.connectors.items()
    }


def partner_of(key: str, loss: Mapping[str, Any]) -> str:
    """Return the argument for the teacher's wire that another one is compared with."""
    other = key.replace('student', 'teacher')
    return other if other in loss else 'teacher'


def targets_of(name: str, fitted: Fitted) -> Iterator[str]:
    """Yield the teacher's wires with which the output of a connector is compared."""
    for loss in fitted.losses.values():
        for key in loss_wires(class_of(loss)):
            if loss.get(key) == name and not key.startswith('teacher'):
                partner = partner_of(key, loss)
                if partner in loss:
                    yield loss[partner]
    for other, ends in connections_of(fitted).items():
        if name in ends.values() and other != name:
            yield from targets_of(other, fitted)


def width_of(shape: tuple[int, ...]) -> int:
    """Return the channels of maps (N, C, H, W), rows (R, C) or tokens (N, L, C)."""
    return shape[2] if len(shape) == 3 else shape[1]


def output_shapes(name: str, fitted: Fitted) -> Shapes:
    """Run a connector on zeros and return the shapes of its output."""
    config = fitted.connectors[name]
    modules, wires = build_section({name: config}, 'model.connectors', connector_wires)
    inputs = [
        [torch.zeros(shape) for shape in fitted.shapes[wire]]
        for wire in wires[name].values()
    ]
    with torch.no_grad():
        return [tuple(level.shape) for level in modules[name](*inputs)]


def free_name(name: str, fitted: Fitted) -> str:
    """Return a name that no connector has."""
    numbers = (f'{name}_{number}' for number in range(2, 99))
    names = (name, *numbers)
    return next(free for free in names if free not in fitted.connectors)
