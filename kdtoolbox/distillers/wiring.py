"""Build the connectors and losses of a config and check the wires between them."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping

from torch import nn

from kdtoolbox.registry import MODELS

SIDES = ('student', 'teacher')
CONTEXT = ('level', 'data_samples', 'batch_input_shape', 'targets')
"""What a loss gets beside its wires if its ``forward`` names it."""

Wires = dict[str, dict[str, str]]


def loss_wires(kind: type[nn.Module]) -> list[str]:
    """Return the parameters of a loss's ``forward`` that are wires.

    Example:
        >>> from kdtoolbox.losses import PKDLoss
        >>> loss_wires(PKDLoss)
        ['student', 'teacher']
    """
    _, *parameters = inspect.signature(kind.forward).parameters
    return [name for name in parameters if name not in CONTEXT]


def connector_wires(kind: type[nn.Module]) -> list[str]:
    """Return the wires that a connector reads: ``input`` and what ``forward`` names."""
    _, _, *others = inspect.signature(kind.forward).parameters
    return ['input', *others]


def build_section(
    configs: Mapping[str, dict],
    where: str,
    wires_of: Callable[[type[nn.Module]], list[str]],
) -> tuple[nn.ModuleDict, Wires]:
    """Build the modules of a config section and split off the wires they read.

    Args:
        configs: The section: for each name the config of a module with its wires.
        where: Config path of the section, for errors.
        wires_of: Gives the keys that name wires, from the class of the module.

    Raises:
        ValueError: If a type is not registered with kdtoolbox, or a wire is lacking.
        TypeError: If a module does not know an argument.
    """
    modules, wires = nn.ModuleDict(), {}
    for name, config in configs.items():
        kind = _find_class(config.get('type'), f'{where}.{name}')
        keys = wires_of(kind)
        wires[name] = {key: config[key] for key in keys if key in config}
        lacking = [key for key in _required(kind, keys) if key not in config]
        if lacking:
            raise ValueError(
                f'{where}.{name}: {kind.__name__} reads the wires {keys}; name one as '
                f'{" and one as ".join(map(repr, lacking))}'
            )
        arguments = {key: value for key, value in config.items() if key not in keys}
        # Without our scope a bare name means the task library's class.
        try:
            modules[name] = MODELS.build(dict(arguments, _scope_='kdtoolbox'))
        except (TypeError, ValueError) as error:
            raise type(error)(f'{where}.{name}: {error}') from error
    return modules, wires


def _required(kind: type[nn.Module], keys: Iterable[str]) -> list[str]:
    """Return the wires without which a module cannot run: those without a default."""
    parameters = inspect.signature(kind.forward).parameters
    # A connector's `input` is the first argument of its forward, whatever its name.
    return [
        key
        for key in keys
        if key not in parameters or parameters[key].default is inspect.Parameter.empty
    ]


def _find_class(kind: str | type[nn.Module] | None, where: str) -> type[nn.Module]:
    if isinstance(kind, type):
        return kind
    MODELS.import_from_location()
    # A bare name is ours: `get` would also find the task library's class.
    found = MODELS.get(kind) if kind and '.' in kind else MODELS.module_dict.get(kind)
    if found is None:
        raise ValueError(
            f'{where}: kdtoolbox has no {kind!r}'
            f'{did_you_mean(str(kind), MODELS.module_dict)}'
        )
    return found


def check_wiring(
    sides: Mapping[str, set[str]], connections: Wires, comparisons: Wires
) -> None:
    """Raise ValueError for wires that lead nowhere, come from nowhere, or are lacking.

    Args:
        sides: For each wire that is recorded the sides it stems from.
        connections: For each connector the wires it reads.
        comparisons: For each loss the wires it compares.
    """
    sides = dict(sides)
    for name, connection in connections.items():
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
