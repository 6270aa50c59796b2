"""Remove the prefixes and the moving averages of other tools from a state dict."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping

from torch import Tensor

_WRAPPERS = {'module.', 'model.', 'student.', 'architecture.', 'teacher.', 'detector.'}
"""Prefixes of the attributes that contain the model in other toolboxes."""

_COUNTERS = {'steps', 'n_averaged'}
"""Counters beside `module` in the averaged models of mmengine and torch."""

State = Mapping[str, Tensor]


def strip_prefix(state: State, prefix: str) -> State:
    """Return the entries with a prefix, and remove the prefix from their keys.

    Example:
        >>> list(strip_prefix({'module.neck': 1, 'steps': 2}, 'module.'))
        ['neck']
    """
    return _renamed(
        state,
        lambda key: key.removeprefix(prefix) if key.startswith(prefix) else None,
    )


def unwrap(state: State, expected: Collection[str]) -> tuple[State, list[str]]:
    """Remove the prefixes of the wrappers that a model was saved in.

    A state dict that contains a key of the model is returned unchanged. A prefix is
    removed only if all keys have it. Of a distiller only the student is returned.

    Args:
        state: The state dict.
        expected: The keys of the model.

    Returns:
        The state dict of the model, and one log message per change.

    Example:
        >>> state, changes = unwrap({'module.model.neck': 1}, ['neck'])
        >>> list(state), changes
        (['neck'], ["removed 'module.model.' in front of its keys"])
    """
    removed, left_out = '', set[str]()
    while state and not state.keys() & set(expected):
        parts = {''.join(key.partition('.')[:2]) for key in state}
        wrapper = _wrapper(parts)
        if wrapper is None:
            break
        state = strip_prefix(state, wrapper)
        removed += wrapper
        left_out |= {part.removesuffix('.') for part in parts - {wrapper} - _COUNTERS}
    changes = [f'removed {removed!r} in front of its keys'] if removed else []
    if left_out:
        names = ', '.join(sorted(left_out))
        changes.append(f'left out {names}, which are not part of the model')
    return state, changes


def _wrapper(parts: set[str]) -> str | None:
    if 'student.' in parts and 'teacher.' not in parts:
        return 'student.'
    found = parts - _COUNTERS
    return found.pop() if len(found) == 1 and found <= _WRAPPERS else None


def ema_copies(state: State) -> list[str]:
    """Return the keys of the copies that the EMA hooks of mmdet 2 and mmcv 1 add.

    Such a key is ``ema_`` plus a weight's key with underscores instead of dots.

    Example:
        >>> ema_copies({'conv.weight': 1, 'ema_conv_weight': 2, 'ema_x': 3})
        ['ema_conv_weight']
    """
    copies = {'ema_' + key.replace('.', '_') for key in state}
    return [key for key in state if key in copies]


def without(state: State, keys: Collection[str]) -> State:
    """Return the state dict without the given keys.

    Example:
        >>> list(without({'a': 1, 'b': 2}, ['a']))
        ['b']
    """
    keys = set(keys)
    return _renamed(state, lambda key: None if key in keys else key)


def _renamed(state: State, name: Callable[[str], str | None]) -> State:
    new = OrderedDict(
        (kept, value) for key, value in state.items() if (kept := name(key)) is not None
    )
    metadata = getattr(state, '_metadata', None)
    if metadata is not None:
        # Modules such as DCN read the version of their weights' layout from it.
        versions = {key: value for key, value in metadata.items() if key == ''}
        for key, value in metadata.items():
            # The keys are paths of modules, without the dot that ends a prefix.
            kept = name(f'{key}.') if key else None
            if kept is not None:
                versions[kept.removesuffix('.')] = value
        new._metadata = versions  # type: ignore[attr-defined]
    return new
