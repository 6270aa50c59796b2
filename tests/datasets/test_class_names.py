import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import kdtoolbox.losses
from kdtoolbox.datasets.class_names import check_class_names, losses_on_class_logits

Toy = SimpleNamespace
WHERE = 'train_dataloader.dataset'
DIGITS = tuple('0123')

LOGITS = dict(logits='decode_head.conv_seg')
ENDS = dict(student='student.logits', teacher='teacher.logits')


def distiller(toy: Toy, folder: Path, loss: str, source: Any, meta: dict) -> Any:
    """Return a segmentor's distiller with one loss and a teacher with this `meta`."""
    path = folder / 'teacher.pth'
    torch.save(
        dict(state_dict=toy.build(toy.segmentor()).state_dict(), meta=meta), path
    )
    recorders = dict(logits=source)
    return toy.build_distiller(
        toy.segmentor(),
        teacher=dict(config=toy.segmentor(), checkpoint=str(path)),
        recorders=dict(student=recorders, teacher=recorders),
        losses=dict(loss_a=dict(type=loss, **ENDS)),
    )


def data(names: Any, kind: str = 'detection', own: Any = None) -> Any:
    classes = {} if names is None else dict(classes=tuple(names))
    more = dict(label_map=None) if kind == 'segmentation' else {}
    return SimpleNamespace(
        metainfo=classes, METAINFO=dict(classes=own) if own else {}, **more
    )


META = dict(dataset_meta=dict(classes=DIGITS))


@pytest.mark.parametrize(
    ('loss', 'source'),
    [
        ('KDLoss', 'decode_head.conv_seg'),
        ('KDLoss', 'decode_head'),
        ('CWDLoss', 'decode_head.conv_seg'),
        ('CWDLoss', 'auxiliary_head.conv_seg'),
        ('PKDLoss', dict(source='*_head.conv_seg')),
    ],
)
def test_class_names_in_another_order_are_refused(
    toy: Toy, tmp_path: Path, loss: str, source: Any
) -> None:
    model = distiller(toy, tmp_path, loss, source, META)
    with pytest.raises(ValueError, match='another order than the teacher') as caught:
        check_class_names(model, data(DIGITS[::-1]), WHERE)
    message = str(caught.value)
    assert message.startswith(f'{WHERE}: ')
    assert 'but model.losses.loss_a would compare them by index' in message
    assert "0: '3', '0', 1: '2', '1', 2: '1', '2', ..." in message
    assert f"List the teacher's order as `{WHERE}.metainfo.classes`" in message
    assert f"The teacher's: {DIGITS}" in message
    check_class_names(model, data(DIGITS), WHERE)


@pytest.mark.parametrize(
    ('loss', 'source'),
    [
        ('CWDLoss', 'backbone.layer3'),
        ('PKDLoss', 'decode_head.bottleneck'),
        ('PKDLoss', dict(source='decode_head.conv_seg', what='input')),
    ],
)
def test_features_alone_pass(toy: Toy, tmp_path: Path, loss: str, source: Any) -> None:
    model = distiller(toy, tmp_path, loss, source, META)
    check_class_names(model, data(DIGITS[::-1]), WHERE)
    check_class_names(model, data('abcd'), WHERE)


def test_other_names_are_refused(toy: Toy, tmp_path: Path) -> None:
    model = distiller(toy, tmp_path, 'KDLoss', 'decode_head.conv_seg', META)
    with pytest.raises(ValueError, match="differ from the teacher's") as caught:
        check_class_names(model, data(('0', '1', 'cat', '3')), WHERE)
    assert "2: 'cat', '2'. Choose a teacher" in str(caught.value)


def test_the_meta_of_mmcv_1_is_read(toy: Toy, tmp_path: Path) -> None:
    meta = dict(CLASSES=DIGITS)
    model = distiller(toy, tmp_path, 'KDLoss', 'decode_head.conv_seg', meta)
    with pytest.raises(ValueError, match='another order'):
        check_class_names(model, data(DIGITS[::-1]), WHERE)


