"""Broken configs, each examined once: all faults, each with the line that mends it."""

import re
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from torch import nn

from kdtoolbox.inspection.faults import examine, find_faults
from kdtoolbox.inspection.reports import Fault, Faults
from kdtoolbox.losses import PKDLoss

Toy = SimpleNamespace
ENDS = dict(student='student.fpn', teacher='teacher.fpn')
CWD = dict(ENDS, type='CWDLoss')
FGD = dict(ENDS, type='FGDLoss', channels=8, num_levels=3)


@pytest.fixture(autouse=True)
def _small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('kdtoolbox.inspection.batches._SIDE', 64)


def records(student: Any, teacher: Any = None) -> dict:
    return dict(student=dict(fpn=student), teacher=dict(fpn=teacher or student))


def changed(config: dict, **changes: Any) -> dict:
    """Return a config with other arguments of its parts: ``neck=dict(num_outs=4)``."""
    config = deepcopy(config)
    for part, arguments in changes.items():
        config['model'][part] |= arguments
    return config


def detection(toy: Toy, teacher: dict | None = None, /, **changes: Any) -> Config:
    model = toy.distiller(changes.pop('model', toy.gfl()), teacher, **changes)
    return Config(dict(default_scope='mmdet', model=model))


def segmentation(toy: Toy, teacher: dict | None = None, /, **changes: Any) -> Config:
    model = changes.pop('model', toy.segmentor())
    model = toy.distiller(model, teacher, **changes)
    return Config(dict(default_scope='mmseg', model=model))


def with_tokens(toy: Toy) -> dict:
    """Return a segmentor whose blocks return tokens (N, L, C)."""
    config = toy.segmentor()
    heads = [1, 2, 4, 8]
    config['model']['backbone'] = dict(
        type='MixVisionTransformer',
        embed_dims=8,
        num_heads=heads,
        num_layers=[1] * 4,
    )
    return config


def wide(toy: Toy) -> dict:
    return toy.gfl(base=16, out=16)


SEVEN = dict(num_classes=7)
LAYR = dict(fpn='neck', c='backbone.layr3')
ROI = dict(student='student.roi_cls', teacher='teacher.roi_cls', labels='roi.labels')

