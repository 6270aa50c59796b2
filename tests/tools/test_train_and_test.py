"""The tools, run as a user runs them, on a handful of DigitScenes."""

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdtoolbox.datasets import PRESETS, make_digit_scenes

ROOT = Path(__file__).resolve().parents[2]
THRESHOLD = 'model = dict(student=dict(test_cfg=dict(score_thr=0.0)))\n'
pytestmark = pytest.mark.e2e


def tool(*arguments: str | Path, **options) -> subprocess.CompletedProcess:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    environment = dict(
        os.environ, OMP_NUM_THREADS='1', PYTHON=sys.executable, PORT=port
    )
    command = [str(argument) for argument in arguments]
    if command[0].endswith('.py'):
        command.insert(0, sys.executable)
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, **options
    )


def succeed(*arguments: str | Path) -> str:
    result = tool(*arguments)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


@pytest.fixture(scope='module')
def configs(tmp_path_factory: pytest.TempPathFactory, seg_mend: str) -> dict[str, Path]:
    """Return the shipped distillation configs, cut to a few small steps."""
    folder = tmp_path_factory.mktemp('tools')
    configs = {}
    for task, style in PRESETS.items():
        data = folder / f'digits_{task}'
        make_digit_scenes(data, style, train=16, val=4, workers=1)
        path = folder / f'{task}_distilled.py'
        evaluator = f"val_evaluator = dict(ann_file='{data}/annotations/"
        evaluator += "instances_val2017.json')\ntest_evaluator = val_evaluator\n"
        path.write_text(
            f"_base_ = '{ROOT}/configs/digits/{task}_distilled.py'\n"
            f"root = dict(data_root='{data}/')\n"
            'train_dataloader = dict(batch_size=4, dataset=root)\n'
            'val_dataloader = dict(batch_size=2, dataset=root)\n'
            'test_dataloader = val_dataloader\n'
            # After six steps all scores of a detector are low.
            + (evaluator + THRESHOLD if task == 'det' else seg_mend)
            + 'train_cfg = dict(max_iters=6, val_interval=6)\n'
            'default_hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=-1))\n'
        )
        configs[task] = path
    return configs


@pytest.fixture(scope='module')
def trained(
    configs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Return the work dirs of an uninterrupted training per task."""
    work_dirs = {}
    for task, config in configs.items():
        work_dirs[task] = tmp_path_factory.mktemp(f'{task}_run')
        succeed('tools/train.py', config, '--work-dir', work_dirs[task])
    return work_dirs


def metrics(work_dir: Path) -> dict:
    [path] = work_dir.glob('[0-9]*/[0-9]*.json')
    values = json.loads(path.read_text().splitlines()[-1])
    return {key: value for key, value in values.items() if 'time' not in key}


def weights(path: Path) -> dict:
    return torch.load(path, map_location='cpu', weights_only=False)['state_dict']


def predictions(path: Path, task: str) -> list[torch.Tensor]:
    samples = pickle.loads(path.read_bytes())
    if task == 'det':
        return [sample['pred_instances']['scores'] for sample in samples]
    return [sample['pred_sem_seg']['data'] for sample in samples]


@pytest.mark.parametrize('task', PRESETS)
def test_distilled_and_exported_student_are_the_same(
    task: str, configs: dict, trained: dict, tmp_path: Path
) -> None:
    exported = tmp_path / 'student.pth'
    succeed('tools/export_student.py', trained[task] / 'iter_6.pth', exported)
    twin = weights(trained[task] / 'student_iter_6.pth')
    assert twin.keys() == weights(exported).keys()

    outs, scores = [], []
    for checkpoint in (trained[task] / 'iter_6.pth', exported):
        folder = tmp_path / f'test_{checkpoint.stem}'
        outs.append(tmp_path / f'{checkpoint.stem}.pkl')
        command = ['tools/test.py', configs[task], checkpoint, '--work-dir', folder]
        command += ['--out', outs[-1], '--show-dir', tmp_path / checkpoint.stem]
        succeed(*command)
        scores.append(metrics(folder))
    assert scores[0] == scores[1]
    assert any('mAP' in key or 'mIoU' in key for key in scores[0])

    distilled, plain = (predictions(out, task) for out in outs)
    assert len(distilled) == 4
    assert all(map(torch.equal, distilled, plain))
    assert all(len(prediction) for prediction in distilled)
    pictures = [p for p in tmp_path.rglob('*') if p.suffix in ('.png', '.jpg')]
    assert len(pictures) == 2 * 4
    again = tool(*command)
    assert again.returncode == 2
    assert 'exists' in again.stderr


def test_tta(configs: dict, trained: dict, tmp_path: Path) -> None:
    command = ['tools/test.py', configs['det'], trained['det'] / 'iter_6.pth']
    succeed(*command, '--work-dir', tmp_path, '--tta')
    assert 'coco/bbox_mAP' in metrics(tmp_path)


def test_two_processes(configs: dict, tmp_path: Path) -> None:
    output = tool(
        'bash', 'tools/dist_train.sh', configs['det'], '2', '--work-dir', tmp_path,
        '--cfg-options', 'train_cfg.max_iters=2',
    )  # fmt: skip
    assert output.returncode == 0, output.stderr[-4000:]
    checkpoints = sorted(path.name for path in tmp_path.glob('*.pth'))
    assert checkpoints == ['iter_2.pth', 'student_iter_2.pth']
    assert not any('teacher' in key for key in weights(tmp_path / 'iter_2.pth'))


def test_typos_raise_an_error_with_the_line_that_mends_them(
    configs: dict, tmp_path: Path
) -> None:
    result = tool(
        'tools/train.py', configs['det'], '--work-dir', tmp_path,
        '--cfg-options', 'model.recorders.student.fpn=neckk',
    )  # fmt: skip
    assert result.returncode != 0
    assert 'model.recorders.student.fpn' in result.stderr
    assert 'nearest: neck' in result.stderr


def test_a_hook_without_its_loss_gives_a_message(configs: dict, tmp_path: Path) -> None:
    config = tmp_path / 'hook.py'
    hook = "dict(type='kdtoolbox.LossWeightHook', loss='loss_typo', warmup=2)"
    config.write_text(f"_base_ = '{configs['seg']}'\ncustom_hooks = [{hook}]\n")
    result = tool('tools/train.py', config, '--work-dir', tmp_path / 'run')
    assert result.returncode == 2
    assert "no loss 'loss_typo' in model.losses" in result.stderr.splitlines()[-1]
    assert 'Traceback' not in result.stderr


def test_wrong_checkpoint_is_refused(
    configs: dict, trained: dict, tmp_path: Path
) -> None:
    result = tool(
        'tools/test.py', configs['det'], trained['seg'] / 'iter_6.pth',
        '--work-dir', tmp_path,
    )  # fmt: skip
    assert result.returncode != 0
    assert 'does not fit GFL' in result.stderr


def test_auto_scale_lr_needs_the_recipe_batch(configs: dict, tmp_path: Path) -> None:
    result = tool(
        'tools/train.py', configs['det'], '--work-dir', tmp_path, '--auto-scale-lr'
    )
    assert 'auto_scale_lr = dict' in result.stderr


def test_export_refuses_to_overwrite(trained: dict, tmp_path: Path) -> None:
    taken = tmp_path / 'taken.pth'
    shutil.copy(trained['det'] / 'iter_2.pth', taken)
    result = tool('tools/export_student.py', trained['det'] / 'iter_6.pth', taken)
    assert result.returncode == 2
    assert 'exists' in result.stderr
