"""The routes of the README as they stand there: train, test, take the student away."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from door import ROOT, knock
from shrinking import shrink

from kdtoolbox.configuration import load_config
from kdtoolbox.teachers.models import build_model

SEGMENTOR = """
_base_ = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
model = dict(
    _delete_=True,
    type='kdtoolbox.Distiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint='teacher.pth',
    ),
    recorders=dict(
        student=dict(logits='decode_head.conv_seg'),
        teacher=dict(logits='decode_head.conv_seg'),
    ),
    losses=dict(
        loss_cwd=dict(
            type='CWDLoss', student='student.logits', teacher='teacher.logits'
        )
    ),
)
"""
pytestmark = [pytest.mark.e2e, pytest.mark.front_door]


def blocks(language: str) -> list[str]:
    text = (ROOT / 'README.md').read_text()
    section = text.partition('## Distil your own pair')[2].partition('\n## ')[0]
    return re.findall(rf'```{language}\n(.*?)```', section, re.DOTALL)


def commands() -> list[list[str]]:
    """Return the tool and the arguments of each command."""
    [lines] = blocks('shell')
    return [
        line.replace('.venv/bin/python tools/', '').split()
        for line in lines.splitlines()
    ]


def run(command: list[str], options: list[str], folder: Path) -> None:
    log = folder / 'readme.log'
    status = knock(*command, '--cfg-options', *options, folder=folder, log=log)
    assert status == 0, log.read_text(errors='replace')[-4000:]


def trained(recipe: str, checkpoint: str, epochs: str, folder: Path) -> None:
    """Train and test a recipe by the README's commands, cut to two iterations."""
    shutil.rmtree(folder / 'work_dirs/my_recipe', ignore_errors=True)
    path = folder / 'my_recipe.py'
    path.write_text(recipe)
    teacher = build_model(load_config(path).model.teacher.config)
    torch.save(dict(state_dict=teacher.state_dict()), folder / checkpoint)
    options = [
        change
        for change in shrink(path, folder)
        if not change.startswith('model.teacher')
    ]
    for command in commands():
        run([part.replace('epoch_12', epochs) for part in command], options, folder)


def call(script: str, folder: Path) -> None:
    """Run Python that cannot import kdtoolbox, as another project's."""
    hidden = "import sys; sys.modules['kdtoolbox'] = None\n"
    subprocess.run(
        [sys.executable, '-c', hidden + script], cwd=folder, check=True, text=True
    )


def test_detector_of_the_readme(folder: Path) -> None:
    recipe, script = blocks('python')
    trained(recipe, 'gfl_r101.pth', 'epoch_1', folder)
    [image, *_] = (folder / 'data/coco/val2017').iterdir()
    script = script.replace('epoch_12', 'epoch_1').replace('image.jpg', str(image))
    call(f'{script}\nassert len(result.pred_instances.scores) >= 0', folder)


def test_segmentor_of_a_user(folder: Path) -> None:
    trained(SEGMENTOR, 'teacher.pth', 'iter_2', folder)
    [image, *_] = (folder / 'data/cityscapes/leftImg8bit/val/ulm').iterdir()
    call(
        'from mmseg.apis import inference_model, init_model\n'
        "folder = 'work_dirs/my_recipe'\n"
        "weights = f'{folder}/student_iter_2.pth'\n"
        "model = init_model(f'{folder}/student.py', weights, device='cpu')\n"
        f'result = inference_model(model, {str(image)!r})\n'
        'assert result.pred_sem_seg.shape == (96, 128)',
        folder,
    )
