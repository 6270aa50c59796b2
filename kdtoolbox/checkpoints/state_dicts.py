"""Find the weights of a model in a state dict: behind prefixes, beside averages."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping

from torch import Tensor

_WRAPPERS = {'module.', 'model.', 'student.', 'architecture.', 'teacher.', 'detector.'}
"""What toolboxes call the attribute in which they keep the model."""

_COUNTERS = {'steps', 'n_averaged'}
"""What stands beside `module` in the state of mmengine's and torch's averages."""

State = Mapping[str, Tensor]


def below(state: State, prefix: str) -> State:
    """Return the entries below a prefix, without it.

    Example:
        >>> list(below({'module.neck': 1, 'steps': 2}, 'module.'))
        ['neck']
    """
    return _renamed(
        state,
        lambda key: key.removeprefix(prefix) if key.startswith(prefix) else None,
    )


def unwrap(state: State, expected: Collection[str]) -> tuple[State, list[str]]:
    """Take the model out of what was wrapped around it when it was saved.

    A state that has one of the model's keys stays as it is. A prefix counts only where
    all keys share it, but of a distillation the student is taken.

    Args:
        state: The state dict.
        expected: The keys of the model.

    Returns:
        The state of the model, and what was done, to be told.

    Example:
        >>> state, told = unwrap({'module.model.neck': 1}, ['neck'])
        >>> list(state), told
        (['neck'], ["removed 'module.model.' in front of its keys"])
    """
    removed, left = '', set[str]()
    while state and not state.keys() & set(expected):
        parts = {''.join(key.partition('.')[:2]) for key in state}
        wrapper = _wrapper(parts)
        if wrapper is None:
            break
        state = below(state, wrapper)
        removed += wrapper
        left |= {part.removesuffix('.') for part in parts - {wrapper} - _COUNTERS}
    told = [f'removed {removed!r} in front of its keys'] if removed else []
    if left:
        told.append(f'left out {", ".join(sorted(left))}, which belong to no model')
    return state, told


def _wrapper(parts: set[str]) -> str | None:
    if 'student.' in parts and 'teacher.' not in parts:
        return 'student.'
    found = parts - _COUNTERS
    return found.pop() if len(found) == 1 and found <= _WRAPPERS else None


def averages_beside(state: State) -> list[str]:
    """Return the keys of the copies that mmdet 2 and mmcv 1 keep for their EMA.

    They are called ``ema_`` and the key of a weight, with underscores for dots.

    Example:
        >>> averages_beside({'conv.weight': 1, 'ema_conv_weight': 2, 'ema_x': 3})
        ['ema_conv_weight']
    """
    copies = {'ema_' + key.replace('.', '_') for key in state}
    return [key for key in state if key in copies]


def without(state: State, keys: Collection[str]) -> State:
    """Return the state without some keys.

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
        # Modules such as DCN read the version of their own layout from it.
        versions = {key: value for key, value in metadata.items() if key == ''}
        for key, value in metadata.items():
            # It names modules, without the dot that ends a prefix.
            kept = name(f'{key}.') if key else None
            if kept is not None:
                versions[kept.removesuffix('.')] = value
        new._metadata = versions  # type: ignore[attr-defined]
    return new
