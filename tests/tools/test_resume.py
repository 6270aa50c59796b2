"""Killed and resumed trainings equal an uninterrupted one."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from kdtoolbox.datasets import PRESETS, make_digit_scenes

ROOT = Path(__file__).resolve().parents[2]
# In this order, each run resumed from what the one before has left, and the iterations
# of which one is resumed after it; at that time the second checkpoint is new.
DEATHS = {
    'iter:1': (),
    'iter:3': (2,),
    'write:4': (2,),
    'last:4': (2, 4),
    'iter:5': (4,),
}
KILLED = (-signal.SIGKILL, -signal.SIGXFSZ)
COMPARED = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
SHARED = """
custom_imports = dict(imports=['dying'])
val_cfg = val_dataloader = val_evaluator = None
train_dataloader = dict(
    num_workers=2,
    persistent_workers=True,
    dataset=dict(data_root='{data}/', pipeline=_base_.train_pipeline),
)
train_dataloader['dataset']['pipeline'][2:2] = [
    dict(type='RandomFlip', prob=0.5), dict(type='PhotoMetricDistortion')
]
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=4),
    dict(type='CosineAnnealingLR', T_max=6, by_epoch=False),
]
custom_hooks = [
    dict(type='kdtoolbox.ExportStudentHook'),
    dict(type='kdtoolbox.LossWeightHook', loss='loss_cwd', warmup=5),
    dict(type='DieHook'),
]
"""
EPOCHS = """
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=3)
train_dataloader.update(
    batch_size=8,
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
)
custom_hooks.append(dict(type='EMAHook', momentum=0.1))
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=1, max_keep_ckpts=-1))
"""
# Without a seed, as most recipes are.
ITERATIONS = """
train_cfg = dict(max_iters=6)
train_dataloader.update(batch_size=4)
default_hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=-1))
randomness = dict(seed=None)
"""
pytestmark = pytest.mark.e2e


@pytest.fixture(scope='module')
def configs(tmp_path_factory: pytest.TempPathFactory, seg_mend: str) -> dict[str, Path]:
    """Return an epoch-based detection and an iteration-based segmentation config."""
    folder = tmp_path_factory.mktemp('resume')
    configs = {}
    for task, loop in dict(det=EPOCHS, seg=ITERATIONS + seg_mend).items():
        data = folder / f'digits_{task}'
        make_digit_scenes(data, PRESETS[task], train=16, val=4, workers=1)
        base = f"_base_ = '{ROOT}/configs/digits/{task}_distilled.py'\n"
        configs[task] = folder / f'{task}.py'
        configs[task].write_text(base + SHARED.format(data=data) + loop)
    return configs


def train(
    config: Path, work_dir: Path, *options: str, die: str = '', processes: int = 1
) -> tuple[int, str]:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    environment = dict(
        os.environ,
        OMP_NUM_THREADS='1',
        PYTHON=sys.executable,
        PYTHONPATH=os.pathsep.join(map(str, (ROOT, Path(__file__).parent))),
        PORT=port,
        DIE=die,
    )
    command = [sys.executable, 'tools/train.py', str(config)]
    if processes > 1:
        command = ['bash', 'tools/dist_train.sh', str(config), str(processes)]
    run = subprocess.run(
        [*command, '--work-dir', str(work_dir), *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    return run.returncode, run.stdout + run.stderr


def resumed_at(output: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r'resumed epoch: \d+, iter: (\d+)', output)))


def survive(config: Path, work_dir: Path) -> None:
    """Train to the end, and resume after each kill."""
    expected: tuple[int, ...] = ()
    for death, afterwards in DEATHS.items():
        code, output = train(config, work_dir, '--resume', die=death)
        assert code in KILLED, output[-4000:]
        at = resumed_at(output)
        assert at == expected or (at and at[0] in expected), (death, at)
        expected = afterwards
    # mmengine writes the config of the training into the work dir.
    code, output = train(work_dir / config.name, work_dir, '--resume')
    assert code == 0, output[-4000:]
    assert resumed_at(output) == expected
    assert (work_dir / config.name).read_text().count('SeededSampler') == 1


def differences(left: Any, right: Any, path: str = '') -> Iterator[str]:
    if isinstance(left, torch.Tensor):
        if left.dtype != right.dtype or not torch.equal(left, right):
            yield path
    elif isinstance(left, Mapping):
        if left.keys() != right.keys():
            yield path
        for key in left.keys() & right.keys():
            yield from differences(left[key], right[key], f'{path}.{key}')
    elif isinstance(left, (list, tuple)):
        if len(left) != len(right):
            yield path
        for place, pair in enumerate(zip(left, right, strict=False)):
            yield from differences(*pair, f'{path}[{place}]')
    elif left != right:
        yield path


def read(path: Path) -> dict:
    """Return the parts of a checkpoint that have to be equal."""
    checkpoint = torch.load(path, map_location='cpu', weights_only=False)
    state = {key: checkpoint.get(key) for key in COMPARED}
    state['meta'] = {key: checkpoint['meta'][key] for key in ('epoch', 'iter', 'seed')}
    state['losses'] = {
        key: buffer.data[0].tolist()
        for key, buffer in checkpoint['message_hub']['log_scalars'].items()
        if 'time' not in key
    }
    return state


def assert_same(last: str, expected: Path, actual: Path) -> None:
    expected_state, actual_state = read(expected / last), read(actual / last)
    assert len(expected_state['losses']['train/loss_cwd']) == 6
    assert not list(differences(expected_state, actual_state))
    names = [
        sorted(path.name for path in folder.glob('*.pth'))
        for folder in (expected, actual)
    ]
    assert names[0] == names[1]


def test_a_killed_detector_training_resumes_exactly(
    configs: dict[str, Path], tmp_path: Path
) -> None:
    code, output = train(configs['det'], tmp_path / 'whole')
    assert code == 0, output[-4000:]
    survive(configs['det'], tmp_path / 'killed')
    assert_same('epoch_3.pth', tmp_path / 'whole', tmp_path / 'killed')


def test_a_killed_segmentor_training_resumes_exactly(
    configs: dict[str, Path], tmp_path: Path
) -> None:
    survive(configs['seg'], tmp_path / 'killed')
    seed = read(tmp_path / 'killed/iter_6.pth')['meta']['seed']
    option = f'randomness.seed={seed}'
    code, output = train(configs['seg'], tmp_path / 'whole', '--cfg-options', option)
    assert code == 0, output[-4000:]
    assert_same('iter_6.pth', tmp_path / 'whole', tmp_path / 'killed')


def test_a_training_killed_in_two_processes_resumes_exactly(
    configs: dict[str, Path], tmp_path: Path
) -> None:
    seed = ['--cfg-options', 'randomness.seed=0', 'train_dataloader.batch_size=2']
    for folder, death in dict(whole='', killed='iter:3').items():
        work_dir = tmp_path / folder
        code, output = train(configs['seg'], work_dir, *seed, die=death, processes=2)
        assert (code != 0) == bool(death), output[-4000:]
    code, output = train(
        configs['seg'], tmp_path / 'killed', *seed, '--resume', processes=2
    )
    assert code == 0, output[-4000:]
    assert set(resumed_at(output)) == {2}
    assert_same('iter_6.pth', tmp_path / 'whole', tmp_path / 'killed')
