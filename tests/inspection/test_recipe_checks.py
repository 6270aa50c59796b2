import re
from typing import Any

import pytest
from mmengine.config import Config

from kdtoolbox.configuration import load_config
from kdtoolbox.inspection.recipe_checks import check_recipe

CWD = dict(type='CWDLoss', student='student.fpn', teacher='teacher.fpn')
GFL = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'
MODEL = dict(
    type='kdtoolbox.Distiller',
    student=GFL,
    teacher=dict(config=GFL, allow_random=True),
    losses=dict(loss_cwd=CWD),
)


def recipe(**changes: Any) -> Config:
    return Config(dict(default_scope='mmdet', **(dict(model=dict(MODEL)) | changes)))


@pytest.mark.parametrize(
    'cfg',
    [
        recipe(),
        recipe(model=dict(MODEL, data_preprocessor=dict(type='DetDataPreprocessor'))),
        load_config(GFL),
    ],
)
def test_a_right_recipe_passes(cfg: Config) -> None:
    assert check_recipe(cfg) is None


SWITCHES = ['PipelineSwitchHook', 'mmdet.YOLOXModeSwitchHook']


@pytest.mark.parametrize('kind', SWITCHES)
def test_hooks_that_change_the_pipeline_of_unlabelled_images_are_refused(
    kind: str,
) -> None:
    hooks = [dict(type='EMAHook'), dict(type=kind)]
    loader = dict(dataset=dict(type='kdtoolbox.ImageFolder'))
    model = dict(MODEL, type='kdtoolbox.Pretrainer')
    check_recipe(recipe(model=model, custom_hooks=hooks))
    check_recipe(recipe(train_dataloader=loader, custom_hooks=hooks[:1]))
    told = rf"custom_hooks\[1\].type: '{kind}' .*custom_hooks = \["
    with pytest.raises(ValueError, match=told):
        check_recipe(recipe(train_dataloader=loader, custom_hooks=hooks))


HOOK = dict(type='LossWeightHook', loss='loss_cwd')


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        (dict(model=dict(MODEL, type='Distiller')), "type='kdtoolbox.Distiller'"),
        (dict(custom_hooks=[HOOK]), r'custom_hooks\[0\].type: .*kdtoolbox.LossWeightH'),
        (dict(default_hooks=dict(a=HOOK)), 'default_hooks.a.type: .*add `kdtoolbox.`'),
        (
            dict(optim_wrapper=dict(type='AutocastOptimWrapper')),
            'optim_wrapper.type: .*kdtoolbox.AutocastOptimWrapper',
        ),
        (
            dict(train_dataloader=dict(sampler=dict(type='SeededSampler'))),
            'train_dataloader.sampler.type: .*kdtoolbox.SeededSampler',
        ),
        (
            dict(model=dict(MODEL, backbone=dict(), neck=None, train_cfg=None)),
            r"\['backbone', 'neck', 'train_cfg'\] are keys of the stud.*_delete_=True",
        ),
    ],
)
def test_errors_contain_the_line_that_mends_them(changes: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_recipe(recipe(**changes))


@pytest.mark.parametrize(
    ('kind', 'sources'),
    [
        ('RoIDistiller', "dict(type='RoIResponses')"),
        ('FCFDDistiller', "dict(type='RoIResponses'), dict(type='BridgedRoIs', bri"),
        ('CrossKDDistiller', "dict(type='CrossHead', stage=..., projection=...)"),
        ('QueryDistiller', "dict(type='ObjectQueries')"),
        ('ClassifierDistiller', "dict(type='ClassifierWeights', classifier=...)"),
        ('PreActivationDistiller', "dict(type='PreActivations')"),
    ],
)
@pytest.mark.parametrize('scope', ['', 'kdtoolbox.'])
def test_a_removed_distiller_is_refused_with_its_sources(
    kind: str, sources: str, scope: str
) -> None:
    told = f"{kind} any more.* type='kdtoolbox.Distiller' and sources=[{sources}"
    with pytest.raises(ValueError, match=re.escape(told).replace(r'\.\*', '.*')):
        check_recipe(recipe(model=dict(MODEL, type=scope + kind)))


@pytest.mark.parametrize(
    ('model', 'told'),
    [
        (dict(MODEL, conectors=dict()), "model: .*'conectors' .did you mean 'connec"),
        (
            dict(MODEL, teacher=dict(cofnig=GFL)),
            "model.teacher: .*'cofnig' .did you mean 'config'",
        ),
        ({k: v for k, v in MODEL.items() if k != 'losses'}, "model: .*needs 'losses'"),
    ],
)
def test_keys_are_checked(model: dict, told: str) -> None:
    with pytest.raises(TypeError, match=told):
        check_recipe(recipe(model=model))
