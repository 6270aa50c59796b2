"""Build the connectors and losses of a config."""

import inspect
from ast import literal_eval
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import NoneType
from typing import Any, get_args, get_type_hints

from torch import Tensor, nn

from kdtoolbox.configuration import Report, check_keys, did_you_mean, refuse
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
    report: Report = refuse,
) -> tuple[nn.ModuleDict, Ends]:
    """Build the modules of a config section; return them and the wires they read.

    The modules are built in the order of their names. A config that was dumped and read
    again has another order, but needs the same random weights and optimizer state.

    Args:
        configs: For each name the config of a module with its wires.
        where: Config path of the section, for errors.
        wires_of: Returns, for the class of a module, the keys that name wires.
        report: Gets all faults; what has one is not among the modules. By default the
            first is raised.

    Raises:
        ValueError: If a config is no dict, a module cannot have a name, a type is not
            registered with kdtoolbox, or a wire is missing.
        TypeError: If a module has no such argument, or the argument is text and has to
            be a number.
    """
    modules, wires = nn.ModuleDict(), {}
    if not isinstance(configs, Mapping):
        report(ValueError(f'{where}: expected a dict of names, got {configs!r}'))
        return modules, wires
    for name, config in sorted(configs.items()):
        if isinstance(config, Mapping):
            # Configs keep it where there is nothing to delete.
            config = {k: v for k, v in config.items() if k != '_delete_'}
        faults = [*_entry_faults(name, config, where, wires_of)]
        for fault in faults:
            report(fault)
        if not isinstance(config, Mapping):
            wires[name] = {}
            continue
        keys = _wire_keys(config, wires_of)
        wires[name] = dict(_named_wires(config, keys))
        if faults:
            continue
        arguments = {key: value for key, value in config.items() if key not in keys}
        # Without this scope a bare name is the task library's class.
        try:
            modules[name] = MODELS.build(dict(arguments, _scope_='kdtoolbox'))
        except (KeyError, TypeError, ValueError) as error:
            report(placed(error, f'{where}.{name}: '))
    return modules, wires


def _named_wires(
    config: Mapping[str, Any], keys: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """Yield the wires of an entry by key, those in a list by ``key[0]`` and so on."""
    for key in keys:
        value = config.get(key)
        listed = enumerate(value) if isinstance(value, list | tuple) else ()
        yield from ((f'{key}[{index}]', wire) for index, wire in listed)
        if isinstance(value, str):
            yield key, value


def placed(error: Exception, place: str) -> Exception:
    """Return an error with its config path before the message."""
    # The text of a KeyError is in quotes.
    text = error.args[0] if isinstance(error, KeyError) else error
    kind = ValueError if isinstance(error, KeyError) else type(error)
    return kind(f'{place}{text}')


def _wire_keys(
    config: Mapping[str, Any], wires_of: Callable[[type[nn.Module]], list[str]]
) -> list[str]:
    """Return the keys of an entry that name wires; the usual ones without a type."""
    try:
        return wires_of(find_class(config.get('type'), ''))
    except ValueError:
        return ['input', 'like', *SIDES]


def _entry_faults(
    name: str,
    config: Any,
    where: str,
    wires_of: Callable[[type[nn.Module]], list[str]],
) -> Iterator[Exception]:
    """Yield what is wrong with an entry of a section before it is built."""
    place = f'{where}.{name}'
    if '.' in name or hasattr(nn.ModuleDict, name):
        other = name.replace('.', '_') if '.' in name else f'{name}_wire'
        yield ValueError(
            f'{where}: {name!r} cannot be a name here'
            + (', only wires of recorders contain dots' if '.' in name else '')
            + f'; call it {other!r}'
        )
    if not isinstance(config, Mapping):
        yield ValueError(f'{place}: expected a dict with `type`, got {config!r}')
        return
    try:
        kind = find_class(config.get('type'), place)
    except ValueError as error:
        yield error
        return
    keys = wires_of(kind)
    missing = [key for key in _required(kind, keys) if key not in config]
    if missing:
        yield ValueError(
            f'{place}: {kind.__name__} reads the wires {keys}; name one as '
            f'{" and one as ".join(map(repr, missing))}'
        )
    for key in keys:
        if not _names_wires(config.get(key, ''), kind):
            yield ValueError(
                f"{place}.{key}: expected the name of a wire, such as 'student.fpn', "
                f'got {config[key]!r}'
            )
    arguments = {key: value for key, value in config.items() if key not in keys}
    yield from argument_faults(kind, arguments, place)


def _names_wires(value: Any, kind: type[nn.Module]) -> bool:
    """Return whether a value is a wire, or a list of them for ``forward(*wires)``."""
    parameters = inspect.signature(kind.forward).parameters.values()
    several = any(x.kind is inspect.Parameter.VAR_POSITIONAL for x in parameters)
    values = value if several and isinstance(value, list | tuple) and value else [value]
    return all(isinstance(name, str) for name in values)


def argument_faults(
    kind: type[nn.Module], arguments: Mapping[str, Any], where: str
) -> Iterator[TypeError]:
    """Yield a TypeError for unknown arguments and for each number given as text."""
    try:
        check_keys(arguments, kind, where)
    except TypeError as error:
        yield error
    hints = get_type_hints(kind.__init__)
    for key, value in arguments.items():
        hint = hints.get(key)
        kinds = {*(get_args(hint) or (hint,))} - {NoneType}
        if isinstance(value, str) and kinds and kinds <= {int, float, bool}:
            yield TypeError(
                f'{where}.{key}: expected a number, got the text {value!r}'
                + _without_quotes(key, value)
            )


def _without_quotes(key: str, value: str) -> str:
    """Return the end of an error message about a number given as text."""
    try:
        number = isinstance(literal_eval(value), int | float)
    except (SyntaxError, ValueError):
        number = False
    return f'; write {key}={value} without quotes' if number else ''


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
        ValueError: If kdtoolbox has no such class, or the config names none.
    """
    if isinstance(kind, type):
        return kind
    if kind is None:
        raise ValueError(
            f"{where}: it has no `type`; write `type='...'`, or correct its name if it "
            'is that of another entry'
        )
    MODELS.import_from_location()
    # `get` would also return the task library's class of a bare name.
    found = MODELS.get(kind) if '.' in kind else MODELS.module_dict.get(kind)
    if found is None:
        raise ValueError(
            f'{where}: kdtoolbox has no {kind!r}'
            f'{did_you_mean(str(kind), MODELS.module_dict)}'
        )
    return found
