"""Balanced weights are equal in all processes, and a resumed run has them as well."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kdtoolbox.datasets import PRESETS, make_digit_scenes

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.e2e


@pytest.fixture(scope='module')
def config(tmp_path_factory: pytest.TempPathFactory, seg_mend: str) -> Path:
    """Return a shipped recipe with a balanced loss and accumulated gradients."""
    folder = tmp_path_factory.mktemp('balance')
    data = folder / 'digits'
    make_digit_scenes(data, PRESETS['seg'], train=8, val=4, workers=1)
    config = folder / 'recipe.py'
    config.write_text(
        f"_base_ = '{ROOT}/configs/digits/seg_distilled.py'\n"
        "custom_imports = dict(imports=['weight_notes'])\n"
        'val_cfg = val_dataloader = val_evaluator = None\n'
        'train_dataloader = dict(\n'
        '    batch_size=2, num_workers=0, persistent_workers=False,\n'
        f"    dataset=dict(data_root='{data}/'))\n"
        'train_cfg = dict(max_iters=8)\n'
        'optim_wrapper = dict(accumulative_counts=2)\n'
        'default_hooks = dict(checkpoint=dict(interval=4, max_keep_ckpts=-1))\n'
        'custom_hooks = [\n'
        "    dict(type='kdtoolbox.LossBalanceHook', shares=dict(loss_cwd=0.9),\n"
        '         band=0.01, interval=3, max_change=1.5),\n'
        "    dict(type='NoteWeightHook'),\n"
        ']\n' + seg_mend
    )
    return config


def train(config: Path, folder: Path, *flags: str | Path, processes: int = 2) -> list:
    """Train in several processes and return the notes of each."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    notes = folder / 'notes'
    notes.mkdir(parents=True)
    path = f'{Path(__file__).parent}:{os.environ.get("PYTHONPATH", "")}'
    own = dict(OMP_NUM_THREADS='1', PYTHON=sys.executable, PYTHONPATH=path, PORT=port)
    own |= dict(GLOO_SOCKET_IFNAME='lo', NOTES=str(notes))
    command: list[Any] = ['bash', 'tools/dist_train.sh', config, processes]
    command += ['--work-dir', folder / 'run', *flags]
    run = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env=os.environ | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    return [json.loads((notes / f'{i}.json').read_text()) for i in range(processes)]


def test_all_processes_have_one_weight_and_resume_to_it(
    config: Path, tmp_path: Path
) -> None:
    first, second = train(config, tmp_path / 'whole')
    assert [x['loss'] for x in first] != [x['loss'] for x in second]
    for key in ('weight', 'next_weight', 'share'):
        assert [x[key] for x in first] == [x[key] for x in second]
    assert len({x['weight'] for x in first}) == 3
    assert 0 < first[-1]['share'] < 1

    whole = tmp_path / 'whole/run'
    resumed, _ = train(config, tmp_path / 'rest', '--resume', whole / 'iter_4.pth')
    assert resumed == first[4:]
    states = [
        torch.load(folder / 'iter_8.pth', weights_only=False)
        for folder in (whole, tmp_path / 'rest/run')
    ]
    assert states[0]['loss_balance'] == states[1]['loss_balance']
    assert states[0]['loss_balance']['loss_cwd'] != 1
    found, expected = (state['state_dict'] for state in states)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_mixed_precision(config: Path, tmp_path: Path) -> None:
    notes = train(config, tmp_path, '--amp')
    assert notes[0][-1]['weight'] == notes[1][-1]['weight']
    assert 0 < notes[0][-1]['share'] < 1