CASES: dict[str, Any] = {
    'typo in a layer': lambda toy: (
        detection(toy, recorders=records('neck.fpn_conv', 'neck')),
        [
            (
                r"recorders\.student\.fpn: GFL has no module 'neck.fpn_conv'",
                'did you mean neck.fpn_convs? '
                "recorders=dict(student=dict(fpn='neck.fpn_convs.*'))",
            )
        ],
    ),
    'a ModuleList is recorded': lambda toy: (
        detection(toy, recorders=records('neck', 'neck.fpn_convs')),
        [
            (
                r'recorders\.teacher\.fpn: .* is a ModuleList',
                "recorders=dict(teacher=dict(fpn='neck.fpn_convs.*'))",
            )
        ],
    ),
    'a module that is never called': lambda toy: (
        segmentation(toy, recorders=records('decode_head', 'decode_head.conv_seg')),
        [
            (
                r"recorders\.student\.fpn: 'decode_head' was not called",
                "recorders=dict(student=dict(fpn='decode_head.conv_seg'))",
            )
        ],
    ),
    'channels differ': lambda toy: (
        detection(toy, wide(toy)),
        [
            (
                r'losses\.loss_cwd, level 0: student \(2, 8, ',
                "connectors=dict(aligned=dict(type='ConvConnector', "
                "input='student.fpn', in_channels=8, out_channels=16))\n"
                "losses=dict(loss_cwd=dict(student='aligned'))",
            )
        ],
    ),
    'channels differ level by level': lambda toy: (
        detection(
            toy,
            recorders=dict(
                student=dict(fpn='backbone.layer[1-2]'),
                teacher=dict(fpn='neck.fpn_convs.[0-1]'),
            ),
        ),
        [
            (
                r'losses\.loss_cwd, level 0',
                'in_channels=[8, 16], out_channels=8), resized=dict('
                "type='ResizeConnector', input='aligned', like='teacher.fpn'))",
            )
        ],
    ),
    'sizes differ': lambda toy: (
        detection(
            toy, wide(toy), recorders=records('backbone.layer2', 'backbone.layer1')
        ),
        [
            (
                r'losses\.loss_cwd, level 0',
                "connectors=dict(resized=dict(type='ResizeConnector', "
                "input='student.fpn', like='teacher.fpn'))\n"
                "losses=dict(loss_cwd=dict(student='resized'))",
            )
        ],
    ),
    'levels differ': lambda toy: (
        detection(
            toy,
            changed(toy.gfl(), neck=dict(start_level=0, num_outs=4)),
        ),
        [
            (
                'student.fpn has 3 levels, teacher.fpn has 4 levels',
                "recorders=dict(teacher=dict(fpn='neck.fpn_convs.[1-3]'))",
            )
        ],
    ),
    'levels of one size': lambda toy: (
        detection(toy, recorders=records('backbone.layer1.*', 'backbone.layer1')),
        [('has 2 levels, teacher.fpn has 1', 'record the same levels on both sides')],
    ),
    'tokens against a map': lambda toy: (
        segmentation(
            toy,
            toy.segmentor(),
            model=with_tokens(toy),
            recorders=records('backbone.layers.0.1.0', 'backbone.layer1'),
        ),
        [
            (
                r'losses\.loss_cwd, level 0',
                "connectors=dict(maps=dict(type='TokenConnector', "
                "input='student.fpn', like='teacher.fpn'))\n"
                "losses=dict(loss_cwd=dict(student='maps'))",
            )
        ],
    ),
    'typo in a wire': lambda toy: (
        detection(toy, losses=dict(loss_cwd=dict(CWD, student='student.fnp'))),
        [(r"loss_cwd\.student: no wire .*did you mean 'student.fpn'\?", '')],
    ),
    'a name without loss': lambda toy: (
        detection(toy, losses=dict(cwd=CWD)),
        [(r"losses\.cwd: .*call it 'loss_cwd'", '')],
    ),
    'unknown type of loss': lambda toy: (
        detection(toy, losses=dict(loss_cwd=dict(CWD, type='CWDLos'))),
        [(r"losses\.loss_cwd: .*'CWDLos'; did you mean 'CWDLoss'\?", '')],
    ),
    'unknown type of mmdet': lambda toy: (
        detection(toy, toy.gfl(), model=changed(toy.gfl(), neck=dict(type='FPNN'))),
        [('model.student: .*FPNN', "did you mean type='FPN'?")],
    ),
    'text for a number': lambda toy: (
        detection(toy, losses=dict(loss_cwd=dict(CWD, tau='4'))),
        [(r'loss_cwd\.tau: .*write tau=4 without quotes', '')],
    ),
    'a word for a number': lambda toy: (
        detection(toy, losses=dict(loss_cwd=dict(CWD, tau='four'))),
        [(r"loss_cwd\.tau: expected a number, got the text 'four'$", '')],
    ),
    'missing _delete_': lambda toy: (
        Config(
            dict(
                default_scope='mmdet',
                model=toy.gfl()['model'] | toy.distiller(toy.gfl()),
            )
        ),
        [(r"model: \['backbone', .*Add `_delete_=True,`", '')],
    ),
    'other classes on logits': lambda toy: (
        segmentation(
            toy,
            changed(toy.segmentor(), decode_head=SEVEN, auxiliary_head=SEVEN),
            recorders=records('decode_head.conv_seg'),
        ),
        [(r'losses\.loss_cwd, level 0: .*\(2, 4, ', 'take a teacher of the 4 cl')],
    ),
    'FGD on a segmentor': lambda toy: (
        segmentation(toy, losses=dict(loss_fgd=dict(FGD, num_levels=4))),
        [('loss_fgd, level 0: .* reads boxes', "type='CWDLoss', student='student")],
    ),
    'a frozen layer': lambda toy: (
        detection(
            toy,
            model=changed(toy.gfl(), backbone=dict(frozen_stages=1)),
            recorders=records('backbone.layer1'),
        ),
        [
            (
                r'recorders\.student\.fpn: .*carries no gradient',
                "recorders=dict(student=dict(fpn='backbone.layer2'))",
            )
        ],
    ),
    'overwritten in place': lambda toy: (
        detection(toy, recorders=records('backbone.bn1', 'backbone.relu')),
        [('student.fpn: .*overwritten', "student=dict(fpn='backbone.relu'))")],
    ),
    'arguments of a loss': lambda toy: (
        detection(toy, losses=dict(loss_fgd=dict(FGD, channels=4, num_levels=2))),
        [
            (
                'loss_fgd, level 0: .*channels=4 and got maps of 8',
                'losses=dict(loss_fgd=dict(channels=8, num_levels=3))',
            )
        ],
    ),
    'arguments of a connector': lambda toy: (
        detection(
            toy,
            connectors=dict(
                a=dict(
                    type='ConvConnector',
                    input='student.fpn',
                    in_channels=9,
                    out_channels=8,
                )
            ),
            losses=dict(loss_cwd=dict(CWD, student='a')),
        ),
        [('connectors.a: .*has .8', 'connectors=dict(a=dict(in_channels=8))')],
    ),
    'missing scope': lambda toy: (
        detection(toy, type='Distiller'),
        [("model.type: .*type='kdtoolbox.Distiller'", '')],
    ),
    'a source on another kind of model': lambda toy: (
        detection(
            toy,
            sources=[dict(type='RoIResponses')],
            losses=dict(loss_cwd=CWD, loss_dkd=dict(ROI, type='DKDLoss')),
        ),
        [
            (
                'model.student: expected a single box head .*got GFL',
                'model.sources[0] (RoIResponses) needs this; features need neither '
                'it nor the losses on its wires: sources=[], '
                "recorders=dict(student=dict(fpn='neck')",
            )
        ],
    ),
    'a source that reads targets': lambda toy: (
        segmentation(
            toy,
            sources=[dict(type='CrossHead', stage=1)],
            losses=dict(
                loss_a=dict(
                    type='CrossKDClsLoss',
                    student='cross.cls',
                    teacher='teacher.cls',
                )
            ),
        ),
        [('model.student.bbox_head: NoneType has no towers', "fpn='backbone'")],
    ),
    'a mistyped key of the model': lambda toy: (
        detection(toy, wide(toy), conectors=dict()),
        [
            ("model: .*'conectors' .did you mean 'connectors'", ''),
            ('losses.loss_cwd, level 0', 'ConvConnector'),
        ],
    ),
    'a teacher that is not trained': lambda toy: (
        detection(toy, teacher=dict(config=toy.gfl())),
        [('model.teacher.checkpoint is None', '')],
    ),
    'a name of the student': lambda toy: (
        detection(toy, losses=dict(loss_cls=CWD)),
        [(r"the student already has losses named .'loss_cls'", '')],
    ),
    'a teacher of other images': lambda toy: (
        detection(
            toy,
            changed(
                toy.gfl(),
                backbone=dict(in_channels=1),
                data_preprocessor=dict(mean=[1.0], std=[1.0], bgr_to_rgb=False),
            ),
        ),
        [('model.teacher: it reads images of 1 channels and the student 3', '')],
    ),
    'a mistyped type of the model': lambda toy: (
        detection(toy, type='kdtoolbox.Distiler', losses=dict(cwd=CWD)),
        [("did you mean 'kdtoolbox.Distiller'", ''), ("call it 'loss_cwd'", '')],
    ),
    'parts of wrong kinds': lambda toy: (
        detection(
            toy,
            recorders=dict(student=dict(fpn=['neck']), teacher='neck'),
            losses=dict(loss_a=dict(CWD, student=1), loss_b='CWDLoss'),
        ),
        [
            (r'losses\.loss_a\.student: expected the name of a wire', ''),
            (r'losses\.loss_b: expected a dict', ''),
            (r'recorders\.teacher: expected paths by name', ''),
            (r'recorders\.student\.fpn: expected a module path', ''),
        ],
    ),
    'a teacher that is a path': lambda toy: (
        Config(
            dict(
                default_scope='mmdet',
                model=toy.distiller(toy.gfl()) | dict(teacher='a'),
            )
        ),
        [(r"model\.teacher: .*write teacher=dict\(config='a', checkpoint=...", '')],
    ),
    'teachers in a list': lambda toy: (
        Config(
            dict(
                default_scope='mmdet',
                model=toy.distiller(toy.gfl()) | dict(teacher=None, teachers=['a']),
            )
        ),
        [(r'model\.teachers: expected dict\(name=dict', '')],
    ),
    'a peer with the name of a method': lambda toy: (
        detection(
            toy,
            peers=dict(items=toy.gfl()),
            recorders=records('neck') | dict(items={}),
            losses=dict(loss_cwd=CWD),
        ),
        [(r'model\.peers\.items: every module of torch', '')],
    ),
    'an initial teacher that is not there': lambda toy: (
        detection(toy, init_student='a', losses=dict(loss_cwd=CWD)),
        [("init_student: .*got 'a'; write init_student='teacher'", '')],
    ),
    'a circle': lambda toy: (
        detection(
            toy,
            connectors={
                name: dict(type='NormConnector', input=other)
                for name, other in (('a', 'b'), ('b', 'a'))
            },
            losses=dict(loss_cwd=dict(CWD, student='a')),
        ),
        [('model.connectors: .* go round in a circle', '')],
    ),
    'two at once in one loss': lambda toy: (
        detection(toy, losses=dict(loss_cwd=dict(CWD, tau='4', student='student.fnp'))),
        [(r'loss_cwd\.tau', ''), (r'loss_cwd\.student: no wire', '')],
    ),
    'a name and a shape of one loss': lambda toy: (
        detection(toy, wide(toy), losses=dict(cwd=CWD)),
        [(r"call it 'loss_cwd'", ''), (r'losses\.cwd, level 0', 'ConvConnector')],
    ),
    'two behind one another': lambda toy: (
        segmentation(toy, losses=dict(loss_fgd=dict(FGD, channels=64))),
        [
            ('loss_fgd, level 0: .*channels=64', 'dict(channels=8, num_levels=4)'),
            ('loss_fgd, level 0: .* reads boxes', "type='CWDLoss'"),
        ],
    ),
    'three at once from three stages': lambda toy: (
        detection(
            toy,
            wide(toy),
            type='Distiller',
            recorders=dict(student=LAYR, teacher=dict(fpn='neck')),
            losses=dict(loss_cwd=CWD),
        ),
        [
            ("type='kdtoolbox.Distiller'", ''),
            (r'recorders\.student\.c', 'did you mean backbone.layer3? recorders'),
            (r'losses\.loss_cwd, level 0', 'ConvConnector'),
        ],
    ),
    'behind a typo': lambda toy: (
        detection(
            toy,
            wide(toy),
            recorders=records('nek', 'neck'),
            losses=dict(loss_a=dict(CWD, type='PKDLos')),
        ),
        [
            (r"losses\.loss_a: .*did you mean 'PKDLoss'", ''),
            (r'recorders\.student\.fpn', 'did you mean neck?'),
            (r'losses\.loss_a, level 0', "loss_a=dict(student='aligned'))"),
        ],
    ),
}
"""For each name a broken config, and a part of each problem and of its cure."""


