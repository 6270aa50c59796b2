"""The hooks of mmengine, mmdet and mmseg act on a student as when it trains alone.

With a loss weight of 0 a distillation trains what the student alone trains, so that
after a training with a hook nothing may differ. Hooks that reach into the model are
called on both.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.logging import MMLogger

TRAINED = {
    'CheckInvalidLossHook': dict(interval=1),
    'CheckpointHook': dict(interval=1),
    'DistSamplerSeedHook': {},
    'EMAHook': dict(ema_type='ExponentialMovingAverage', momentum=0.1),
    'EmptyCacheHook': {},
    'IterTimerHook': {},
    'LoggerHook': {},
    'ParamSchedulerHook': {},
    'RuntimeInfoHook': {},
    'SyncBuffersHook': {},
    'SyncNormHook': {},
}
CALLED = ['NumClassCheckHook', 'SetEpochInfoHook', 'YOLOXModeSwitchHook']
DATA_ALONE = {
    'DetVisualizationHook': 'draws what the validation gives',
    'EarlyStoppingHook': 'reads the scores of the validation',
    'GroundingVisualizationHook': 'draws what the validation gives',
    'MemoryProfilerHook': 'measures memory',
    'NaiveVisualizationHook': 'draws what the validation gives',
    'PipelineSwitchHook': 'changes the pipeline of the data',
    'PrepareTTAHook': 'wraps the model of a test, which is the student',
    'ProfilerHook': 'measures time',
    'NPUProfilerHook': 'measures time',
    'SegVisualizationHook': 'draws what the validation gives',
    'TrackVisualizationHook': 'draws what the validation of a tracker gives',
    'TrainAugmentDetVisualizationHook': 'draws the images of the training',
    'MeanTeacherHook': "is for mmdet's semi-supervised models, which have a teacher",
}


def distilled(toy: SimpleNamespace, **changes: Any) -> Any:
    conv = dict(type='ConvConnector', input='student.fpn')
    conv |= dict(in_channels=8, out_channels=8)
    loss = dict(type='PKDLoss', student='aligned', teacher='teacher.fpn', loss_weight=0)
    return toy.build_distiller(
        toy.gfl(norm_eval=False),
        connectors=dict(aligned=conv),
        losses=dict(loss_pkd=loss),
        **changes,
    )


@pytest.mark.e2e
@pytest.mark.parametrize('name', TRAINED)
def test_hooks_train_the_student_as_without_a_distillation(
    name: str, toy: SimpleNamespace, make_runner: Callable, tmp_path: Path
) -> None:
    weights = []
    for side in ('alone', 'distilled'):
        torch.manual_seed(0)
        alone = side == 'alone'
        model = toy.build(toy.gfl(norm_eval=False)) if alone else distilled(toy)
        hooks = [dict(type=name, **TRAINED[name])]
        make_runner(
            model,
            custom_hooks=hooks if name not in ('CheckpointHook', 'LoggerHook') else [],
            work_dir=str(tmp_path / side),
            randomness=dict(seed=0),
            param_scheduler=dict(type='LinearLR', start_factor=0.1, by_epoch=False),
        ).train()
        checkpoint = torch.load(tmp_path / side / 'epoch_2.pth', weights_only=False)
        weights.append(checkpoint['state_dict'])
    alone, other = weights
    assert {key for key in other if key.startswith('student.')} == {
        f'student.{key}' for key in alone
    }
    for key, value in alone.items():
        assert torch.equal(other[f'student.{key}'], value), key


@pytest.mark.parametrize('wrapped', [False, True])
@pytest.mark.parametrize('name', CALLED)
def test_hooks_find_the_student(name: str, wrapped: bool, toy: SimpleNamespace) -> None:
    from mmdet.registry import HOOKS
    from mmengine.registry import MODEL_WRAPPERS

    model = distilled(toy)
    epochs: list[int] = []
    model.student.set_epoch = epochs.append
    skipped: list = []
    data = SimpleNamespace(
        metainfo=dict(classes=('a', 'b', 'c')), update_skip_type_keys=skipped.append
    )

    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

    MODEL_WRAPPERS.register_module(name='TestWrapper', module=Wrapper, force=True)
    try:
        runner = SimpleNamespace(
            model=Wrapper(model) if wrapped else model,
            epoch=7,
            max_epochs=8,
            train_dataloader=SimpleNamespace(dataset=data),
            logger=MMLogger.get_current_instance(),
        )
        HOOKS.build(dict(type=name)).before_train_epoch(runner)
    finally:
        MODEL_WRAPPERS.module_dict.pop('TestWrapper')
    assert epochs == ([7] if name == 'SetEpochInfoHook' else [])
    assert hasattr(model.student.bbox_head, 'use_l1') == (name == 'YOLOXModeSwitchHook')


def test_wrong_number_of_classes_is_told_as_alone(toy: SimpleNamespace) -> None:
    from mmdet.engine.hooks import NumClassCheckHook

    data = SimpleNamespace(metainfo=dict(classes=('a', 'b')))
    runner = SimpleNamespace(
        model=distilled(toy), train_dataloader=SimpleNamespace(dataset=data)
    )
    with pytest.raises(AssertionError, match='GFLHead'):
        NumClassCheckHook().before_train_epoch(runner)


def test_every_hook_of_the_stack_is_known() -> None:
    import mmdet.engine  # noqa: F401
    import mmseg.engine  # noqa: F401
    from mmdet.registry import HOOKS as DETECTION
    from mmengine.registry import HOOKS
    from mmseg.registry import HOOKS as SEGMENTATION

    known = {*TRAINED, *CALLED, *DATA_ALONE}
    for registry in (HOOKS, DETECTION, SEGMENTATION):
        for name, kind in registry.module_dict.items():
            if kind.__module__.startswith(('mmengine.', 'mmdet.', 'mmseg.')):
                assert name in known, name


def test_names_of_the_distiller_come_first_and_unknown_ones_are_refused(
    toy: SimpleNamespace,
) -> None:
    model = distilled(toy)
    assert model.bbox_head is model.student.bbox_head
    assert model.losses is not getattr(model.student, 'losses', None)
    with pytest.raises(AttributeError, match="'Distiller' object has no attribute"):
        model.bbox_haed  # noqa: B018
