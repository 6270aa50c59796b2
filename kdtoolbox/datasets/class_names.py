"""Compare the classes of a data set with those that the teacher was trained on."""

import re
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
"""Modules of mmdet and mmseg whose outputs are class logits, beside all `*_cls`."""

_SHOWN = 3


def check_class_names(model: Any, dataset: BaseDataset, where: str) -> None:
    """Refuse data whose classes are not the teacher's, where these are compared.

    The names are compared in their order, without regard to case, spaces, hyphens and
    underscores. Without names on both sides, with other numbers of classes, or where no
    loss reads class logits, all data pass.

    Args:
        model: The model that trains.
        dataset: The data set, without wrappers.
        where: Its place in the config.

    Raises:
        ValueError: If the order or the names differ. It says which and what mends it.
    """
    theirs = getattr(getattr(model, 'teacher', None), 'classes', None)
    mine = dataset.metainfo.get('classes')
    if theirs is None or mine is None or len(mine) != len(theirs):
        return
    differing = [i for i in range(len(mine)) if _plain(mine[i]) != _plain(theirs[i])]
    losses = losses_of_classes(model) if differing else []
    if not losses:
        return
    pairs = ', '.join(f'{i}: {mine[i]!r}, {theirs[i]!r}' for i in differing[:_SHOWN])
    more = ', ...' if len(differing) > _SHOWN else ''
    reordered = sorted(map(_plain, mine)) == sorted(map(_plain, theirs))
    raise ValueError(
        f'{where}: its classes {"have another order than" if reordered else "are not"} '
        f"the teacher's, which {', '.join(losses)} would compare one by one; class of "
        f'the data and of the teacher by number: {pairs}{more}. '
        f'{_cure(dataset, where, reordered)}, or take losses on features alone. '
        f"The data's: {tuple(mine)}. The teacher's: {theirs}"
    )


def losses_of_classes(distiller: Any) -> list[str]:
    """Return the config paths of the losses that compare logits class by class.

    They are those whose class says so by ``reads_classes``, and any whose teacher's
    wire is recorded at a layer of class logits.
    """
    return [
        f'model.losses.{name}'
        for name, wires in distiller.wiring.comparisons.items()
        if getattr(distiller.losses[name], 'reads_classes', False)
        or _is_of_classes(distiller, wires.get('teacher', ''))
    ]


def _is_of_classes(distiller: Any, wire: str) -> bool:
    if wire in distiller.wiring.connections:
        return any(
            _is_of_classes(distiller, source)
            for source in distiller.wiring.connections[wire].values()
        )
    side, _, name = wire.partition('.')
    if side != 'teacher':
        return False
    recorder = distiller.recorders['teacher'].get(name, name)
    if not isinstance(recorder, str):
        if recorder.get('what') == 'input':
            return False
        recorder = recorder['source']
    # Indices and patterns are no names.
    layer = re.sub(r'[.\[][\d*\-\]:]+', '', recorder).rpartition('.')[2]
    # Of an RPN the only class is the object.
    return layer in _CLASS_LAYERS or (layer.endswith('cls') and 'rpn' not in recorder)


def _plain(name: str) -> str:
    return re.sub(r'[\s_-]+', '', str(name).casefold())


def _cure(dataset: BaseDataset, where: str, reordered: bool) -> str:
    if not reordered:
        return (
            'Choose a teacher that was trained on these classes; if they are the same '
            f'under other names, call them as the teacher does in `{where}.metainfo.'
            'classes` and in the annotation'
        )
    # mmseg numbers labels anew only where the kind of data set has classes itself.
    by_label = hasattr(dataset, 'label_map') and not dataset.METAINFO.get('classes')
    if by_label:
        return (
            'Number the classes in the label maps as the teacher does, and list them '
            f'in that order as `{where}.metainfo.classes`'
        )
    return (
        f"List the teacher's order as `{where}.metainfo.classes`, in the data sets for "
        'validation and test too'
    )