@pytest.mark.parametrize(
    ('teacher_classes', 'classes'),
    [
        (('Traffic Light', 'b', 'c', 'd'), ('traffic_light', 'B', 'C', 'd')),
        (None, DIGITS),
        (DIGITS, None),
        # The check of the shapes raises here.
        (DIGITS, DIGITS[:3]),
    ],
)
def test_equal_missing_and_too_few_names_pass(
    toy: Toy, tmp_path: Path, teacher_classes: Any, classes: Any
) -> None:
    meta = dict(dataset_meta=dict(classes=teacher_classes))
    model = distiller(toy, tmp_path, 'KDLoss', 'decode_head.conv_seg', meta)
    check_class_names(model, data(classes), WHERE)


def test_models_without_a_teacher_pass(toy: Toy) -> None:
    check_class_names(toy.build(toy.gfl()), data(DIGITS), WHERE)


def test_the_fix_depends_on_whether_mmseg_remaps_labels(
    toy: Toy, tmp_path: Path
) -> None:
    """mmseg remaps labels only if the data set's type defines classes in `METAINFO`."""
    model = distiller(toy, tmp_path, 'KDLoss', 'decode_head.conv_seg', META)
    with pytest.raises(ValueError, match='Number the classes in the label maps'):
        check_class_names(model, data(DIGITS[::-1], 'segmentation'), WHERE)
    with pytest.raises(ValueError, match="List the teacher's order"):
        check_class_names(model, data(DIGITS[::-1], 'segmentation', DIGITS), WHERE)


@pytest.mark.parametrize(
    ('recorder', 'wire', 'expected'),
    [
        ('bbox_head.gfl_cls', 'teacher.x', True),
        ('bbox_head.rtm_cls.0', 'teacher.x', True),
        ('bbox_head.rtm_cls[-1]', 'teacher.x', True),
        ('bbox_head.cls_branches.*', 'teacher.x', True),
        ('roi_head.bbox_head.fc_cls', 'teacher.x', True),
        ('rpn_head.rpn_cls', 'teacher.x', False),
        ('bbox_head.cls_convs.1', 'teacher.x', False),
        ('bbox_head.gfl_reg', 'teacher.x', False),
        ('neck', 'teacher.x', False),
        # These wires come from distillers, not from recorders.
        ('neck', 'teacher.roi_cls', True),
        ('neck', 'teacher.query_cls', True),
        ('neck', 'teacher.rpn_cls', False),
        ('bbox_head.gfl_cls', 'made', True),
        ('neck', 'made', False),
    ],
)
def test_wires_of_class_logits(recorder: str, wire: str, expected: bool) -> None:
    model = SimpleNamespace(
        losses=dict(loss=object()),
        recorders=dict(teacher=dict(x=recorder)),
        wiring=SimpleNamespace(
            comparisons=dict(loss=dict(student='student.x', teacher=wire)),
            connections=dict(made=dict(input='teacher.x')),
        ),
    )
    assert losses_on_class_logits(model) == ['model.losses.loss'] * expected


def test_every_loss_on_class_logits_has_reads_classes() -> None:
    readers = ('read_logits(', ' check_logits(', 'num_classes')
    # These read the confidence of any class, or the labels of the data, or only share
    # a file with a loss on class logits.
    others = {'LDLoss', 'CrossKDDistributionLoss', 'CrossKDBoxLoss'}
    others |= {'CrossKDCenternessLoss', 'ChannelDistillationLoss', 'DeFeatLoss'}
    others |= {'DSDPixelLoss', 'CIRKDMemoryLoss', 'QueryBoxLoss'}
    unmarked = set()
    for name, kind in vars(kdtoolbox.losses).items():
        if inspect.isclass(kind) and name.endswith('Loss'):
            text = Path(inspect.getfile(kind)).read_text()
            if any(reader in text for reader in readers):
                unmarked |= set() if hasattr(kind, 'reads_classes') else {name}
    assert unmarked <= others, unmarked - others
    assert not any(
        hasattr(vars(kdtoolbox.losses)[name], 'reads_classes') for name in others
    )
