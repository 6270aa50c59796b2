import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.registry import DefaultScope

from kdtoolbox.configuration import load_config
from kdtoolbox.runs.student_config import student_config, write_student_config

ROOT = Path(__file__).resolve().parents[2]
Toy = SimpleNamespace
SEEDED = dict(type='kdtoolbox.SeededSampler', sampler=dict(type='InfiniteSampler'))
OURS = dict(type='kdtoolbox.LossWeightHook', factor=0.5)


def distillation(student: Any, **more: Any) -> Config:
    model = dict(type='kdtoolbox.Distiller', student=student, teacher=dict(), losses={})
    return Config(dict(model=model, **more))


def test_keys_of_the_run_and_types_of_kdtoolbox_are_removed(toy: Toy) -> None:
    student = toy.gfl()
    cfg = distillation(
        student,
        default_scope='mmdet',
        train_dataloader=dict(sampler=SEEDED, batch_size=2),
        optim_wrapper=dict(
            type='kdtoolbox.AutocastOptimWrapper',
            optimizer=dict(type='SGD', lr=0.1),
            constructor='kdtoolbox.DistillerOptimWrapperConstructor',
            student_constructor='LearningRateDecayOptimizerConstructor',
        ),
        default_hooks=dict(timer=dict(type='IterTimerHook'), weight=OURS),
        custom_hooks=[OURS, dict(type='EMAHook')],
        custom_imports=dict(imports=['mine', 'kdtoolbox.losses'], allow_failed=True),
        load_from='a.pth',
        resume=True,
        launcher='none',
        work_dir='/somewhere',
        export_student=True,
    )
    before = cfg.to_dict()
    assert student_config(cfg) == dict(
        model=student['model'],
        default_scope='mmdet',
        train_dataloader=dict(sampler=dict(type='InfiniteSampler'), batch_size=2),
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='SGD', lr=0.1),
            constructor='LearningRateDecayOptimizerConstructor',
        ),
        default_hooks=dict(timer=dict(type='IterTimerHook')),
        custom_hooks=[dict(type='EMAHook')],
        custom_imports=dict(imports=['mine'], allow_failed=True),
    )
    assert cfg.to_dict() == before


def test_the_default_constructor_needs_no_name() -> None:
    ours = 'kdtoolbox.DistillerOptimWrapperConstructor'
    default = 'DefaultOptimWrapperConstructor'
    wrapper = dict(constructor=ours, student_constructor=default, type='OptimWrapper')
    config = student_config(distillation(dict(type='GFL'), optim_wrapper=wrapper))
    assert config['optim_wrapper'] == dict(type='OptimWrapper')


@pytest.mark.parametrize('form', ['path', 'package', 'inherited', 'model'])
def test_each_way_to_name_a_student(form: str, toy: Toy, tmp_path: Path) -> None:
    gfl = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'
    if form == 'path':
        Config(toy.gfl()).dump(tmp_path / 'student.py')
        student, expected = str(tmp_path / 'student.py'), toy.gfl()
    elif form == 'package':
        student, expected = gfl, load_config(gfl).to_dict()
    elif form == 'inherited':
        student = dict(_base_=gfl, model=dict(bbox_head=dict(num_classes=3)))
        expected = load_config(gfl).to_dict()
        expected['model']['bbox_head']['num_classes'] = 3
    else:
        student, expected = toy.gfl()['model'], toy.gfl() | dict(default_scope=None)
    config = student_config(distillation(student))
    assert config['model'] == expected['model']
    assert config.get('default_scope') == expected['default_scope']


@pytest.mark.parametrize('place', ['student', 'run'])
def test_a_preprocessor_beside_the_model_moves_into_it(place: str, toy: Toy) -> None:
    student = toy.gfl()
    preprocessor = student['model'].pop('data_preprocessor')
    if place == 'student':
        cfg = distillation(dict(student, data_preprocessor=preprocessor))
    else:
        cfg = distillation(student, data_preprocessor=preprocessor)
    assert student_config(cfg)['model'] == toy.gfl()['model']


