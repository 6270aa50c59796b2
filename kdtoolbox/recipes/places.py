"""Find in two models the layers that correspond to those of a shipped recipe."""

import re
from typing import Any

from kdtoolbox.recipes.levels import (
    Places,
    common_levels,
    one_recorder,
    pyramid_of,
    same_levels,
)
from kdtoolbox.recipes.sides import Side

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
        if at is None and same_levels(paths, student, teacher):
            return paths
        return common_levels(role, paths, student, teacher)
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
    count = len(pyramid_of(side)[1])
    if head is None or not head.calls:
        return None
    outputs = head.outputs[index * count : (index + 1) * count]
    found = [side.outline.makers(value.number, 'bbox_head') for value in outputs]
    if not found or not all(found):
        return None
    return one_recorder([makers[0] for makers in found], side)


def _tower(side: Side) -> str | None:
    """Return the last layers of a dense head's tower, before the class logits."""
    classes = _dense(0, side)
    if classes is None:
        return None
    inputs = side.values(dict(source=classes, what='input'))
    found = [side.outline.makers(value.number, 'bbox_head') for value in inputs]
    return one_recorder([makers[-1] for makers in found], side) if all(found) else None
