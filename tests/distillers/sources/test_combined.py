"""Sources in one config: combined, in conflict, misspelt, dumped and read again."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper

from kdtoolbox.configuration import load_config
from kdtoolbox.distillers import Source
from kdtoolbox.inspection.recipe_checks import check_recipe
from kdtoolbox.runs.rehearsal import rehearse
from kdtoolbox.runs.student_config import student_config

Toy = SimpleNamespace
SEG_LAYER = 'decode_head.conv_seg'
FAKD = dict(
    type='FAKDLoss',
    student='student.logits',
    teacher='teacher.logits',
    features='student.features',
    classifier='student.classifier',
    num_classes=4,
    student_channels=8,
    ramp_iterations=1,
)


def before(path: str, margin: bool = True) -> dict:
    """Return an OFD loss on the wires called ``before`` and their recorders."""
    wires = dict(student='student.before', teacher='teacher.before')
    loss = dict(
        wires, type='OFDLoss', **(dict(margin='margin.before') if margin else {})
    )
    return dict(loss=loss, recorder=dict(before=path))


def segmentor(toy: Toy, sources: list[dict]) -> dict:
    """Return the config of OFD and FAKD on one segmentor."""
    ofd = before('decode_head.bottleneck.bn')
    features = dict(source=SEG_LAYER, what='input')
    recorders = dict(
        student=dict(ofd['recorder'], logits=SEG_LAYER, features=features),
        teacher=dict(ofd['recorder'], logits=SEG_LAYER),
    )
    losses = dict(loss_ofd=ofd['loss'], loss_fakd=FAKD)
    return toy.distiller(
        toy.segmentor(), recorders=recorders, losses=losses, sources=sources
    )


def detector(toy: Toy, sources: list[dict]) -> dict:
    """Return the config of OFD and KD on RoIs on one Faster R-CNN."""
    student = toy.faster_rcnn()
    student['model']['neck'] |= dict(
        norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU')
    )
    ofd = before('neck.fpn_convs.0.bn')
    roi = dict(student='student.roi_cls', teacher='teacher.roi_cls')
    return toy.distiller(
        student,
        recorders=dict(student=ofd['recorder'], teacher=ofd['recorder']),
        losses=dict(loss_ofd=ofd['loss'], loss_roi=dict(roi, type='KDLoss')),
        sources=sources,
    )


def build(toy: Toy, config: dict) -> Any:
    torch.manual_seed(0)
    scope = config['student']['default_scope']
    return toy.build(dict(model=config, default_scope=scope)).train()


def assert_trains(model: Any, data: dict, weights: dict[str, list[str]]) -> None:
    """Train one step; check that each loss reaches its weights of the student."""
    batch = model.data_preprocessor(data, training=True)
    # FAKD computes more than KD from its second step on.
    model(**batch, mode='loss')
    losses = model(**batch, mode='loss')
    for loss, names in weights.items():
        assert losses[loss] > 0
        tensors = [model.student.get_parameter(name) for name in names]
        found = torch.autograd.grad(losses[loss], tensors, retain_graph=True)
        assert all(gradient.any() for gradient in found), loss
    before = copy.deepcopy(model.student.state_dict())
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    log = model.train_step(data, OptimWrapper(sgd))
    assert weights.keys() < log.keys()
    after = model.student.state_dict()
    for name in sum(weights.values(), []):
        assert not torch.equal(after[name], before[name])


SEG_SOURCES = [dict(type='PreActivations'), dict(type='ClassifierWeights')]
DET_SOURCES = [dict(type='PreActivations'), dict(type='RoIResponses')]
in_both_orders = pytest.mark.parametrize('step', [1, -1])


@in_both_orders
def test_ofd_and_fakd_on_one_segmentor(toy: Toy, step: int) -> None:
    norm = 'decode_head.bottleneck.bn.weight'
    weights = dict(loss_ofd=[norm], loss_fakd=[norm, f'{SEG_LAYER}.weight'])
    model = build(toy, segmentor(toy, SEG_SOURCES[::step]))
    assert_trains(model, toy.seg_data(), weights)


@in_both_orders
def test_ofd_and_responses_of_rois_on_one_detector(toy: Toy, step: int) -> None:
    norm = 'neck.fpn_convs.0.bn.weight'
    head = 'roi_head.bbox_head.fc_cls.weight'
    weights = dict(loss_ofd=[norm], loss_roi=[norm, head])
    model = build(toy, detector(toy, DET_SOURCES[::step]))
    assert_trains(model, toy.det_data(), weights)


class Towers(Source):
    """A source that records a norm whose ReLU works in place."""

    def record(self, models: Any) -> dict:
        place = dict(extra='decode_head.bottleneck.bn')
        return dict(student=place, teacher=place)


class OtherTowers(Towers):
    """A source that makes records of the same names."""


@in_both_orders
def test_pre_activations_keep_the_records_of_other_sources(toy: Toy, step: int) -> None:
    loss = dict(type='OFDLoss', student='student.extra', teacher='teacher.extra')
    config = toy.distiller(
        toy.segmentor(),
        recorders=dict(student={}, teacher={}),
        losses=dict(loss_ofd=dict(loss, margin='margin.extra')),
        sources=[dict(type=Towers), dict(type='PreActivations')][::step],
    )
    norm = 'decode_head.bottleneck.bn.weight'
    assert_trains(build(toy, config), toy.seg_data(), dict(loss_ofd=[norm]))


@pytest.mark.parametrize(
    ('sources', 'error', 'message'),
    [
        (
            [dict(type='PreActivations'), dict(type='PreActivations')],
            ValueError,
            r'model\.sources\[1\]: PreActivations occurs twice, also as '
            r'model\.sources\[0\]',
        ),
        (
            [dict(type=Towers), dict(type=OtherTowers)],
            ValueError,
            r"sources\[1\]: OtherTowers makes the wire 'student\.extra', and so does "
            r'Towers, model\.sources\[0\]; remove one',
        ),
        (
            [dict(type='BridgedRoIs', bridges={})],
            ValueError,
            r"sources\[0\]: BridgedRoIs reads .*=\[dict\(type='RoIResponses'\), dict",
        ),
        (
            [dict(type='ClassifierWeights', clasifier='x')],
            TypeError,
            r"sources\[0\]: ClassifierWeights takes no 'clasifier' \(did you mean "
            "'classifier'",
        ),
        (
            [dict(type='CrossHead', stage='3')],
            TypeError,
            r'sources\[0\]\.stage: expected a number',
        ),
        (
            [dict(type='RoIResponse')],
            ValueError,
            r"sources\[0\]: kdtoolbox has no 'RoIResponse'; did you mean "
            "'RoIResponses'",
        ),
        (
            [dict(type='KDLoss')],
            ValueError,
            r'sources\[0\]: KDLoss is not a source of wires',
        ),
        (
            dict(type='RoIResponses'),
            ValueError,
            r'^model\.sources: expected a list .*sources=\[dict\(type=.RoIResponses',
        ),
        ('RoIResponses', ValueError, r'^model\.sources: expected a list'),
        (None, ValueError, r'^model\.sources: expected a list .*; for none write \[\]'),
        (
            ['RoIResponses'],
            ValueError,
            r"sources\[0\]: expected a dict .*sources=\[dict\(type='RoIResponses'\)\]",
        ),
        ([dict(stage=3)], ValueError, r'sources\[0\]: expected a dict with `type`'),
        (
            [dict(type='RoIResponses'), dict(type='BridgedRoIs', bridges=3)],
            ValueError,
            r'sources\[1\]\.bridges: expected a dict of names, got 3',
        ),
        (
            [dict(type='CrossHead', projection='ConvConnector')],
            ValueError,
            r"projection\.cls_tower: expected a dict with `type`, got 'ConvConnector'",
        ),
        (
            [
                dict(type='RoIResponses'),
                dict(type='BridgedRoIs', bridges=dict(back=dict(type='ConvConnectr'))),
            ],
            ValueError,
            r"sources\[1\]\.bridges\.back: kdtoolbox has no 'ConvConnectr'",
        ),
    ],
)
def test_a_wrong_entry_is_refused_with_its_place(
    toy: Toy, sources: Any, error: type[Exception], message: str
) -> None:
    config = toy.distiller(toy.segmentor(), sources=sources)
    with pytest.raises(error, match=message):
        build(toy, config)


def test_a_dumped_config_builds_the_same_distiller(toy: Toy, tmp_path: Path) -> None:
    config = segmentor(toy, SEG_SOURCES)
    cfg = Config(dict(default_scope='mmseg', model=config))
    check_recipe(cfg)
    cfg.dump(tmp_path / 'dumped.py')
    read = load_config(tmp_path / 'dumped.py')
    check_recipe(read)
    models = [build(toy, copy.deepcopy(some.model)) for some in (cfg, read)]
    names = [type(source).__name__ for source in models[1].wiring.sources]
    assert names == ['PreActivations', 'ClassifierWeights']
    states = [model.state_dict() for model in models]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    rehearse(models[1])
    assert 'sources' not in student_config(read)['model']


def test_inherited_sources_are_replaced_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / 'base.py').write_text(
        "model = dict(type='kdtoolbox.Distiller', sources=[dict(type='CrossHead')])\n"
    )
    (tmp_path / 'child.py').write_text(
        "_base_ = 'base.py'\nmodel = dict(sources=[dict(type='RoIResponses')])\n"
    )
    cfg = load_config(tmp_path / 'child.py')
    assert cfg.model.sources == [dict(type='RoIResponses')]