@pytest.mark.parametrize('name', CASES)
def test_all_faults_are_found_at_once(toy: Toy, name: str) -> None:
    cfg, expected = CASES[name](toy)
    before, drawn = deepcopy(cfg.to_dict()), torch.get_rng_state()
    found = find_faults(cfg)
    told = '\n'.join(map(str, found))
    assert len(found) == len(expected), told
    for fault, (problem, cure) in zip(found, expected, strict=True):
        assert re.search(problem, fault.problem), told
        assert cure in fault.cure, told
        assert bool(cure) == bool(fault.cure), told
    assert cfg.to_dict() == before
    assert torch.equal(torch.get_rng_state(), drawn)


def pasted(cfg: Config, faults: list[Fault]) -> Config:
    """Return a config with the lines of all cures below its model."""
    cfg = deepcopy(cfg)
    for line in '\n'.join(fault.cure for fault in faults).splitlines():
        [text] = re.findall(r'(?:recorders|connectors|losses)=dict.*', line)
        change = Config.fromstring(f'model = dict(\n    {text}\n)', '.py')
        cfg.merge_from_dict(change.to_dict())
    return cfg


MENDED = [
    'typo in a layer',
    'a ModuleList is recorded',
    'a module that is never called',
    'channels differ',
    'channels differ level by level',
    'sizes differ',
    'levels differ',
    'tokens against a map',
    'FGD on a segmentor',
    'a frozen layer',
    'overwritten in place',
    'arguments of a loss',
    'arguments of a connector',
    'two behind one another',
]


