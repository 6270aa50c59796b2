"""Parts of a student, trained on a plain folder of images as a user does it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from kdtoolbox.teachers.models import build_model

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / 'configs/digits'
QUEUE = "dict(type='QueueRelationLoss', channels=64, num_levels=4, slots=6, "
QUEUE += "student='aligned', teacher='teacher.fpn')"
PATCHES = "dict(type='PatchRelationLoss', student='student.fpn', teacher='teacher.fpn')"
pytestmark = pytest.mark.e2e


def tool(folder: Path, name: str, *arguments: str | Path) -> tuple[int, str]:
    """Run a tool in a folder; return its exit status and what it prints."""
    result = subprocess.run(
        [sys.executable, ROOT / 'tools' / name, *arguments],
        cwd=folder,
        env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )
    return result.returncode, result.stdout + result.stderr


def train(folder: Path, *arguments: str | Path) -> str:
    status, output = tool(folder, 'train.py', *arguments)
    assert status == 0, output[-6000:]
    return output


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a working folder with images and a config, far from the repository."""
    folder = tmp_path_factory.mktemp('pretraining')
    generator = np.random.default_rng(0)
    for index in range(10):
        path = folder / f'photos/{"ab"[index % 2]}/{index}.{("jpg", "png")[index % 2]}'
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (96 + 8 * index, 128, 3)
        assert cv2.imwrite(str(path), generator.integers(256, size=size, dtype='uint8'))
    folder.joinpath('mine.py').write_text(
        f"_base_ = '{ROOT}/configs/pretrain/digits_det_backbone.py'\n"
        f'model = dict(losses=dict(loss_queue={QUEUE}, loss_patches={PATCHES}))\n'
        'train_dataloader = dict(\n'
        "    batch_size=4, dataset=dict(data_root='photos'), num_workers=0,\n"
        '    persistent_workers=False)\n'
        'train_cfg = dict(max_iters=4)\n'
        'default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))\n'
    )
    return folder


@pytest.fixture(scope='module')
def work_dir(folder: Path) -> Path:
    output = train(folder, 'mine.py')
    assert 'were not tried' not in output
    return folder / 'work_dirs/mine'


def weights(path: Path) -> Any:
    return torch.load(path, weights_only=False)


def test_a_detector_starts_from_the_parts(work_dir: Path) -> None:
    names = {path.name for path in work_dir.glob('*.p*')}
    pairs = {'iter_2.pth', 'iter_4.pth', 'student_iter_2.pth', 'student_iter_4.pth'}
    # There is no config of a student beside them.
    assert names == {*pairs, 'mine.py'}
    checkpoint = work_dir / 'student_iter_4.pth'
    config = Config.fromfile(DIGITS / 'det_student.py')
    for part in ('backbone', 'neck'):
        config.model[part].init_cfg = dict(
            type='Pretrained', checkpoint=str(checkpoint), prefix=f'{part}.'
        )
    model = build_model(config.to_dict())
    model.init_weights()
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    parts = {key for key in model.state_dict() if not key.startswith('bbox_head.')}
    assert state.keys() == parts
    for name, value in state.items():
        assert torch.equal(model.state_dict()[name], value), name


def test_checkpoint_and_optimizer_hold_no_heads(work_dir: Path) -> None:
    saved = weights(work_dir / 'iter_4.pth')
    parts = {'.'.join(key.split('.')[:2]) for key in saved['state_dict']}
    assert parts == {
        *('student.backbone', 'student.neck'),
        *('connectors.aligned', 'losses.loss_queue'),
    }
    student = build_model(DIGITS / 'det_student.py')
    trained = [*student.backbone.parameters(), *student.neck.parameters()]
    groups = saved['optimizer']['param_groups']
    assert len(groups[0]['params']) == len(trained)
    # One convolution for all levels.
    assert sum(len(group['params']) for group in groups) == len(trained) + 2


def test_a_resumed_run_ends_with_the_same_weights_and_queues(
    folder: Path, work_dir: Path
) -> None:
    again = folder / 'work_dirs/again'
    again.mkdir()
    shutil.copy(work_dir / 'iter_2.pth', again)
    train(folder, work_dir / 'mine.py', '--work-dir', again, '--resume')
    expected = weights(work_dir / 'iter_4.pth')['state_dict']
    found = weights(again / 'iter_4.pth')['state_dict']
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    start = weights(work_dir / 'iter_2.pth')['state_dict']
    queue = 'losses.loss_queue.queues.3.keys'
    assert not torch.equal(start[queue], expected[queue])


def test_tools_that_need_a_whole_model_say_so(folder: Path, work_dir: Path) -> None:
    for command in (
        ('test.py', 'mine.py', work_dir / 'iter_4.pth'),
        (
            'export_student.py',
            work_dir / 'iter_4.pth',
            'out.pth',
            '--config',
            'mine.py',
        ),
    ):
        status, output = tool(folder, *command)
        assert status != 0
        assert 'a Pretrainer trains parts of its student without heads' in output
        assert 'Traceback' not in output
    status, output = tool(folder, 'inspect_config.py', 'mine.py')
    assert status == 0, output
    status, output = tool(folder, 'check_dataset.py', 'mine.py', '--workers', '0')
    assert status == 0, output


def test_a_damaged_image_ends_the_run_with_its_name(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / 'photos', tmp_path / 'photos')
    (tmp_path / 'photos/a/0.jpg').write_bytes(b'no image')
    status, output = tool(tmp_path, 'train.py', folder / 'mine.py')
    assert status != 0
    assert 'photos/a/0.jpg' in output
    assert 'tools/check_dataset.py CONFIG' in output
    status, output = tool(tmp_path, 'check_dataset.py', folder / 'mine.py')
    assert status == 1
    assert 'photos/a/0.jpg' in output


def test_a_segmentor_learns_from_the_same_folder(folder: Path) -> None:
    teacher = f"config='{DIGITS}/seg_teacher.py'"
    folder.joinpath('seg.py').write_text(
        f"_base_ = '{DIGITS}/seg_student.py'\n"
        'model = dict(\n'
        "    _delete_=True, type='kdtoolbox.Pretrainer', student=_base_.model,\n"
        f"    teacher=dict({teacher}, checkpoint='{DIGITS}/seg_teacher.safetensors'),\n"
        "    recorders=dict(student=dict(fpn='neck'), teacher=dict(fpn='neck')),\n"
        "    losses=dict(loss_patches=dict(type='PatchRelationLoss',\n"
        "        student='student.fpn', teacher='teacher.fpn')))\n"
        'train_dataloader = dict(batch_size=2, num_workers=0,\n'
        '    persistent_workers=False, dataset=dict(_delete_=True,\n'
        "    type='kdtoolbox.ImageFolder', data_root='photos', pipeline=[\n"
        "        dict(type='LoadImageFromFile'),\n"
        "        dict(type='RandomResize', scale=(128, 128), ratio_range=(1.0, 1.5)),\n"
        "        dict(type='RandomCrop', crop_size=(96, 96)),\n"
        "        dict(type='PackSegInputs')]))\n"
        'val_dataloader = val_cfg = val_evaluator = None\n'
        'test_dataloader = test_cfg = test_evaluator = None\n'
        'train_cfg = dict(max_iters=2)\n'
        'default_hooks = dict(checkpoint=dict(interval=2))\n'
    )
    output = train(folder, 'seg.py')
    assert 'were not tried' not in output
    checkpoint = folder / 'work_dirs/seg/student_iter_2.pth'
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    assert {key.partition('.')[0] for key in state} == {'backbone', 'neck'}
