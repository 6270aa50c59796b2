"""Find the paths to record in place of those that do not work."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from kdtoolbox.inspection.outline import Outline
from kdtoolbox.recorders import Recorder, find_modules

_SHOWN = 4
"""Number of paths that a cure lists."""

_ALIKE = 0.75
"""How alike a typo and its correction are at least, from 0 to 1."""


def record_cure(
    side: str,
    name: str,
    recorder: Recorder,
    problem: str,
    model: nn.Module,
    outline: Outline,
) -> str:
    """Return the recorder that works in place of one that failed, or ''.

    Args:
        side: 'student' or 'teacher'.
        name: Name of the record.
        recorder: The recorder of the config.
        problem: The message of its error.
        model: The model of this side.
        outline: Its outline.
    """
    path = recorder.get('source') if isinstance(recorder, Mapping) else recorder
    if not isinstance(path, str):
        return ''
    try:
        modules = [*find_modules(model, path, '')]
    except ValueError:
        found = _nearest(path, outline)
        meant = found.removesuffix('.*')
        return found and f'did you mean {meant}? {_line(side, name, [found])}'
    if 'gradient' in problem:
        later = [*_later(modules[-1], model, outline)][:1]
        return _line(side, name, later)
    silent = [module for module in modules if not outline.layers[module].calls]
    if silent:
        return _line(side, name, _inside(silent[0], outline))
    if 'in place' in problem:
        return _line(side, name, _overwriting(modules[0], outline))
    return ''


def _overwriting(path: str, outline: Outline) -> list[str]:
    """Return the module that has last written into the output of a module."""
    for value in outline.layers[path].outputs:
        # An operation in place returns the same tensor.
        last = outline.makers(value.number)[-1]
        if last != path:
            return [last]
    return [path.rpartition('.')[0]]


def _line(side: str, name: str, paths: Sequence[str]) -> str:
    """Return the entry of a recorder; several paths are alternatives."""
    if not paths or not paths[0]:
        return ''
    others = f'  # or {", ".join(paths[1:])}' if paths[1:] else ''
    return f"recorders=dict({side}=dict({name}='{paths[0]}')){others}"


def _nearest(path: str, outline: Outline) -> str:
    """Return the nearest path that can be recorded, or ''."""
    names = [name for name in outline.layers if name and _usable(name, outline)]
    close = difflib.get_close_matches(path, names, n=1, cutoff=_ALIKE)
    if not close:
        return ''
    [found] = close
    return found if outline.layers[found].calls else f'{found}.*'


def _usable(name: str, outline: Outline) -> bool:
    layer = outline.layers[name]
    return bool(layer.outputs) or _members_run(name, outline)


def _children(path: str, outline: Outline) -> list[str]:
    prefix = f'{path}.' if path else ''
    return [
        name
        for name in outline.layers
        if name.startswith(prefix) and name != path and '.' not in name[len(prefix) :]
    ]


def _members_run(path: str, outline: Outline) -> bool:
    """Return whether a module is a container whose members are all called."""
    children = _children(path, outline)
    is_list = outline.layers[path].kind in ('ModuleList', 'ModuleDict')
    return is_list and all(outline.layers[child].calls for child in children)


def _inside(path: str, outline: Outline) -> list[str]:
    """Return what to record in place of a module that is never called."""
    if _members_run(path, outline):
        return [f'{path}.*']
    below = [
        name
        for name in dict.fromkeys(reversed(outline.order))
        if name.startswith(f'{path}.') and _has_features(name, outline)
    ]
    # What runs last is nearest to the output of the module.
    outermost = [
        name for name in below if not any(name.startswith(f'{o}.') for o in below)
    ]
    return outermost[:_SHOWN]


def _has_features(path: str, outline: Outline) -> bool:
    """Return whether a module returns maps or tokens; a loss returns numbers."""
    return any(len(value.shape) > 2 for value in outline.layers[path].outputs)


def _later(path: str, model: nn.Module, outline: Outline) -> Iterator[str]:
    """Yield modules like this one that run later and have weights that learn."""
    start = outline.order.index(path) if path in outline.order else 0
    while path:
        parent = path.rpartition('.')[0]
        for name in dict.fromkeys(outline.order[start + 1 :]):
            weights = model.get_submodule(name).parameters()
            learns = any(weight.requires_grad for weight in weights)
            if name.rpartition('.')[0] == parent and learns:
                yield name
        path = parent


def as_glob(paths: Sequence[str]) -> str:
    """Return one glob for paths that count up in one digit, or ''.

    Example:
        >>> as_glob(['neck.fpn_convs.1.conv', 'neck.fpn_convs.2.conv'])
        'neck.fpn_convs.[1-2].conv'
        >>> as_glob(['backbone.layer3', 'neck'])
        ''
    """
    if len(paths) == 1:
        return paths[0]
    for match in re.finditer(r'\d', paths[0]) if paths else ():
        start, end, first = match.start(), match.end(), int(match.group())
        wanted = [
            f'{paths[0][:start]}{first + step}{paths[0][end:]}'
            for step in range(len(paths))
        ]
        if wanted == [*paths] and first + len(paths) <= 10:
            return (
                f'{paths[0][:start]}[{first}-{first + len(paths) - 1}]{paths[0][end:]}'
            )
    return ''
