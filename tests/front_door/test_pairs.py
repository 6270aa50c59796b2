"""A recipe for an own pair of models: made, looked at and trained by the tools."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from door import knock
from shrinking import shrink

from kdtoolbox.configuration import load_config
from kdtoolbox.teachers.models import build_model

DET, SEG = 'mmdet::', 'mmseg::'
DILATED = 'own/deeplabv3_stride16.py'
CLASS_STYLE = 'own/gfl_by_classes.py'
OWN_CLASS = 'own/retinanet_own_class.py'
ADE_SWIN = SEG + (
    'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'
)
PAIRS = [
    (
        'fgd',
        DET + 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        DET + 'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    ),
    (
        'pkd',
        DET + 'retinanet/retinanet_r18_fpn_1x_coco.py',
        DET + 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    ),
    (
        'cwd',
        DET + 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
        DET + 'rtmdet/rtmdet_s_8xb32-300e_coco.py',
    ),
    (
        'mgd',
        DET + 'yolox/yolox_tiny_8xb8-300e_coco.py',
        DET + 'yolox/yolox_s_8xb8-300e_coco.py',
    ),
    (
        'at',
        DET + 'yolox/yolox_tiny_8xb8-300e_coco.py',
        DET + 'rtmdet/rtmdet_s_8xb32-300e_coco.py',
    ),
    (
        'pkd',
        DET + 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        DET + 'dino/dino-4scale_r50_8xb2-12e_coco.py',
    ),
    (
        'kd_detr',
        DET + 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        DET + 'deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py',
    ),
    (
        'cwd',
        SEG + 'segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py',
        SEG + 'segformer/segformer_mit-b2_8xb1-160k_cityscapes-1024x1024.py',
    ),
    ('skd', DILATED, SEG + 'pspnet/pspnet_r50-d8_4xb2-80k_cityscapes-512x1024.py'),
    ('fitnet', SEG + 'upernet/upernet_r50_4xb4-80k_ade20k-512x512.py', ADE_SWIN),
    (
        'mask_queries',
        SEG + 'mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py',
        SEG + 'mask2former/mask2former_swin-t_8xb2-90k_cityscapes-512x1024.py',
    ),
    ('ld', CLASS_STYLE, DET + 'gfl/gfl_r50_fpn_1x_coco.py'),
    (
        'crosskd',
        DET + 'atss/atss_r50_fpn_1x_coco.py',
        DET + 'atss/atss_r101_fpn_1x_coco.py',
    ),
    ('pgd', OWN_CLASS, DET + 'retinanet/retinanet_r50_fpn_1x_coco.py'),
    (
        'response',
        DET + 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        DET + 'faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py',
    ),
    (
        'reviewkd',
        DET + 'retinanet/retinanet_r18_fpn_1x_coco.py',
        DET + 'pvt/retinanet_pvt-t_fpn_1x_coco.py',
    ),
    (
        'defeat',
        DET + 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        DET + 'retinanet/retinanet_r50_fpn_1x_coco.py',
    ),
    (
        'cirkd',
        SEG + 'mobilenet_v2/mobilenet-v2-d8_deeplabv3_4xb2-80k_cityscapes-512x1024.py',
        SEG + 'deeplabv3/deeplabv3_r50-d8_4xb2-80k_cityscapes-512x1024.py',
    ),
    (
        'kd',
        SEG + 'bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py',
        SEG + 'ocrnet/ocrnet_hr18s_4xb2-80k_cityscapes-512x1024.py',
    ),
    (
        'dist',
        SEG + 'stdc/stdc1_4xb12-80k_cityscapes-512x1024.py',
        SEG + 'segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py',
    ),
    (
        'vid',
        SEG + 'hrnet/fcn_hr18s_4xb4-80k_ade20k-512x512.py',
        ADE_SWIN,
    ),
    (
        'mgd',
        SEG + 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
        ADE_SWIN,
    ),
]
pytestmark = [pytest.mark.e2e, pytest.mark.front_door]

OWN = {
    DILATED: """\
_base_ = 'mmseg::deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py'
model = dict(backbone=dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)))
""",
    OWN_CLASS: """\
_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
custom_imports = dict(imports=['own_head'])
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
model = dict(bbox_head=dict(type='OwnHead'))
""",
    'own_head.py': """\
from mmdet.models import RetinaHead
from mmdet.registry import MODELS


