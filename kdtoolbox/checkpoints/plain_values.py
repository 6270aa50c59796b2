"""Convert the values of a checkpoint to types that can be read without unpickling."""

import os
from collections import OrderedDict, UserString
from collections.abc import Mapping, Sequence, Set, ValuesView
from enum import Enum
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

_ATOMS: tuple[Any, ...] = (bool, int, float, complex, str, bytes, bytearray)
_KEPT = {type(None), *_ATOMS, Tensor, nn.Parameter, torch.Size}
_KEPT |= {torch.dtype, torch.device, torch.layout}
# With `weights_only=True` torch reads integers of at most 255 bytes.
_MAX_BITS = 255 * 8 - 1


class NotPlainError(ValueError):
    """A value cannot be converted to plain types.

    Args:
        place: The path of the value in the checkpoint.
        value: The value.
    """

    def __init__(self, place: str, value: Any) -> None:
        kind = type(value)
        self.description = f'{place} ({kind.__module__}.{kind.__qualname__})'
        super().__init__(
            f'{self.description} would make the checkpoint unreadable without '
            '`trust_pickle`: expected tensors, numbers, text, and lists, dicts or sets '
            'of them. Change the method that returns it, such as `state_dict` or '
            '`get_extra_state`, to return those'
        )


class _Buffer(HistoryBuffer):
    """A log history that is pickled without the functions of its statistics."""

    def __reduce__(self) -> tuple:
        return HistoryBuffer, (*self.data, self.max_length)


def plain(
    value: Any, place: str, dropped: list[str] | None = None, arrays: bool = True
) -> Any:
    """Convert a value to types that ``read_checkpoint`` can read.

    Paths become text, enumerations their value, sequences lists, named tuples tuples,
    frozen sets sets, and mappings dicts.

    Args:
        value: The value. It is not modified.
        place: The path of the value in the checkpoint, for messages.
        dropped: A list. If it is given, entries of mappings that cannot be converted
            are left out, and their paths appended to the list.
        arrays: Keep numeric arrays and scalars of numpy, which plain `torch.load`
            cannot read. Otherwise they become lists and numbers.

    Raises:
        NotPlainError: If a value cannot be converted, and ``dropped`` is None or the
            value is not in a mapping.

    Example:
        >>> from pathlib import Path
        >>> plain(dict(root=Path('data'), ids=range(2), f=print), 'meta', dropped := [])
        {'root': 'data', 'ids': [0, 1]}
        >>> dropped
        ['meta.f (builtins.builtin_function_or_method)']
    """
    if isinstance(value, Enum):
        return plain(value.value, place, dropped, arrays)
    if isinstance(value, Mapping):
        return _mapping(value, place, dropped, arrays)
    if isinstance(value, HistoryBuffer):
        return _Buffer(*value.data, value.max_length)
    if isinstance(value, np.ndarray | np.generic):
        return _numbers(value, place, dropped, arrays)
    atom = _atom(value)
    if type(atom) in _KEPT and not (isinstance(atom, int) and _is_large(atom)):
        return atom
    if isinstance(value, Set):
        items = [plain(item, f'{place}.{item}', dropped, arrays) for item in value]
        return {_hashable(item, place) for item in items}
    if isinstance(value, Sequence | ValuesView):
        items = [
            plain(item, f'{place}[{index}]', dropped, arrays)
            for index, item in enumerate(value)
        ]
        return tuple(items) if isinstance(value, tuple) else items
    raise NotPlainError(place, value)


def _atom(value: Any) -> Any:
    """Convert a value that contains no others; return other values unchanged."""
    if type(value) in _KEPT:
        return value
    if isinstance(value, Tensor):
        return value.as_subclass(Tensor)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, UserString):
        return str(value)
    for kind in _ATOMS:
        if isinstance(value, kind):
            return kind(value)
    return value


def _is_large(value: int) -> bool:
    return value.bit_length() > _MAX_BITS


def _numbers(value: Any, place: str, dropped: list[str] | None, arrays: bool) -> Any:
    # As a list, an array would lose its mask, its field names or the unit of its dates.
    if isinstance(value, np.ma.MaskedArray) or value.dtype.kind in 'VmM':
        raise NotPlainError(place, value)
    if value.dtype.kind not in 'biuf':
        return plain(value.tolist(), place, dropped, arrays)
    if arrays:
        return np.asarray(value) if isinstance(value, np.ndarray) else value
    # `tolist` does not convert a `longdouble` to a float.
    return (value.astype(float) if value.dtype.kind == 'f' else value).tolist()


def _mapping(
    value: Mapping, place: str, dropped: list[str] | None, arrays: bool
) -> dict:
    result: dict = OrderedDict() if isinstance(value, OrderedDict) else {}
    for key, item in value.items():
        where = f'{place}.{key}'
        try:
            name = _hashable(plain(key, where, None, arrays), where)
            if name in result:
                raise NotPlainError(f'{where}, whose key occurs twice,', key)
            result[name] = plain(item, where, dropped, arrays)
        except NotPlainError as error:
            if dropped is None:
                raise
            dropped.append(error.description)
    if hasattr(value, '_metadata'):
        # torch attaches the layout versions of the modules to a state dict.
        metadata = plain(value._metadata, place, dropped, arrays)
        result._metadata = metadata  # type: ignore[attr-defined]
    return result


def _hashable(value: Any, place: str) -> Any:
    try:
        hash(value)
    except TypeError:
        raise NotPlainError(place, value) from None
    return value
