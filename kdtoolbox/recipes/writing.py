"""Write the text of a recipe."""

import keyword
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdtoolbox.recipes.fitting import Fitted

_WIDTH = 88

MOST_LINES = 30
"""A recipe of more lines is written more densely."""


def recipe_text(
    comments: list[str], base: str, teacher: dict, fitted: Fitted, further: dict
) -> str:
    """Return the text of a recipe.

    Args:
        comments: Lines at the top of the file.
        base: What the file begins with, so that the student's config is inherited: the
            result of `text_base` or `class_base`.
        teacher: The config of the teacher.
        fitted: The sections of the distillation.
        further: Other entries of the config, by name: an expression each.
    """
    # More and more items stand on one line.
    for density in range(3):
        text = _text(comments, base, teacher, fitted, further, density)
        if text.count('\n') <= MOST_LINES:
            break
    return text


def _text(
    comments: list[str],
    base: str,
    teacher: dict,
    fitted: Fitted,
    further: dict,
    density: int,
) -> str:
    is_text = base.startswith('_base_')
    student = '_base_.model' if is_text else 'model'
    own, other = fitted.recorders.values()
    lines = [*(f'# {line}' for line in comments), base]
    recorders: Any = fitted.recorders
    if own and own == other:
        lines.append(f'layers = {_code(own, 0, density, lead=9)}')
        recorders = dict(student=_Name('layers'), teacher=_Name('layers'))
    model: dict[str, Any] = dict(_delete_=True) if is_text else {}
    model |= dict(type='kdtoolbox.Distiller', student=_Name(student), teacher=teacher)
    for key, value in (
        ('sources', fitted.sources),
        ('recorders', recorders if own or other else None),
        ('connectors', fitted.connectors),
        ('losses', fitted.losses),
    ):
        if value:
            model[key] = value
    lines += ['', f'model = {_code(model, 0, density, lead=8, broken=True)}']
    lines += [f'{name} = {value}' for name, value in further.items()]
    return '\n'.join([*lines, ''])


class _Name(str):
    """An expression rather than text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _code(
    value: Any, indent: int, density: int, lead: int, broken: bool = False
) -> str:
    """Return the code of a value: on one line if it fits, else an item per line.

    Args:
        value: Dicts, lists and plain values.
        indent: Spaces in front of the line.
        density: 0 for an item per line; 1 for as many short items as fit; 2 for a
            connector, loss or source without further structure.
        lead: Characters that stand before the value on its line.
        broken: Put each item on a line, even if all fit on one.
    """
    text = _flat(value)
    if not isinstance(value, Mapping | list) or not value:
        return text
    if not broken and indent + lead + len(text) < _WIDTH:
        return text
    opening, closing = ('dict(', ')') if isinstance(value, Mapping) else ('[', ']')
    if density == 2 and not broken:
        lines = [line for item in _items(value) for line in _wrapped(*item, indent + 4)]
    else:
        lines = _lines(value, indent + 4, density, one_each=broken or not density)
    return '\n'.join([opening, *lines, ' ' * indent + closing])


def _wrapped(key: str, value: Any, indent: int) -> list[str]:
    text = f'{key}={_flat(value)},' if key else f'{_flat(value)},'
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=' ' * indent,
        subsequent_indent=' ' * (indent + 4),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _lines(value: Any, indent: int, density: int, one_each: bool) -> list[str]:
    lines: list[str] = []
    for key, item in _items(value):
        code = _code(item, indent, density, lead=len(key) + 1)
        part = f'{key}={code},' if key else f'{code},'
        joined = f'{lines[-1]} {part}' if lines else ''
        if one_each or not lines or '\n' in joined or len(joined) > _WIDTH:
            lines.append(' ' * indent + part)
        else:
            lines[-1] = joined
    return lines


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return f'dict({", ".join(f"{k}={_flat(v)}" for k, v in value.items())})'
    if isinstance(value, list):
        if len(value) > 2 and len(set(map(repr, value))) == 1:
            return f'[{_flat(value[0])}] * {len(value)}'
        return f'[{", ".join(map(_flat, value))}]'
    return repr(value)


def _items(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    return [('', item) for item in value]


def reference(source: str, folder: Path) -> str:
    """Return how a file in a folder names a config: ``package::path`` or a path.

    A path is relative to the folder if both are near, so that they can move together.
    """
    if '::' in source:
        return source
    path, start = os.path.abspath(source), os.path.abspath(folder)
    near = os.path.relpath(path, start)
    is_near = os.path.commonpath([path, start]) != os.path.sep
    return near if is_near and not near.startswith('../../../') else path


def text_base(source: str, folder: Path) -> str:
    """Return the line by which a config of text inherits another one."""
    return f'_base_ = {reference(source, folder)!r}'


def class_base(source: str, folder: Path) -> str:
    """Return the lines by which a config inherits one with ``read_base``.

    Raises:
        ValueError: If the path cannot be imported.
    """
    path = Path(os.path.relpath(os.path.abspath(source), folder)).with_suffix('')
    ups = [part for part in path.parts if part == '..']
    names = path.parts[len(ups) :]
    if not all(n.isidentifier() and not keyword.iskeyword(n) for n in names):
        raise ValueError(
            f'--student {source}: a config with `read_base` is imported, and '
            f'{"/".join(names)} cannot be a name in Python; copy it beside the recipe '
            'under such a name'
        )
    dots = '.' * (len(ups) + 1)
    return (
        'from mmengine.config import read_base\n\n'
        f'with read_base():\n    from {dots}{".".join(names)} import *'
    )