def test_a_model_of_ours_without_a_student_is_refused() -> None:
    cfg = Config(dict(model=dict(type='kdtoolbox.TokenTrainer', teacher={})))
    with pytest.raises(ValueError, match=r'expected a `student`.*TokenTrainer'):
        student_config(cfg)


def test_parts_of_a_student_have_no_config(toy: Toy) -> None:
    cfg = Config(dict(model=toy.distiller(toy.gfl(), type='kdtoolbox.Pretrainer')))
    with pytest.raises(ValueError, match=r'Pretrainer trains parts .*init_cfg=dict'):
        student_config(cfg)


def test_a_plain_config_loses_only_keys_of_the_run(toy: Toy) -> None:
    cfg = Config(dict(toy.segmentor(), train_dataloader=dict(sampler=SEEDED)))
    sampler = dict(type='InfiniteSampler')
    expected = dict(toy.segmentor(), train_dataloader=dict(sampler=sampler))
    assert student_config(cfg) == expected


def test_the_test_pipeline_is_set_at_the_top_level(
    toy: Toy,
) -> None:
    pipeline = [dict(type='LoadImageFromFile')]
    loader = dict(dataset=dict(pipeline=pipeline))
    found = student_config(distillation(toy.segmentor(), test_dataloader=loader))
    assert found['test_pipeline'] == pipeline
    own = [dict(type='PackSegInputs')]
    cfg = distillation(toy.segmentor(), test_dataloader=loader, test_pipeline=own)
    assert student_config(cfg)['test_pipeline'] == own


def test_the_written_config_reads_back_the_same(tmp_path: Path) -> None:
    odd = dict(
        inf=[-math.inf, math.inf],
        path=tmp_path,
        values=np.arange(2),
        kind=CocoDataset,
        text='a "quoted"\n' + 'long ' * 50,
        nested=(1, dict(a={2: (3,)})),
        none=None,
    )
    path = tmp_path / 'student.py'
    write_student_config(distillation(dict(type='GFL'), odd=odd, f=[math.nan]), path)
    read = Config.fromfile(path).to_dict()
    assert math.isnan(read.pop('f')[0])
    kind = 'mmdet.datasets.coco.CocoDataset'
    expected = odd | dict(path=str(tmp_path), values=[0, 1], kind=kind)
    assert read == dict(model=dict(type='GFL'), odd=expected)


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_the_student_config_of_a_recipe_contains_no_kdtoolbox(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    cfg = load_config(f'configs/digits/{task}_distilled.py')
    write_student_config(cfg, tmp_path / 'student.py')
    lines = (tmp_path / 'student.py').read_text().splitlines()
    assert not [
        line for line in lines[1:] if 'kdtoolbox' in line or line[:6] == '_base_'
    ]
    read, alone = (
        Config.fromfile(path).to_dict()
        for path in (tmp_path / 'student.py', f'configs/digits/{task}_student.py')
    )
    assert read['model'] == alone['model']
    assert read['train_cfg'] == alone['train_cfg']


def test_digit_scenes_become_a_plain_data_set(tmp_path: Path) -> None:
    from mmseg.registry import DATASETS

    from kdtoolbox.datasets import make_digit_scenes
    from kdtoolbox.registry import DATASETS as OURS_TOO

    root = tmp_path / 'digits'
    make_digit_scenes(root, train=1, val=2, workers=1)
    prefix = dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val')
    dataset = dict(type='kdtoolbox.DigitScenesDataset', data_root=str(root))
    dataset |= dict(data_prefix=prefix, pipeline=[])
    cfg = distillation(dict(type='GFL'), test_dataloader=dict(dataset=dataset))
    with DefaultScope.overwrite_default_scope('mmseg'):
        free = DATASETS.build(student_config(cfg)['test_dataloader']['dataset'])
        ours = OURS_TOO.build(dataset)
    assert type(free).__name__ == 'BaseSegDataset'
    assert free.metainfo == ours.metainfo
    keys = ('img_path', 'seg_map_path')
    assert [[item[k] for k in keys] for item in free] == [
        [item[k] for k in keys] for item in ours
    ]
    assert len(free) == 2
