from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.config import Config

from kdtoolbox.inspection.faults import Examination, examine
from kdtoolbox.inspection.tables import differences, module_rows, wire_rows

Toy = SimpleNamespace


def distilled(toy: Toy, teacher: dict, **changes: Any) -> Examination:
    model = toy.distiller(toy.gfl(), teacher, **changes)
    return examine(Config(dict(default_scope='mmdet', model=model)))


@pytest.fixture(scope='module')
def found(toy: Toy) -> Examination:
    """A distillation whose teacher has other classes, levels and channels."""
    other = toy.gfl(base=16, out=16)
    model = other['model']
    model['neck'].update(num_outs=4)
    model['bbox_head']['anchor_generator']['strides'].append(64)
    model['bbox_head'].update(num_classes=5)
    model['data_preprocessor'].update(mean=[0, 0, 0], bgr_to_rgb=False)
    return distilled(toy, other)


def test_modules_are_folded_to_a_depth(found: Examination) -> None:
    rows = module_rows(found.outlines['student'], depth=1)
    paths = [row.path for row in rows]
    assert paths == ['data_preprocessor', 'backbone', 'neck', 'bbox_head']
    neck = rows[2]
    assert (neck.kind, neck.calls, neck.strides) == ('FPN', 1, [8, 16, 32])
    assert [shape[1] for shape in neck.outputs] == [8, 8, 8]


def test_a_pattern_finds_modules_at_any_depth(found: Examination) -> None:
    outline = found.outlines['student']
    for pattern in ('fpn_convs.1.conv', 'neck.fpn*s.1.c[o]nv'):
        [row] = module_rows(outline, 1, pattern)
        assert row.path == 'neck.fpn_convs.1.conv'
    assert not module_rows(outline, 1, 'nothing')


def test_differences_of_two_models(toy: Toy, found: Examination) -> None:
    rows = {key: (student, teacher) for key, student, teacher in differences(found)}
    assert rows == {
        'classes': ('bbox_head: 3', 'bbox_head: 5'),
        'mean': ('123.675, 116.28, 103.53', '0, 0, 0'),
        'bgr_to_rgb': ('True', 'False'),
        'strides of neck': ('8, 16, 32', '8, 16, 32, 64'),
        'channels of neck': ('8, 8, 8', '16, 16, 16, 16'),
    }
    assert not differences(distilled(toy, toy.gfl()))


def test_wires_have_the_numbers_of_their_faults(found: Examination) -> None:
    rows = [(row.name, row.level, row.verdict) for row in wire_rows(found)]
    assert rows == [
        *(('recorders.*.fpn', level, 'fits') for level in range(4)),
        *(('losses.loss_cwd', level, 'fault 1') for level in range(4)),
    ]
    last = wire_rows(found)[-1]
    assert last.student is None
    assert last.teacher == (2, 16, 4, 4)


def test_what_reads_a_missing_wire_is_not_tried(toy: Toy) -> None:
    ends = dict(student='made', teacher='teacher.fpn')
    conv = dict(type='ConvConnector', input='student.fpn', out_channels=8)
    found = distilled(
        toy,
        toy.gfl(),
        connectors=dict(made=dict(conv, in_channels=9)),
        losses=dict(loss_cwd=dict(ends, type='CWDLoss')),
    )
    verdicts = {row.name: row.verdict for row in wire_rows(found)}
    assert verdicts == {
        'recorders.*.fpn': 'fits',
        'connectors.made': 'fault 1',
        'losses.loss_cwd': 'not tried',
    }
