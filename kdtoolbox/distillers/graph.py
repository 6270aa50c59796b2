"""Check the graph of wires, connectors and losses, and order its connectors."""

from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter

from kdtoolbox.distillers.building import Ends, did_you_mean


def running_order(connections: Ends) -> list[str]:
    """Return the connectors, each after those whose wires it reads.

    Args:
        connections: For each connector the wires it reads.

    Raises:
        ValueError: If connectors read each other in a circle.

    Example:
        >>> running_order({'a': {'input': 'b'}, 'b': {'input': 'student.fpn'}})
        ['b', 'a']
    """
    graph = {
        name: sorted({wire for wire in wires.values() if wire in connections})
        for name, wires in sorted(connections.items())
    }
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle = ' -> '.join(error.args[1])
        raise ValueError(
            f'model.connectors: {circle} go round in a circle; set the `input` of one '
            'of them to a wire of a recorder'
        ) from error


def check_wiring(
    sides: Mapping[str, set[str]], connections: Ends, comparisons: Ends
) -> None:
    """Raise ValueError for wires that do not exist or that nothing reads.

    Args:
        sides: For each recorded wire and each wire of a source the models that it
            depends on.
        connections: For each connector the wires it reads.
        comparisons: For each loss the wires it reads.
    """
    sides = dict(sides)
    for name in running_order(connections):
        connection = connections[name]
        where = f'model.connectors.{name}'
        for key, wire in connection.items():
            _check_wire(wire, sides, f'{where}.{key}')
        sides[name] = {side for wire in connection.values() for side in sides[wire]}
    for name, comparison in comparisons.items():
        where = f'model.losses.{name}'
        _check_loss_name(name)
        for key, wire in comparison.items():
            _check_wire(wire, sides, f'{where}.{key}')
        if 'student' not in sides[comparison['student']]:
            raise ValueError(
                f'{where}.student: {comparison["student"]!r} depends on the teacher '
                'only, so the loss trains nothing; name a wire of the student'
            )
    read = {
        wire
        for section in (connections, comparisons)
        for wires in section.values()
        for wire in wires.values()
    }
    for name in connections:
        if name not in read:
            raise ValueError(
                f'model.connectors.{name}: nothing reads this wire, so the connector '
                'trains nothing; name it in a loss or remove it'
            )


def _check_loss_name(name: str) -> None:
    if 'loss' not in name:
        raise ValueError(
            f'model.losses.{name}: mmengine sums only losses whose name contains '
            f"'loss'; call it 'loss_{name}'"
        )
    if name == 'loss':
        raise ValueError(
            'model.losses.loss: mmengine logs the total under this name; choose '
            "another, such as 'loss_distill'"
        )


def _check_wire(wire: str, wires: Iterable[str], where: str) -> None:
    if wire not in wires:
        raise ValueError(f'{where}: no wire {wire!r}{did_you_mean(wire, wires)}')