@pytest.mark.e2e
@pytest.mark.parametrize('name', MENDED)
def test_the_lines_to_paste_mend_the_config(toy: Toy, name: str) -> None:
    cfg, _ = CASES[name](toy)
    cfg = pasted(cfg, find_faults(cfg))
    if name == 'a frozen layer':
        # The teacher's layer is another one now.
        cfg = pasted(cfg, find_faults(cfg))
    assert not [str(fault) for fault in find_faults(cfg)]


@pytest.mark.parametrize('task', ['gfl', 'faster_rcnn', 'segmentor'])
def test_a_right_config_has_no_fault(toy: Toy, task: str) -> None:
    model = toy.distiller(getattr(toy, task)())
    scope = model['student']['default_scope']
    found = examine(Config(dict(default_scope=scope, model=model)))
    assert not [*found.faults]
    assert found.trial.compared == ['loss_cwd']
    assert not found.trial.missed
    assert {*found.outlines} == {'student', 'teacher'}


def test_a_plain_config_gives_one_model(toy: Toy) -> None:
    found = examine(Config(toy.gfl()))
    assert not [*found.faults]
    assert {*found.outlines} == {'model'}
    wrong = changed(toy.gfl(), neck=dict(type='FPNN'))
    [fault] = find_faults(Config(wrong))
    assert fault.problem.startswith('model: KeyError: FPNN')
    assert fault.cure == "did you mean type='FPN'?"


