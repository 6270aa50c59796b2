"""The doctor, run from another folder, on a handful of DigitScenes."""

import json
import os
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import safetensors.torch
import torch

from kdtoolbox.datasets import PRESETS, make_digit_scenes

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / 'configs/digits'
pytestmark = pytest.mark.e2e


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory, seg_mend: str) -> Path:
    """Return a user's folder with data and the shipped configs on them."""
    folder = tmp_path_factory.mktemp('user')
    for task, style in PRESETS.items():
        data = folder / f'digits_{task}'
        make_digit_scenes(data, style, train=16, val=16, workers=1)
        lines = (
            f"root = dict(data_root='{data}/')\n"
            'train_dataloader = dict(batch_size=8, dataset=root)\n'
            'val_dataloader = dict(batch_size=8, dataset=root)\n'
            'test_dataloader = val_dataloader\n'
            "custom_hooks = [dict(type='EMAHook'), dict(type='kdtoolbox.LossWeightHook'"
            ", loss='loss_cwd', warmup=4)]\n"
        )
        if task == 'det':
            annotation = f'{data}/annotations/instances_val2017.json'
            lines += f"val_evaluator = dict(ann_file='{annotation}')\n"
            lines += 'test_evaluator = val_evaluator\n'
        base = f"_base_ = '{DIGITS}/{task}_distilled.py'\n"
        mend = seg_mend if task == 'seg' else ''
        (folder / f'{task}.py').write_text(base + lines + mend)
    return folder


def spoiled(folder: Path, name: str, noise: float | None) -> Path:
    """Write the detector's teacher with noise, or with shuffled weights if None."""
    state = safetensors.torch.load_file(DIGITS / 'det_teacher.safetensors')
    generator = torch.Generator().manual_seed(0)
    for key, value in state.items():
        if value.dim() < 2:
            continue
        if noise is None:
            order = torch.randperm(value.numel(), generator=generator)
            state[key] = value.flatten()[order].reshape(value.shape)
        else:
            moves = torch.randn(value.shape, generator=generator)
            state[key] = value + noise * value.std() * moves
    path = folder / f'{name}.pth'
    torch.save(dict(state_dict=state), path)
    return path


def doctor(folder: Path, *arguments: str | Path, code: int) -> tuple[str, dict]:
    """Run the doctor in a folder and return its output and its numbers."""
    numbers = folder / 'numbers.json'
    numbers.unlink(missing_ok=True)
    before = set(folder.rglob('*'))
    command = [sys.executable, ROOT / 'tools/doctor.py', *arguments, '--json', numbers]
    environment = dict(os.environ, OMP_NUM_THREADS='1', COLUMNS='100')
    result = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == code, result.stdout[-3000:] + result.stderr[-4000:]
    assert set(folder.rglob('*')) - before == {numbers}
    return result.stdout, json.loads(numbers.read_text())


def problems(numbers: dict, severity: str = 'serious') -> list[str]:
    found = numbers['findings']
    return [x['problem'] for x in found if x['severity'] == severity]


@pytest.fixture(scope='module')
def healthy(folder: Path) -> dict[str, tuple[str, dict]]:
    """Return output and numbers of the shipped recipes."""
    return {
        task: doctor(folder, f'{task}.py', '--batches', '2', code=0) for task in PRESETS
    }


@pytest.mark.parametrize('task', PRESETS)
def test_a_healthy_recipe_has_no_serious_finding(task: str, healthy: dict) -> None:
    output, numbers = healthy[task]
    assert problems(numbers) == []
    scores = numbers['scores']
    assert scores['images'] == 16
    assert scores['teacher'] > scores['perfect'] / 3
    assert scores['student'] < scores['perfect'] / 10
    assert len(scores['classes']) >= 10
    assert numbers['task_losses']['teacher'] < numbers['task_losses']['random'] / 2
    assert all(x[-1] < x[0] for x in numbers['overfit'].values())
    assert 'Largest gaps per class' in output
    assert 'serious' not in output


def test_two_calls_give_the_same_numbers(folder: Path, healthy: dict) -> None:
    _, again = doctor(folder, 'seg.py', '--batches', '2', code=0)
    assert again == healthy['seg'][1]


def test_a_broken_teacher_is_named(folder: Path) -> None:
    shuffled = spoiled(folder, 'shuffled', None)
    option = f'model.teacher.checkpoint={shuffled}'
    output, numbers = doctor(
        folder, 'det.py', '--batches', '1', '--cfg-options', option, code=1
    )
    assert any('broken' in problem for problem in problems(numbers))
    assert 'model.teacher.checkpoint' in output


def test_a_weight_1000_times_too_large_is_named_and_mended(folder: Path) -> None:
    option = 'model.losses.loss_cwd.loss_weight=10000.0'
    command = ['det.py', '--batches', '1', '--suggest-weights', '0.3', '--cfg-options']
    output, numbers = doctor(folder, *command, option, code=1)
    [problem] = problems(numbers)
    assert problem == 'The weight of loss_cwd is far too large'
    [line] = re.findall(r'^--cfg-options (\S+)$', output, re.MULTILINE)
    [config] = re.findall(r'^(model = dict\(losses=.*)$', output, re.MULTILINE)
    scope: dict = {}
    exec(config, scope)
    weight = scope['model']['losses']['loss_cwd']['loss_weight']
    assert line == f'model.losses.loss_cwd.loss_weight={weight}'
    assert weight == numbers['suggested_weights']['loss_cwd']

    _, mended = doctor(folder, *command, line, code=0)
    loss = mended['losses']['loss_cwd']
    assert loss['weight'] == weight
    assert loss['shares'][loss['place']] == pytest.approx(0.3, abs=0.01)


def test_a_teacher_worse_than_the_student_is_named(folder: Path) -> None:
    weak = spoiled(folder, 'weak', 0.35)
    (folder / 'swapped.py').write_text(
        "_base_ = 'det.py'\n"
        f"model = dict(student=dict(_delete_=True, _base_='{DIGITS}/det_teacher.py'),\n"
        f"    teacher=dict(checkpoint='{weak}'),\n"
        '    connectors=dict(aligned=dict(in_channels=64)))\n'
    )
    command = ['swapped.py', '--batches', '2', '--checkpoint']
    _, numbers = doctor(folder, *command, DIGITS / 'det_teacher.safetensors', code=1)
    assert numbers['trained']
    assert 'The teacher is worse than the student' in problems(numbers)
    assert numbers['scores']['student'] > numbers['scores']['teacher']


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--suggest-weights', '30'], 'between 0 and 1'),
        (['--batches', '0'], '1 or more'),
        (['--work-dir', 'runs'], 'no work dir'),
        (['--launcher', 'pytorch'], 'one process'),
        (['--json', __file__], 'exists'),
        (['--json', 'no/such/doctor.json'], 'there is no folder no/such; make it'),
    ],
)
def test_wrong_flags_are_refused(
    flags: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    spec = spec_from_file_location('doctor', ROOT / 'tools/doctor.py')
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, 'argv', ['doctor.py', 'det.py', *flags])
    with pytest.raises(SystemExit, match='2'):
        tool.parse_args()
    assert message in capsys.readouterr().err


def test_a_plain_config_is_refused(folder: Path) -> None:
    config = str(DIGITS / 'det_student.py')
    command = [sys.executable, str(ROOT / 'tools/doctor.py'), config]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 2
    assert 'Traceback' not in result.stderr
    assert 'name the config of a distillation' in result.stderr
