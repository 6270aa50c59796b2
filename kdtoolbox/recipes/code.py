"""Write values of a config as Python code."""

import keyword
import textwrap
from collections.abc import Mapping
from typing import Any

_WIDTH = 88


class Expression(str):
    """An expression, which stands in the code as it is, unlike text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def code_of(
    value: Any, indent: int = 0, density: int = 0, lead: int = 0, broken: bool = False
) -> str:
    """Return the code of a value, in one line if it fits, else as ruff breaks it.

    Args:
        value: Dicts, lists, tuples and plain values.
        indent: Spaces in front of the line.
        density: 0 for an item per line; 1 for as many short items as fit; 2 for items
            that are wrapped without further structure.
        lead: Characters that stand before the value on its line.
        broken: Put each item on a line, even if all fit on one.

    Example:
        >>> print(code_of(dict(conv=dict(in_channels=[8, 8, 8])), broken=True))
        dict(
            conv=dict(in_channels=[8] * 3),
        )
    """
    text = _flat(value)
    if not isinstance(value, Mapping | list | tuple) or not value:
        return text
    if not broken and indent + lead + len(text) < _WIDTH:
        return text
    opening, closing = _brackets(value)
    inside = text[len(opening) : -len(closing)]
    if not broken and indent + 4 + len(inside) <= _WIDTH:
        return f'{opening}\n{" " * (indent + 4)}{inside}\n{" " * indent}{closing}'
    if density == 2 and not broken:
        lines = [line for item in _items(value) for line in _wrapped(*item, indent + 4)]
    else:
        lines = _lines(value, indent + 4, density, one_each=broken or not density)
    return '\n'.join([opening, *lines, ' ' * indent + closing])


def _wrapped(key: str, value: Any, indent: int) -> list[str]:
    return textwrap.wrap(
        f'{key}{_flat(value)},',
        _WIDTH,
        initial_indent=' ' * indent,
        subsequent_indent=' ' * (indent + 4),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _lines(value: Any, indent: int, density: int, one_each: bool) -> list[str]:
    lines: list[str] = []
    for key, item in _items(value):
        part = f'{key}{code_of(item, indent, density, lead=len(key))},'
        joined = f'{lines[-1]} {part}' if lines else ''
        if one_each or not lines or '\n' in joined or len(joined) > _WIDTH:
            lines.append(' ' * indent + part)
        else:
            lines[-1] = joined
    return lines


def _flat(value: Any) -> str:
    if not isinstance(value, Mapping | list | tuple):
        return repr(value)
    if len(value) > 2 and isinstance(value, list) and len(set(map(repr, value))) == 1:
        return f'[{_flat(value[0])}] * {len(value)}'
    opening, closing = _brackets(value)
    inside = ', '.join(f'{key}{_flat(item)}' for key, item in _items(value))
    comma = ',' if isinstance(value, tuple) and len(value) == 1 else ''
    return f'{opening}{inside}{comma}{closing}'


def _brackets(value: Any) -> tuple[str, str]:
    if isinstance(value, Mapping):
        return ('dict(', ')') if _has_words(value) else ('{', '}')
    return ('[', ']') if isinstance(value, list) else ('(', ')')


def _has_words(value: Mapping[Any, Any]) -> bool:
    """Return whether all keys can be names of arguments."""
    return all(str(k).isidentifier() and not keyword.iskeyword(str(k)) for k in value)


def _items(value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        return [('', item) for item in value]
    words = _has_words(value)
    return [(f'{k}=' if words else f'{k!r}: ', item) for k, item in value.items()]