def test_a_token_trainer_has_a_teacher_alone(toy: Toy) -> None:
    teacher = dict(config=toy.gfl(), checkpoint='not_read.pth')
    sizes = dict(channels=8, num_levels=3, num_tokens=2)
    model = dict(sizes, type='kdtoolbox.TokenTrainer', teacher=teacher)
    found = examine(Config(dict(default_scope='mmdet', model=model)))
    assert not [*found.faults]
    assert {*found.models} == {'teacher'}
    wrong = Config(dict(default_scope='mmdet', model=dict(model, source='nek')))
    [fault] = find_faults(wrong)
    assert fault.problem.startswith("model.source: GFL has no module 'nek'")


def test_a_student_that_fails_on_made_up_images_is_no_fault(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise IndexError('no prompts')

    monkeypatch.setattr('mmdet.models.GFLHead.loss', fail)
    found = examine(detection(toy))
    assert not [*found.faults]
    assert 'the student failed: IndexError: no prompts' in found.trial.missed


def test_a_loss_that_needs_larger_maps_gets_them(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('kdtoolbox.inspection.batches._SIDE', 32)
    sizes = []

    def pkd(self: nn.Module, student: torch.Tensor, teacher: Any) -> torch.Tensor:
        sizes.append(student.shape[-1])
        if student.shape[-1] < 8:
            raise ValueError('too small')
        return student.sum()

    monkeypatch.setattr(PKDLoss, 'forward', pkd)
    recorders = records('backbone.layer2')
    losses = dict(loss_a=dict(ENDS, type='PKDLoss'))
    found = examine(segmentation(toy, recorders=recorders, losses=losses))
    assert sizes == [4, 8]
    assert not [*found.faults]


def test_a_fault_is_listed_once_and_keeps_its_cure() -> None:
    faults = Faults()
    faults(ValueError('model.a: wrong'), 'write b')
    faults(ValueError('model.a: wrong'))
    faults(KeyError('c is not in the registry'), where='model.d')
    [first, second] = faults
    assert first == Fault('model.a: wrong', 'write b')
    assert str(first) == 'model.a: wrong\nwrite b'
    assert second.problem == 'model.d: KeyError: c is not in the registry'
    assert faults.numbers('model.d') == [2]


def test_sources_with_faults_hide_no_others(toy: Toy) -> None:
    sources = [dict(type='RoIResponse'), dict(type='PreActivations', a=1), 'x']
    found = [str(fault) for fault in find_faults(detection(toy, sources=sources))]
    assert [text.partition(':')[0] for text in found] == [
        'model.sources[0]',
        'model.sources[1]',
        'model.sources[2]',
    ]
