"""Check the graph of wires, connectors and losses, and order its connectors."""

import difflib
from collections.abc import Collection, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

from kdtoolbox.configuration import Report, did_you_mean, refuse
from kdtoolbox.distillers.building import Ends


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


def wires_read(
    losses: Collection[str], connections: Ends, comparisons: Ends
) -> set[str]:
    """Return all wires that some losses read, directly or through connectors.

    Example:
        >>> connections = dict(a={'input': 'student.fpn'}, b={'input': 'student.c5'})
        >>> comparisons = dict(loss_a=dict(student='a', teacher='teacher.fpn'))
        >>> sorted(wires_read(['loss_a'], connections, comparisons))
        ['a', 'student.fpn', 'teacher.fpn']
    """
    found: set[str] = set()
    waiting = [wire for name in losses for wire in comparisons[name].values()]
    while waiting:
        wire = waiting.pop()
        if wire not in found:
            found.add(wire)
            waiting += connections.get(wire, {}).values()
    return found


def check_wiring(
    sides: Mapping[str, set[str]],
    connections: Ends,
    comparisons: Ends,
    report: Report = refuse,
    trained: Collection[str] = ('student',),
) -> None:
    """Check that all wires exist and that something reads each connector.

    Args:
        sides: For each recorded wire and each wire of a source the models that it
            depends on.
        connections: For each connector the wires it reads.
        comparisons: For each loss the wires it reads.
        report: Gets all faults. By default the first is raised.
        trained: The names of the models that train.

    Raises:
        ValueError: If a wire does not exist, if nothing reads a connector, or if a loss
            has no proper name or trains nothing.
    """
    sides = dict(sides)
    unknown: list[str] = []
    for name in _order_of(connections, report):
        for key, wire in connections[name].items():
            where = f'model.connectors.{name}.{key}'
            _check_wire(wire, {*sides, *connections} - {name}, where, report, unknown)
        read = [sides.get(wire, {*trained}) for wire in connections[name].values()]
        sides[name] = {side for known in read for side in known} or {*trained}
    for name, comparison in comparisons.items():
        where = f'model.losses.{name}'
        for fault in _loss_name_faults(name):
            report(fault)
        for key, wire in comparison.items():
            _check_wire(wire, sides, f'{where}.{key}', report, unknown)
        target = comparison.get('student', '')
        if not {*trained} & {*sides.get(target, trained)}:
            report(
                ValueError(
                    f'{where}.student: {target!r} depends on the teacher only, so the '
                    'loss trains nothing; name a wire of the student'
                )
            )
    for name in _unread(connections, comparisons, unknown):
        report(
            ValueError(
                f'model.connectors.{name}: nothing reads this wire, so the connector '
                'trains nothing; name it in a loss or remove it'
            )
        )


def _order_of(connections: Ends, report: Report) -> list[str]:
    try:
        return running_order(connections)
    except ValueError as error:
        report(error)
        return sorted(connections)


def _unread(
    connections: Ends, comparisons: Ends, unknown: Collection[str]
) -> Iterator[str]:
    """Yield the connectors that nothing reads, or would read but for a typo."""
    read = {
        wire
        for section in (connections, comparisons)
        for wires in section.values()
        for wire in wires.values()
    }
    for name in connections:
        if name not in read and not difflib.get_close_matches(name, unknown, n=1):
            yield name


def _loss_name_faults(name: str) -> Iterator[ValueError]:
    if 'loss' not in name:
        yield ValueError(
            f'model.losses.{name}: mmengine sums only losses whose name contains '
            f"'loss'; call it 'loss_{name}'"
        )
    if name == 'loss':
        yield ValueError(
            'model.losses.loss: mmengine logs the total under this name; choose '
            "another, such as 'loss_distill'"
        )


def _check_wire(
    wire: str, wires: Collection[str], where: str, report: Report, unknown: list[str]
) -> None:
    if wire not in wires:
        unknown.append(wire)
        hint = did_you_mean(wire, wires)
        report(ValueError(f'{where}: no wire {wire!r}{hint}'))
