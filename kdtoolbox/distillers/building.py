"""Build the connectors and losses of a config."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import NoneType
from typing import Any, get_args, get_type_hints

from torch import Tensor, nn

from kdtoolbox.configuration import check_keys
from kdtoolbox.registry import MODELS

SIDES = ('student', 'teacher')
CONTEXT = ('level', 'data_samples', 'batch_input_shape', 'targets')
"""Arguments of a loss's ``forward`` that are not wires."""

Wires = dict[str, list[Tensor]]
"""The tensors of each wire, one per level."""

Sides = dict[str, set[str]]
"""For each wire the models, 'student' or 'teacher', that it depends on."""

Ends = dict[str, dict[str, str]]
"""For each connector or loss the wire of each of its arguments."""


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
    """Return the wires that a connector reads: ``input`` and those after the first.

    Example:
        >>> from kdtoolbox.connectors import ResizeConnector
        >>> connector_wires(ResizeConnector)
        ['input', 'like']
    """
    _, _, *others = inspect.signature(kind.forward).parameters
    return ['input', *others]


def build_section(
    configs: Mapping[str, dict],
    where: str,
    wires_of: Callable[[type[nn.Module]], list[str]],
) -> tuple[nn.ModuleDict, Ends]:
    """Build the modules of a config section; return them and the wires they read.

    The modules are built in the order of their names. A config that was dumped and read
    again has another order, but needs the same random weights and optimizer state.

    Args:
        configs: For each name the config of a module with its wires.
        where: Config path of the section, for errors.
        wires_of: Returns, for the class of a module, the keys that name wires.

    Raises:
        ValueError: If a config is no dict, a module cannot have a name, a type is not
            registered with kdtoolbox, or a wire is missing.
        TypeError: If a module has no such argument, or the argument is text and has to
            be a number.
    """
    if not isinstance(configs, Mapping):
        raise ValueError(f'{where}: expected a dict of names, got {configs!r}')
    modules, wires = nn.ModuleDict(), {}
    for name, config in sorted(configs.items()):
        _check_module_name(name, where)
        if not isinstance(config, Mapping):
            raise ValueError(
                f'{where}.{name}: expected a dict with `type`, got {config!r}'
            )
        kind = find_class(config.get('type'), f'{where}.{name}')
        keys = wires_of(kind)
        wires[name] = {key: config[key] for key in keys if key in config}
        missing = [key for key in _required(kind, keys) if key not in config]
        if missing:
            raise ValueError(
                f'{where}.{name}: {kind.__name__} reads the wires {keys}; name one as '
                f'{" and one as ".join(map(repr, missing))}'
            )
        arguments = {key: value for key, value in config.items() if key not in keys}
        check_arguments(kind, arguments, f'{where}.{name}')
        # Without this scope a bare name is the task library's class.
        try:
            modules[name] = MODELS.build(dict(arguments, _scope_='kdtoolbox'))
        except (TypeError, ValueError) as error:
            raise type(error)(f'{where}.{name}: {error}') from error
    return modules, wires


def _check_module_name(name: str, where: str) -> None:
    if '.' in name or hasattr(nn.ModuleDict, name):
        other = name.replace('.', '_') if '.' in name else f'{name}_wire'
        raise ValueError(
            f'{where}: {name!r} cannot be a name here'
            + (', only wires of recorders contain dots' if '.' in name else '')
            + f'; call it {other!r}'
        )


def check_arguments(
    kind: type[nn.Module], arguments: Mapping[str, Any], where: str
) -> None:
    """Raise TypeError for unknown arguments and for numbers given as text."""
    check_keys(arguments, kind, where)
    hints = get_type_hints(kind.__init__)
    for key, value in arguments.items():
        hint = hints.get(key)
        kinds = {*(get_args(hint) or (hint,))} - {NoneType}
        if isinstance(value, str) and kinds and kinds <= {int, float, bool}:
            raise TypeError(
                f'{where}.{key}: expected a number, got the text {value!r}; write '
                f'{key}={value} without quotes'
            )


def _required(kind: type[nn.Module], keys: Iterable[str]) -> list[str]:
    """Return the wires that a module requires: those without a default."""
    parameters = inspect.signature(kind.forward).parameters
    # A connector's `input` is the first argument of its forward, whatever its name.
    return [
        key
        for key in keys
        if key not in parameters or parameters[key].default is inspect.Parameter.empty
    ]


def find_class(kind: str | type[nn.Module] | None, where: str) -> type[nn.Module]:
    """Return the class that a config names.

    Args:
        kind: A class, or its name in kdtoolbox; a name with dots may have a scope.
        where: Its place in the config, for errors.

    Raises:
        ValueError: If kdtoolbox has no such class.
    """
    if isinstance(kind, type):
        return kind
    MODELS.import_from_location()
    # `get` would also return the task library's class of a bare name.
    found = MODELS.get(kind) if kind and '.' in kind else MODELS.module_dict.get(kind)
    if found is None:
        raise ValueError(
            f'{where}: kdtoolbox has no {kind!r}'
            f'{did_you_mean(str(kind), MODELS.module_dict)}'
        )
    return found


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return the end of an error message: the nearest name, or else all names.

    Example:
        >>> did_you_mean('student.fnp', ['student.fpn', 'teacher.fpn'])
        "; did you mean 'student.fpn'?"
    """
    close = difflib.get_close_matches(name, names, n=1)
    return f'; did you mean {close[0]!r}?' if close else f'; there are {sorted(names)}'
