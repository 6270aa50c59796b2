"""Find the levels of two models that have the same stride."""

import re
from collections.abc import Sequence
from typing import Any

from kdtoolbox.recipes.sides import Level, Side

Places = tuple[Any, Any]
"""A recorder for the student and one for the teacher."""


def common_levels(role: str, paths: Places, student: Side, teacher: Side) -> Places:
    """Return recorders of the levels that both models have."""
    if role == 'some stages':
        return _some(paths[0], student), _some(paths[1], teacher)
    own_part, own = pyramid_of(student, role)
    other_part, other = pyramid_of(teacher, role)
    pairs = _pairs(own, other)
    if not pairs:
        raise ValueError(
            f'student and teacher have no level in common: strides {_strides(own)} '
            f'and {_strides(other)}; name a layer of each with --at STUDENT,TEACHER'
        )
    kept, others = zip(*pairs, strict=True)
    return (
        _select(own_part, own, kept, student),
        _select(other_part, other, others, teacher),
    )


def _strides(levels: list[Level]) -> list[float]:
    return [level.stride for level in levels]


def _pairs(own: list[Level], other: list[Level]) -> list[tuple[int, int]]:
    """Return the places of the levels that correspond, on the student and teacher."""
    strides = _strides(other)
    # Several stages of one stride, as in dilated backbones, correspond by their place.
    dilated = len({*strides}) < len(strides) or len({*_strides(own)}) < len(own)
    if len(own) == len(other) and (dilated or _strides(own) == strides):
        pairs = [(place, place) for place in range(len(own))]
    else:
        pairs = []
        for place, level in enumerate(own):
            taken = {j for _, j in pairs}
            free = [j for j, s in enumerate(strides) if s == level.stride]
            pairs += [(place, j) for j in free if j not in taken][:1]
    pairs = [(i, j) for i, j in pairs if own[i].trains]
    # Part of the levels can be recorded if each has a module of its own, which a pooled
    # P6 has not.
    for side, levels in ((0, own), (1, other), (0, own)):
        if len(pairs) < len(levels):
            pairs = [pair for pair in pairs if levels[pair[side]].path]
    return pairs


def _select(part: str, levels: list[Level], kept: Sequence[int], side: Side) -> str:
    if len(kept) == len(levels):
        return part
    paths = [path for place in kept if (path := levels[place].path)]
    joined = one_recorder(paths, side)
    if joined is None:
        raise ValueError(
            f'the {side.name} {side.source!r} has levels of the strides '
            f'{_strides(levels)}, the other model not all of them, and no recorder '
            f'matches {paths} alone; name a layer with --at STUDENT,TEACHER'
        )
    return joined


def _some(path: str, side: Side) -> str:
    """Return the stages of a backbone that correspond to some of a ResNet's four."""
    if side.has(path):
        return path
    named = re.fullmatch(r'backbone\.layer\[?(\d)(?:-(\d))?\]?', path)
    levels = side.pyramid('backbone')
    if named:
        first, last = int(named[1]) - 5, int(named[2] or named[1]) - 5
        kept = levels[first : last + 1 or None]
        if len(kept) == len(levels):
            return 'backbone'
        paths = [level.path for level in kept if level.path is not None]
        joined = one_recorder(paths, side) if len(paths) == len(kept) else None
        if joined:
            return joined
    raise ValueError(
        f'the {side.name} {side.source!r} has no modules for the stages {path!r} of a '
        'ResNet; use --at backbone for all stages, or name a layer with --at'
    )


def pyramid_of(side: Side, role: str = 'pyramid') -> tuple[str, list[Level]]:
    """Return the part that makes a pyramid, such as the neck, and its levels.

    Raises:
        ValueError: If it returns no maps.
    """
    layers = side.outline.layers
    has_neck = 'neck' in layers and layers['neck'].calls
    part = 'neck' if has_neck and role == 'pyramid' else 'backbone'
    if not layers[part].calls or not side.pyramid(part):
        raise ValueError(
            f'the {part} of the {side.name} {side.source!r} returns no maps on random '
            f'images ({side.outline.error}); name a layer with --at'
        )
    return part, side.pyramid(part)


def same_levels(paths: Places, student: Side, teacher: Side) -> bool:
    """Return whether a recipe's recorders exist and have the same strides."""
    strides = []
    for path, side in zip(paths, (student, teacher), strict=True):
        if not side.has(path):
            return False
        values = side.values(path)
        if side.name == 'student' and not all(value.trains for value in values):
            return False
        strides.append([side.outline.stride(value.shape) for value in values])
    return strides[0] == strides[1]


def one_recorder(paths: list[str], side: Side) -> str | None:
    """Return one recorder for modules that are called in this order."""
    if len(set(paths)) <= 1:
        return paths[0] if paths else None
    parts = [path.split('.') for path in paths]
    for place in range(len(parts[0])):
        numbers = [part[place] for part in parts if len(part) == len(parts[0])]
        others = {(*part[:place], *part[place + 1 :]) for part in parts}
        if len(numbers) == len(parts) and len(others) == 1:
            return _glob(numbers, parts[0], place, side)
    return None


def _glob(numbers: list[str], parts: list[str], place: int, side: Side) -> str | None:
    if not all(number.isdigit() for number in numbers):
        # Stages of a backbone end in a digit: stage2, stage3.
        stems = {number[:-1] for number in numbers}
        digits = [number[-1] for number in numbers]
        stem = stems.pop() if len(stems) == 1 else None
    else:
        stem, digits = '', numbers
    if stem is None or not all(digit.isdigit() and len(digit) == 1 for digit in digits):
        return None
    first, last = int(digits[0]), int(digits[-1])
    if [int(digit) for digit in digits] != list(range(first, last + 1)):
        return None
    whole = '.'.join([*parts[:place], '*', *parts[place + 1 :]])
    if not stem and side.has(whole) and len(side.values(whole)) == len(numbers):
        return whole
    return '.'.join([*parts[:place], f'{stem}[{first}-{last}]', *parts[place + 1 :]])
