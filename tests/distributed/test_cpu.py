"""What recipes ask of several GPUs, in one and in two processes on a CPU."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdtoolbox.datasets import PRESETS, make_digit_scenes

ROOT = Path(__file__).resolve().parents[2]
TOLD = 'SyncBN needs GPUs'
pytestmark = pytest.mark.e2e


@pytest.fixture(scope='module')
def config(tmp_path_factory: pytest.TempPathFactory, seg_mend: str) -> Path:
    """Return a shipped recipe, cut to two small steps."""
    folder = tmp_path_factory.mktemp('cpu')
    data = folder / 'digits'
    make_digit_scenes(data, PRESETS['seg'], train=8, val=4, workers=1)
    config = folder / 'recipe.py'
    config.write_text(
        f"_base_ = '{ROOT}/configs/digits/seg_distilled.py'\n"
        "custom_imports = dict(imports=['spare'])\n"
        f"root = dict(data_root='{data}/')\n"
        'loader = dict(num_workers=0, persistent_workers=False, dataset=root)\n'
        'val_cfg = val_dataloader = val_evaluator = None\n'
        'train_dataloader = dict(batch_size=2, **loader)\n'
        'test_dataloader = dict(batch_size=2, **loader)\n'
        'train_cfg = dict(max_iters=2)\n' + seg_mend
    )
    return config


def tool(name: str, processes: int, *arguments: str | Path) -> str:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    path = f'{Path(__file__).parent}:{os.environ.get("PYTHONPATH", "")}'
    own = dict(OMP_NUM_THREADS='1', PYTHON=sys.executable, PYTHONPATH=path, PORT=port)
    command = [sys.executable, f'tools/{name}.py', *arguments]
    if processes > 1:
        config, *more = arguments
        command = ['bash', f'tools/dist_{name}.sh', config, *more]
        command.insert(3 if name == 'train' else 4, str(processes))
    run = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env=os.environ | own | dict(GLOO_SOCKET_IFNAME='lo'),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    return run.stdout


def norms(kind: str, folder: Path) -> list[str]:
    """Return options that give the student, a connector and the teacher a norm."""
    teacher = folder / f'teacher_{kind}.py'
    parts = [f"{part}=dict(norm_cfg=dict(type='{kind}'))" for part in PARTS]
    teacher.write_text(
        f"_base_ = '{ROOT}/configs/digits/seg_teacher.py'\n"
        f'model = dict({", ".join(parts)})\n'
    )
    connector = 'model.connectors.aligned'
    return [
        *(f'model.student.{part}.norm_cfg.type={kind}' for part in PARTS),
        f'{connector}.type=ConvConnector',
        f'{connector}.input=student.logits',
        f'{connector}.in_channels=11',
        f'{connector}.out_channels=11',
        f'{connector}.norm_cfg.type={kind}',
        'model.losses.loss_cwd.student=aligned',
        f'model.teacher.config={teacher}',
    ]


PARTS = ('backbone', 'decode_head')


@pytest.mark.parametrize('processes', [1, 2])
def test_sync_bn_trains_as_the_batch_norm_of_a_process(
    processes: int, config: Path, tmp_path: Path
) -> None:
    states = []
    for kind in ('SyncBN', 'BN'):
        options = ['--cfg-options', *norms(kind, tmp_path)]
        folder = ['--work-dir', tmp_path / kind]
        output = tool('train', processes, config, *folder, *options)
        assert (TOLD in output) == (kind == 'SyncBN' and processes > 1)
        saved = torch.load(tmp_path / kind / 'iter_2.pth', weights_only=False)
        states.append(saved['state_dict'])
    found, expected = states
    assert found.keys() == expected.keys()
    assert any('connectors' in name for name in found)
    assert all(torch.equal(found[name], expected[name]) for name in found)
    if processes > 1:
        weights = tmp_path / 'SyncBN/iter_2.pth'
        folder = ['--work-dir', tmp_path / 'test']
        options = ['--cfg-options', *norms('SyncBN', tmp_path)]
        output = tool('test', processes, config, weights, *folder, *options)
        assert 'mIoU' in output


def test_a_recipe_with_unused_parameters_trains_when_it_says_so(
    config: Path, tmp_path: Path
) -> None:
    options = ['model.student.backbone.type=SpareResNet', 'find_unused_parameters=True']
    arguments = ['--work-dir', tmp_path, '--cfg-options', *options]
    tool('train', 2, config, *arguments)
    assert (tmp_path / 'iter_2.pth').exists()
