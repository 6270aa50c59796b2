"""Compare the classes of a data set with the classes of the teacher."""

import re
from collections.abc import Sequence
from typing import Any

from mmengine.dataset import BaseDataset

_CLASS_LAYERS = {
    'conv_seg',
    'decode_head',
    'auxiliary_head',
    'conv_logits',
    'cls_embed',
    'cls_branches',
}
"""Modules of mmdet and mmseg that output class logits. All `*_cls` modules do, too."""

_SHOWN = 3


def check_class_names(model: Any, dataset: BaseDataset, where: str) -> None:
    """Check that a loss on class logits compares the same classes.

    The names are compared by position and ignore case, spaces, hyphens and underscores.
    The check passes if one side has no names, if the numbers of classes differ, or if
    no loss reads class logits.

    Args:
        model: The model that trains.
        dataset: The data set, without wrappers.
        where: Config path of the data set.

    Raises:
        ValueError: If the order or the names differ. The message contains the fix.
    """
    for name, teacher in getattr(model, 'teachers', {}).items():
        _check_teacher(model, name, teacher.classes, dataset, where)


def _check_teacher(
    model: Any,
    teacher: str,
    teacher_classes: Sequence[str] | None,
    dataset: BaseDataset,
    where: str,
) -> None:
    classes = dataset.metainfo.get('classes')
    if teacher_classes is None or classes is None:
        return
    if len(classes) != len(teacher_classes):
        return
    names, teacher_names = (
        list(map(_normalized, some)) for some in (classes, teacher_classes)
    )
    differing = [i for i, name in enumerate(names) if name != teacher_names[i]]
    losses = losses_on_class_logits(model, teacher) if differing else []
    if not losses:
        return
    shown = differing[:_SHOWN]
    pairs = ', '.join(f'{i}: {classes[i]!r}, {teacher_classes[i]!r}' for i in shown)
    more = ', ...' if len(differing) > _SHOWN else ''
    reordered = sorted(names) == sorted(teacher_names)
    raise ValueError(
        f'{where}: its classes '
        f'{"are in another order than" if reordered else "differ from"} '
        f"the teacher's, but {', '.join(losses)} would compare them by index. "
        f'Index: class of the data, class of the teacher: {pairs}{more}. '
        f'{_suggest_fix(dataset, where, reordered)}, or use only losses on features. '
        f"The data's: {tuple(classes)}. The teacher's: {teacher_classes}"
    )


def losses_on_class_logits(distiller: Any, teacher: str = 'teacher') -> list[str]:
    """Return the config paths of the losses that compare logits class by class.

    These are the losses with the attribute ``reads_classes``, and the losses whose
    teacher wire records a layer of class logits.

    Args:
        distiller: The distiller.
        teacher: The name of the teacher whose logits they read.
    """
    return [
        f'model.losses.{name}'
        for name, wires in distiller.wiring.comparisons.items()
        if (
            getattr(distiller.losses[name], 'reads_classes', False)
            and _depends(distiller, wires.get('teacher', ''), teacher)
        )
        or _has_class_logits(distiller, wires.get('teacher', ''), teacher)
    ]


def _depends(distiller: Any, wire: str, teacher: str) -> bool:
    connections = distiller.wiring.connections
    if wire in connections:
        sources = connections[wire].values()
        return any(_depends(distiller, source, teacher) for source in sources)
    return teacher in distiller.wiring.sides[wire]


def _has_class_logits(distiller: Any, wire: str, teacher: str) -> bool:
    connections = distiller.wiring.connections
    if wire in connections:
        return any(
            _has_class_logits(distiller, source, teacher)
            for source in connections[wire].values()
        )
    side, _, name = wire.partition('.')
    if side != teacher:
        return False
    recorder = distiller.recorders[teacher].get(name, name)
    if not isinstance(recorder, str):
        if recorder.get('what') == 'input':
            return False
        recorder = recorder['source']
    # Indices and patterns are not part of the name of a layer.
    layer = re.sub(r'[.\[][\d*\-\]:]+', '', recorder).rpartition('.')[2]
    # An RPN head predicts objectness, not classes.
    return layer in _CLASS_LAYERS or (layer.endswith('cls') and 'rpn' not in recorder)


def _normalized(name: str) -> str:
    return re.sub(r'[\s_-]+', '', str(name).casefold())


def _suggest_fix(dataset: BaseDataset, where: str, reordered: bool) -> str:
    if not reordered:
        return (
            'Choose a teacher that was trained on these classes. If only the names '
            f"differ, use the teacher's names in `{where}.metainfo.classes` and in the "
            'annotation'
        )
    # mmseg remaps labels to the order of `metainfo.classes` only if the data set's
    # type defines classes in `METAINFO`.
    fixed_labels = hasattr(dataset, 'label_map') and not dataset.METAINFO.get('classes')
    if fixed_labels:
        return (
            'Number the classes in the label maps as the teacher does, and list them '
            f'in that order as `{where}.metainfo.classes`'
        )
    return (
        f"List the teacher's order as `{where}.metainfo.classes`, and also in the data "
        'sets for validation and test'
    )
