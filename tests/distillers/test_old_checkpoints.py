"""Checkpoints that earlier versions have written; tests/data/README.md lists them."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import load_checkpoint

from kdtoolbox.checkpoints.reading import read_checkpoint
from kdtoolbox.checkpoints.resumable import read_resumable
from kdtoolbox.hooks import FittingResumeHook

Toy = SimpleNamespace
DATA = Path(__file__).parents[1] / 'data'
EXPORT = Path(__file__).parents[2] / 'tools/export_student.py'
OPTIMIZER = dict(
    constructor='kdtoolbox.DistillerOptimWrapperConstructor',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9),
)
EMA = dict(type='EMAHook', momentum=0.1)


def connected(toy: Toy) -> dict:
    """Return GFL with a connector and a loss that has parameters."""
    aligned = dict(type='ConvConnector', in_channels=4, out_channels=8)
    wires = dict(student='aligned', teacher='teacher.fpn')
    level = dict(fpn='neck.fpn_convs.0')
    return toy.distiller(
        toy.gfl(base=2, out=4),
        toy.gfl(base=2, out=8),
        recorders=dict(student=level, teacher=level),
        connectors=dict(aligned=dict(aligned, input='student.fpn')),
        losses=dict(loss_fgd=dict(wires, type='FGDLoss', channels=8, num_levels=1)),
    )


def bridged(toy: Toy) -> dict:
    """Return FCFD between two Faster R-CNNs."""
    bridge = dict(type='ConvConnector', in_channels=[4] * 2, out_channels=4)
    bridges = dict(cross=dict(bridge, norm_cfg=dict(type='BN')), back=bridge)
    cls = dict(type='KDLoss', teacher='teacher.roi_cls')
    config = toy.distiller(
        toy.faster_rcnn(base=2, out=4),
        sources=[dict(type='RoIResponses'), dict(type='BridgedRoIs', bridges=bridges)],
        losses=dict(
            loss_cross=dict(cls, student='cross.roi_cls'),
            loss_back=dict(cls, student='back.roi_cls'),
        ),
    )
    del config['recorders']
    return config


def crossed(toy: Toy) -> dict:
    """Return CrossKD between two GFLs whose towers differ in width."""
    projection = dict(type='ConvConnector', in_channels=4, out_channels=8)
    wires = dict(student='cross.cls', teacher='teacher.cls')
    config = toy.distiller(
        toy.gfl(base=2, out=4),
        toy.gfl(base=2, out=8),
        sources=[dict(type='CrossHead', stage=1, projection=projection)],
        losses=dict(loss_cross_cls=dict(wires, type='CrossKDClsLoss')),
    )
    del config['recorders']
    return config


RUNS: dict[str, tuple[Callable, list, str]] = {
    'connector_and_loss': (connected, [EMA], 'connectors.aligned.convs.0.conv.weight'),
    'bridges': (bridged, [], 'bridges.cross.convs.0.conv.weight'),
    'projections': (crossed, [], 'projections.cls_tower.convs.0.conv.weight'),
}
for_runs = pytest.mark.parametrize('name', list(RUNS))


def train(make_runner: Callable, toy: Toy, name: str, epochs: int) -> Any:
    """Train, or resume what the work dir contains, up to a number of epochs."""
    build, hooks, _ = RUNS[name]
    runner = make_runner(
        build(toy),
        custom_hooks=hooks,
        resume=True,
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        param_scheduler=[dict(type='MultiStepLR', milestones=[1], by_epoch=True)],
    )
    runner.optim_wrapper = OPTIMIZER
    runner.register_hook(FittingResumeHook())
    runner.train()
    return runner


@for_runs
def test_old_checkpoint_loads_strictly(toy: Toy, name: str) -> None:
    build, _, key = RUNS[name]
    path = DATA / f'{name}.pth'
    read_resumable(path)
    content = read_checkpoint(path)
    model = toy.build(dict(model=build(toy), default_scope='mmdet'))
    assert list(model.state_dict()) == list(content['state_dict'])
    names = [name for name, _ in model.named_parameters()]
    assert names == [key for key in content['state_dict'] if key in set(names)]
    load_checkpoint(model, str(path), map_location='cpu', strict=True)
    for state_key, value in model.state_dict().items():
        assert torch.equal(value, content['state_dict'][state_key])
    del content['state_dict'][key]
    with pytest.raises(RuntimeError, match=rf'Missing key\(s\).*"{key}"'):
        model.load_state_dict(content['state_dict'], strict=True)
    content['state_dict'] |= {key: torch.zeros(7), 'surplus': torch.zeros(1)}
    with pytest.raises(RuntimeError, match=rf'size mismatch for {key}') as caught:
        model.load_state_dict(content['state_dict'], strict=True)
    assert 'Unexpected key(s) in state_dict: "surplus"' in str(caught.value)


@for_runs
def test_old_checkpoint_resumes(
    toy: Toy, name: str, make_runner: Callable, tmp_path: Path
) -> None:
    old = DATA / f'{name}.pth'
    (tmp_path / 'epoch_1.pth').write_bytes(old.read_bytes())
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    runner = train(make_runner, toy, name, epochs=2)
    assert runner.iter == 4
    before, after = map(read_checkpoint, (old, tmp_path / 'epoch_2.pth'))
    assert after.keys() == before.keys()
    for part in ('state_dict', 'ema_state_dict'):
        assert list(after.get(part, ())) == list(before.get(part, ()))
    assert len(after['optimizer']['state']) == len(before['optimizer']['state'])
    key = RUNS[name][2]
    assert not torch.equal(after['state_dict'][key], before['state_dict'][key])


@for_runs
def test_the_student_of_an_old_checkpoint_is_exported(
    toy: Toy, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, config, out = DATA / f'{name}.pth', tmp_path / 'old.py', tmp_path / 'new.pth'
    Config(dict(model=RUNS[name][0](toy), default_scope='mmdet')).dump(config)
    command = [EXPORT, old, out, '--config', config]
    monkeypatch.setattr(sys, 'argv', list(map(str, command)))
    runpy.run_path(str(EXPORT), run_name='__main__')
    model = toy.build(Config.fromfile(out.with_suffix('.py')))
    load_checkpoint(model, str(out), map_location='cpu', strict=True)
    state = read_checkpoint(old)['state_dict']
    weights = model.state_dict()
    assert {f'student.{key}' for key in weights} <= state.keys()
    assert all(torch.equal(weights[key], state[f'student.{key}']) for key in weights)
