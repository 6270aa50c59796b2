"""Find in two models the layers that correspond to those of a shipped recipe."""

import re
from collections.abc import Sequence
from typing import Any

from kdtoolbox.recipes.sides import Level, Side

Places = tuple[Any, Any]
"""A recorder for the student and one for the teacher."""

_ROLES = (
    (r'neck(\..+)?', 'pyramid'),
    (r'backbone', 'stages'),
    (r'backbone\.layer\S+', 'some stages'),
    (r'decode_head\.(bottleneck|fusion_conv)', 'feature'),
    (r'decode_head\.bottleneck\.bn', 'norm'),
    (r'decode_head\.conv_seg', 'logits'),
    (r'bbox_head\.\w+_cls', 'dense classes'),
    (r'bbox_head\.(scales\.\*|\w+_reg)', 'dense boxes'),
)
"""What the recorders of the shipped recipes stand for. Any other path stays."""

AT = dict(neck='pyramid', backbone='stages', head='feature')
"""The places that ``--at`` knows by a name."""


def places(paths: Places, student: Side, teacher: Side, at: str | None) -> Places:
    """Return recorders for two models that correspond to those of a recipe.

    Args:
        paths: The recorders of the recipe on the student and on the teacher.
        student: The student.
        teacher: The teacher.
        at: 'neck', 'backbone', 'head', or a module path, or two of them with a comma
            between; instead of what the recipe records. None for the recipe's.

    Raises:
        ValueError: If a model has no such layer, or the two have no level of one
            stride.
    """
    if at is not None and at not in AT:
        own, _, other = at.partition(',')
        return _called(own, student), _called(other or own, teacher)
    role = AT[at] if at is not None else _role(paths[0])
    if role in ('feature', 'norm') and not _is_segmentor(student):
        role = 'tower' if at == 'head' else 'pyramid'
    if role in ('pyramid', 'stages', 'some stages'):
        if at is None and _same_levels(paths, student, teacher):
            return paths
        return _levels(role, paths, student, teacher)
    return _one(role, paths[0], student), _one(role, paths[1], teacher)


def is_logits(recorder: Any) -> bool:
    """Return whether a recorder of a shipped recipe records logits or boxes."""
    return _role(recorder) in ('logits', 'dense classes', 'dense boxes')


def is_at(recorder: Any, at: str) -> bool:
    """Return whether a recorder of a shipped recipe is at a place of ``--at``."""
    return _role(recorder) == AT.get(at)


def _is_segmentor(side: Side) -> bool:
    return side.family in ('segmentor', 'mask')


def _called(path: str, side: Side) -> str:
    side.values(path)
    return path


def _role(recorder: Any) -> str:
    path = recorder if isinstance(recorder, str) else recorder['source']
    if not isinstance(recorder, str) and path == 'decode_head.conv_seg':
        return 'input of the logits'
    found = (role for pattern, role in _ROLES if re.fullmatch(pattern, path))
    return next(found, 'itself')


def _one(role: str, path: Any, side: Side) -> Any:
    """Return the recorder of a layer on one side."""
    found = path
    if role in ('feature', 'norm'):
        found = _feature(side)
        if role == 'norm':
            found = f'{found}.bn' if isinstance(found, str) else None
    elif role in ('logits', 'input of the logits'):
        found = f'{_head(side)}.conv_seg'
        if role != 'logits':
            found = dict(source=found, what='input')
    elif role == 'tower':
        found = _tower(side)
    elif role.startswith('dense'):
        found = _dense(0 if role == 'dense classes' else 1, side) or path
    if found is None or not side.has(found):
        raise ValueError(
            f'the {side.name} {side.source!r} has no layer like {path!r} that is '
            'called in a forward; choose another method, or name the layer with --at'
        )
    return found


def _head(side: Side) -> str:
    """Return the path of a segmentor's head, the last one of a cascade."""
    count = len(list(side.model.decode_head.children()))
    cascade = type(side.model.decode_head).__name__ == 'ModuleList'
    return f'decode_head.{count - 1}' if cascade else 'decode_head'


def _feature(side: Side) -> Any:
    """Return the layer whose output the classifier of a segmentor reads."""
    head = _head(side)
    layers = side.outline.layers
    for reader in (f'{head}.dropout', f'{head}.conv_seg'):
        if reader in layers and layers[reader].calls:
            makers = side.outline.makers(layers[reader].inputs[0].number, head)
            if makers:
                return makers[-1]
            return dict(source=reader, what='input')
    return None


def _dense(index: int, side: Side) -> str | None:
    """Return the layers that make the classes (0) or the boxes (1) of a dense head."""
    layers = side.outline.layers
    head = layers.get('bbox_head')
    count = len(_pyramid_of(side)[1])
    if head is None or not head.calls:
        return None
    outputs = head.outputs[index * count : (index + 1) * count]
    found = [side.outline.makers(value.number, 'bbox_head') for value in outputs]
    if not found or not all(found):
        return None
    return _joined([makers[0] for makers in found], side)


def _tower(side: Side) -> str | None:
    """Return the last layers of a dense head's tower, before the class logits."""
    classes = _dense(0, side)
    if classes is None:
        return None
    inputs = side.values(dict(source=classes, what='input'))
    found = [side.outline.makers(value.number, 'bbox_head') for value in inputs]
    return _joined([makers[-1] for makers in found], side) if all(found) else None


def _joined(paths: list[str], side: Side) -> str | None:
    """Return one recorder for modules that are called in this order."""
    if len(set(paths)) == 1:
        return paths[0]
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


def _pyramid_of(side: Side, role: str = 'pyramid') -> tuple[str, list[Level]]:
    layers = side.outline.layers
    has_neck = 'neck' in layers and layers['neck'].calls
    part = 'neck' if has_neck and role == 'pyramid' else 'backbone'
    if not layers[part].calls or not side.pyramid(part):
        raise ValueError(
            f'the {part} of the {side.name} {side.source!r} returns no maps on random '
            f'images ({side.outline.error}); name a layer with --at'
        )
    return part, side.pyramid(part)


def _same_levels(paths: Places, student: Side, teacher: Side) -> bool:
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


def _levels(role: str, paths: Places, student: Side, teacher: Side) -> Places:
    """Return recorders of the levels that both models have."""
    if role == 'some stages':
        return _some(paths[0], student), _some(paths[1], teacher)
    own_part, own = _pyramid_of(student, role)
    other_part, other = _pyramid_of(teacher, role)
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
    if len(pairs) < len(own):
        pairs = [(i, j) for i, j in pairs if own[i].path]
    if len(pairs) < len(other):
        pairs = [(i, j) for i, j in pairs if other[j].path]
    return (
        pairs if len(pairs) == len(own) else [(i, j) for i, j in pairs if own[i].path]
    )


def _select(part: str, levels: list[Level], kept: Sequence[int], side: Side) -> str:
    if len(kept) == len(levels):
        return part
    paths = [path for place in kept if (path := levels[place].path)]
    joined = _joined(paths, side)
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
        joined = _joined(paths, side) if paths and len(paths) == len(kept) else None
        if joined:
            return joined
    raise ValueError(
        f'the {side.name} {side.source!r} has no modules for the stages {path!r} of a '
        'ResNet; use --at backbone for all stages, or name a layer with --at'
    )
