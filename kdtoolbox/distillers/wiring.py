"""Build the connectors and losses of a config and check the wires between them."""

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from kdtoolbox.recorders import Recorder
from kdtoolbox.registry import MODELS

SIDES = ('student', 'teacher')
Wires = dict[str, dict[str, str]]


def build_section(
    configs: Mapping[str, dict], where: str, wire_keys: Sequence[str]
) -> tuple[nn.ModuleDict, Wires]:
    """Build the modules of a config section and split off the wires they read.

    Args:
        configs: The section: for each name the config of a module with its wires.
        where: Config path of the section, for errors.
        wire_keys: The keys that name wires, the obligatory one first.

    Raises:
        ValueError: If a type is not registered with kdtoolbox.
    """
    modules, wires = nn.ModuleDict(), {}
    for name, config in configs.items():
        arguments = dict(config)
        wires[name] = {key: arguments.pop(key) for key in wire_keys if key in arguments}
        kind = arguments.get('type')
        if isinstance(kind, str) and '.' not in kind:
            MODELS.import_from_location()
            if kind not in MODELS.module_dict:
                raise ValueError(
                    f'{where}.{name}: kdtoolbox has no {kind!r}'
                    f'{did_you_mean(kind, MODELS.module_dict)}'
                )
        # Without our scope a bare name means the task library's class.
        modules[name] = MODELS.build(dict(arguments, _scope_='kdtoolbox'))
    return modules, wires


def check_wiring(
    recorders: Mapping[str, Mapping[str, Recorder]],
    connectors: nn.ModuleDict,
    connections: Wires,
    comparisons: Wires,
) -> None:
    """Raise ValueError for wires that lead nowhere, come from nowhere, or are lacking.

    Args:
        recorders: The recorders of both sides.
        connectors: The built connectors.
        connections: For each connector the wires it reads.
        comparisons: For each loss the wires it compares.
    """
    # Each wire with the sides it stems from.
    sides = {f'{side}.{name}': {side} for side in SIDES for name in recorders[side]}
    for name, connection in connections.items():
        where = f'model.connectors.{name}'
        _check_keys(connectors[name], connection, where)
        for key, wire in connection.items():
            _check_wire(wire, sides, f'{where}.{key}')
        sides[name] = {side for wire in connection.values() for side in sides[wire]}
    for name, comparison in comparisons.items():
        where = f'model.losses.{name}'
        _check_loss_name(name)
        for side in SIDES:
            if side not in comparison:
                raise ValueError(
                    f'{where}: expected a wire as {side!r}, one of {list(sides)}'
                )
            _check_wire(comparison[side], sides, f'{where}.{side}')
        if 'student' not in sides[comparison['student']]:
            raise ValueError(
                f'{where}.student: {comparison["student"]!r} comes from the teacher '
                'alone, so that the loss trains nothing; name a wire of the student'
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
                f'model.connectors.{name}: nothing reads this wire, so that it trains '
                'nothing; name it in a loss or remove it'
            )


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return the end of an error message: the nearest name, or all there are.

    Example:
        >>> did_you_mean('student.fnp', ['student.fpn', 'teacher.fpn'])
        "; did you mean 'student.fpn'?"
    """
    close = difflib.get_close_matches(name, names, n=1)
    return f'; did you mean {close[0]!r}?' if close else f'; there are {sorted(names)}'


def _check_keys(connector: nn.Module, connection: dict[str, str], where: str) -> None:
    first, *others = inspect.signature(connector.forward).parameters
    expected = {'input', *others}
    if connection.keys() != expected:
        raise ValueError(
            f'{where}: {type(connector).__name__} reads the wires '
            f'{sorted(expected)}, the config names {sorted(connection)}'
        )


def _check_loss_name(name: str) -> None:
    if 'loss' not in name:
        raise ValueError(
            f'model.losses.{name}: mmengine sums only losses whose name contains '
            f"'loss'; call it 'loss_{name}'"
        )
    if name == 'loss':
        raise ValueError(
            'model.losses.loss: mmengine logs the total by this name; choose another, '
            "such as 'loss_distill'"
        )


def _check_wire(wire: str, wires: Iterable[str], where: str) -> None:
    if wire not in wires:
        raise ValueError(f'{where}: no wire {wire!r}{did_you_mean(wire, wires)}')
