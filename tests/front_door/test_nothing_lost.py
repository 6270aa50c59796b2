"""A distillation's run has what the run of its student alone has."""

import runpy
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from door import ROOT
from mmengine.registry import DefaultScope
from shrinking import shrink

BASES = {
    'gfl': 'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    'rtmdet': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'yolox': 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'dino': 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    'pspnet': 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py',
    'segformer': 'mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py',
}
DISTILLED = """
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(config=BASE, allow_random=True),
    recorders=dict(student=dict(a=LAYER), teacher=dict(a=LAYER)),
    losses=dict(loss_a=dict(type='PKDLoss', student='student.a', teacher='teacher.a')),
)
"""
OURS = {'ExportStudentHook'}
pytestmark = [pytest.mark.e2e, pytest.mark.front_door]


def names(base: str) -> str:
    layer = 'neck' if base.startswith('mmdet') else 'decode_head.conv_seg'
    return f'_base_ = {base!r}\nBASE = {base!r}\nLAYER = {layer!r}\n'


def runner_of(
    config: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str
) -> Any:
    """Return the runner that `tools/train.py` is about to start."""
    monkeypatch.chdir(folder)
    changes = [*shrink(config, folder), *options]
    changes.append(f'experiment_name={uuid.uuid4().hex}')
    work_dir = folder / 'work_dirs' / uuid.uuid4().hex
    command = ['train.py', str(config), '--work-dir', str(work_dir)]
    monkeypatch.setattr(sys, 'argv', [*command, '--cfg-options', *changes])
    tool = runpy.run_path(str(ROOT / 'tools/train.py'))
    return tool['prepare'](tool['parse_args']())


def holdings(runner: Any) -> dict[str, Any]:
    """Return what a runner holds, in comparable form."""
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    schedulers = runner.build_param_scheduler(runner.param_schedulers)
    groups = runner.optim_wrapper.optimizer.param_groups
    return dict(
        hooks=[(type(hook).__name__, hook.priority) for hook in runner.hooks],
        schedulers=[type(scheduler).__name__ for scheduler in schedulers],
        optimizer=type(runner.optim_wrapper.optimizer).__name__,
        wrapper=type(runner.optim_wrapper).__name__,
        rates=sorted({(group['lr'], group['weight_decay']) for group in groups}),
        loops=[type(loop).__name__ for loop in (runner.train_loop, runner.val_loop)],
        length=(runner.max_epochs, runner.max_iters),
        batch=runner.train_dataloader.batch_size,
        metrics=[type(metric).__name__ for metric in runner.val_evaluator.metrics],
    )


@pytest.mark.parametrize('name', BASES)
def test_the_run_of_a_distillation_has_the_hooks_and_schedules_of_the_students_run(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []
    scopes = dict(DefaultScope._instance_dict)
    for kind, model in (('alone', ''), ('distilled', DISTILLED)):
        config = folder / f'{name}_{kind}.py'
        config.write_text(names(BASES[name]) + model)
        held.append(holdings(runner_of(config, folder, monkeypatch)))
        DefaultScope._instance_dict.clear()
        DefaultScope._instance_dict.update(scopes)
    alone, distilled = held
    added = [hook for hook in distilled['hooks'] if hook[0] in OURS]
    assert [hook for hook, _ in added] == ['ExportStudentHook']
    distilled['hooks'] = [hook for hook in distilled['hooks'] if hook not in added]
    assert distilled == alone


def test_export_can_be_turned_off(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = folder / 'no_export.py'
    config.write_text(names(BASES['gfl']) + DISTILLED + 'export_student = False\n')
    hooks = runner_of(config, folder, monkeypatch).hooks
    assert 'ExportStudentHook' not in {type(hook).__name__ for hook in hooks}
