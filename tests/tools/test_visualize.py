"""Pictures of tools/visualize.py, from another folder than the repo."""

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdtoolbox.datasets import PRESETS, make_digit_scenes
from kdtoolbox.teachers.models import build_model
from kdtoolbox.visualization.boxes import TRUE

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.e2e


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('elsewhere')
    for task, style in PRESETS.items():
        make_digit_scenes(
            root / f'data/digits_{task}', style, train=2, val=3, workers=1
        )
    return root


def run(folder: Path, config: str, *options: Any, fails: bool = False) -> str:
    command = [sys.executable, str(ROOT / 'tools/visualize.py')]
    command += [str(ROOT / f'configs/digits/{config}.py'), *map(str, options)]
    result = subprocess.run(
        command,
        cwd=folder,
        env=dict(os.environ, OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
    )
    told = result.stdout + result.stderr
    assert (result.returncode != 0) == fails, told[-4000:]
    return told


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def checkpoint(task: str, path: Path, prefix: str = '') -> Path:
    """Write random weights of the student, with a prefix as in a distillation."""
    state = build_model(ROOT / f'configs/digits/{task}_student.py').state_dict()
    torch.save({'state_dict': {prefix + key: x for key, x in state.items()}}, path)
    return path


def test_a_detector_without_checkpoint(folder: Path) -> None:
    told = run(folder, 'det_fgd', '--out-dir', 'a/b', '--images', 2)
    kinds = ('features_loss_fgd', 'masks_loss_fgd', 'predictions')
    assert names(folder / 'a/b') == {
        f'{index:06}_{kind}.png' for index in (0, 1) for kind in kinds
    }
    assert '6 pictures written' in told
    assert 'no channels: this recipe has nothing of that kind' in told
    # The shipped teacher finds digits.
    pixels = np.asarray(Image.open(folder / 'a/b/000000_predictions.png'))
    left, right = np.array_split((pixels == TRUE).all(2), [pixels.shape[1] * 2 // 3], 1)
    assert not left.any()
    assert right.any()
    told = run(folder, 'det_fgd', '--out-dir', 'a/b', fails=True)
    assert 'exists and is not an empty folder; name another' in told


def test_an_exported_detector_on_training_images(folder: Path) -> None:
    weights = checkpoint('det', folder / 'student.pth')
    options = ('--split', 'train', '--indices', 1, '--what', 'channels', 'predictions')
    run(folder, 'det_distilled', weights, '--out-dir', 'c', *options)
    assert names(folder / 'c') == {
        '000001_channels_loss_cwd.png',
        '000001_predictions.png',
    }
    told = run(
        folder, 'det_distilled', '--out-dir', 'd', '--indices', 3, -1, fails=True
    )
    assert 'the val split has 3 images, counted from 0, got [3, -1]' in told
    assert not (folder / 'd').exists()


def test_a_segmentor_with_its_distillation_checkpoint(folder: Path) -> None:
    weights = checkpoint('seg', folder / 'whole.pth', 'student.')
    run(folder, 'seg_distilled', weights, '--out-dir', 'e', '--images', 1)
    assert names(folder / 'e') == {
        '000000_channels_loss_cwd.png',
        '000000_features_loss_cwd.png',
        '000000_predictions.png',
    }


SELF = """_base_ = {base!r}
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(type='SelfTeacher'),
    recorders=dict(student=dict(fpn='neck'), teacher=dict(fpn='neck')),
    losses=dict(
        loss_cwd=dict(type='CWDLoss', student='student.fpn', teacher='teacher.fpn')
    ),
)
"""


@pytest.mark.parametrize('saved', [True, False])
def test_a_teacher_that_follows_the_student_is_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: bool
) -> None:
    monkeypatch.syspath_prepend(ROOT / 'tools')
    from visualize import build, configure

    recipe = tmp_path / 'recipe.py'
    recipe.write_text(SELF.format(base=str(ROOT / 'configs/digits/det_student.py')))
    path = checkpoint('det', tmp_path / 'whole.pth', 'student.')
    content = torch.load(path)
    args = Namespace(config=str(recipe), cfg_options=None, checkpoint=str(path))
    if saved:
        other = build(configure(args), Namespace(**vars(args) | {'checkpoint': None}))
        content['teachers'] = dict(teacher=other[0].teacher.state_dict())
        torch.save(content, path)
    model, _, _ = build(configure(args), args)
    found = model.teacher.model.state_dict()
    prefix = 'module.' if saved else 'student.'
    goal = content['teachers']['teacher'] if saved else content['state_dict']
    name = 'backbone.conv1.weight'
    assert torch.equal(found[name].cpu(), goal[prefix + name])
    same = torch.equal(found[name], model.student.state_dict()[name])
    assert same != saved


@pytest.mark.parametrize(
    ('config', 'option', 'match'),
    [
        ('det_student', 'randomness.seed=1', 'expected the config of a distillation'),
        (
            'det_distilled',
            'model.losses.loss_cwd.loss_weight=0',
            'loss_weight=1',
        ),
    ],
)
def test_without_a_comparison_there_is_an_error(
    folder: Path, config: str, option: str, match: str
) -> None:
    told = run(folder, config, '--out-dir', 'f', '--cfg-options', option, fails=True)
    assert match in told