@MODELS.register_module(force=True)
class OwnHead(RetinaHead):
    pass
""",
}


@pytest.fixture(scope='module')
def home(folder: Path) -> Path:
    """A working folder with configs of the user's own."""
    for name, text in OWN.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    gfl = load_config(DET + 'gfl/gfl_r50_fpn_1x_coco.py')
    # A config of classes begins with `read_base`; its own base may be written out.
    gfl.dump(folder / 'own/gfl_whole.py')
    (folder / CLASS_STYLE).write_text(
        'from mmengine.config import read_base\n'
        'from mmdet.models import GFL\n\n'
        'with read_base():\n    from .gfl_whole import *\n\n'
        'model.update(type=GFL)\n'
    )
    return folder


def run(home: Path, tool: str, *arguments: str | Path) -> str:
    log = home / 'pair.log'
    log.unlink(missing_ok=True)
    status = knock(tool, *arguments, folder=home, log=log)
    output = log.read_text(errors='replace')
    assert status == 0, f'{tool}: {status}\n{output[-6000:]}'
    return output


def hooks_of(config: str | Path) -> list[dict]:
    """Return the hooks of a config without the scope that inheriting adds."""
    hooks = load_config(config).get('custom_hooks') or []
    return [{k: v for k, v in hook.items() if k != '_scope_'} for hook in hooks]


@pytest.mark.parametrize(
    'pair', PAIRS, ids=lambda pair: f'{pair[0]}_{Path(pair[1].split("::")[-1]).stem}'
)
def test_a_new_recipe_fits_and_trains(
    home: Path, pair: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, student, teacher = pair
    monkeypatch.setenv('PYTHONPATH', str(home))
    # `shrink` reads the recipe here.
    monkeypatch.syspath_prepend(home)
    monkeypatch.chdir(home)
    recipe = home / f'recipes/{method}_{PAIRS.index(pair)}.py'
    new = ['--student', student, '--teacher', teacher, '--method', method]
    run(home, 'new_config.py', *new, '-o', recipe)
    assert recipe.read_text().count('\n') <= 30
    hooks = hooks_of(recipe)
    assert [hook for hook in hooks_of(student) if hook not in hooks] == []
    run(home, 'inspect_config.py', recipe)
    run(home, 'train.py', recipe, '--cfg-options', *shrink(recipe, home))
    work_dir = home / 'work_dirs' / recipe.stem
    [log] = work_dir.glob('[0-9]*/vis_data/[0-9]*.json')
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [step for step in steps if 'loss' in step]
    assert len(steps) == 2
    losses = load_config(recipe).model.losses
    for step in steps:
        assert all(math.isfinite(value) for value in step.values())
        for name in losses:
            terms = [v for key, v in step.items() if key.partition('.')[0] == name]
            assert sum(map(abs, terms)) > 0, f'{name} is 0'
    assert list(work_dir.glob('student_*.pth'))
    shutil.rmtree(work_dir)


def test_train_makes_a_recipe_by_itself_and_resumes_it(home: Path) -> None:
    student, teacher = (
        f'{DET}retinanet/retinanet_{depth}_fpn_1x_coco.py' for depth in ('r18', 'r50')
    )
    pair = ['--student', student, '--teacher', teacher, '--method', 'pkd']
    pair += ['--teacher-checkpoint', 'teacher.pth']
    weights = build_model(teacher).state_dict()
    torch.save(dict(state_dict=weights), home / 'teacher.pth')
    run(home, 'new_config.py', *pair, '-o', 'recipes/pair.py')
    changes = shrink(home / 'recipes/pair.py', home)
    changes = [change for change in changes if 'model.teacher' not in change]
    run(home, 'train.py', *pair, '--cfg-options', *changes)
    work_dir = (
        home / 'work_dirs/pkd_retinanet_r50_fpn_1x_coco_retinanet_r18_fpn_1x_coco'
    )
    [recipe] = work_dir.glob('recipe/*.py')
    assert load_config(recipe).model.losses.loss_pkd.type == 'PKDLoss'
    assert (work_dir / 'student_epoch_1.pth').is_file()
    changes.append('train_cfg.max_epochs=2')
    run(home, 'train.py', *pair, '--resume', '--cfg-options', *changes)
    assert (work_dir / 'student_epoch_2.pth').is_file()
    shutil.rmtree(work_dir)
