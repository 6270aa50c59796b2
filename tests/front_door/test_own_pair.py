"""The walk through an own pair, as docs/own-pair.md has it."""

import re
from pathlib import Path

import pytest
from door import ROOT, knock

PAGE = (ROOT / 'docs/own-pair.md').read_text()
SHORT = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2']
SHORT += ['default_hooks.checkpoint.interval=2', 'train_dataloader.batch_size=2']
SHORT += [
    f'{name}_dataloader.{key}'
    for name in ('train', 'val', 'test')
    for key in ('num_workers=0', 'persistent_workers=False')
]
MORE = {
    'make_digit_scenes.py': ['--train', '8', '--val', '4', '--workers', '1'],
    'train.py': ['--cfg-options', *SHORT],
    'test.py': ['--cfg-options', *SHORT],
    'doctor.py': ['--batches', '1', '--cfg-options', *SHORT],
    'visualize.py': ['--images', '1', '--cfg-options', *SHORT],
}
"""What makes a command short."""

pytestmark = [pytest.mark.e2e, pytest.mark.front_door]


def commands() -> list[list[str]]:
    lines = re.findall(r'^\$ \.venv/bin/python tools/(.*)$', PAGE, re.MULTILINE)
    return [line.replace('iter_400', 'iter_2').split() for line in lines]


def test_the_commands_of_the_page_run(tmp_path: Path) -> None:
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    outputs = {}
    for number, (tool, *arguments) in enumerate(commands()):
        log = tmp_path / f'{number}_{tool}.log'
        arguments += MORE.get(tool, [])
        status = knock(tool, *arguments, folder=tmp_path, log=log)
        outputs[tool] = log.read_text(errors='replace')
        # The doctor ends with 1 if it has found something serious.
        expected = (0, 1) if tool == 'doctor.py' else (0,)
        assert status in expected, f'{tool}: {status}\n{outputs[tool][-4000:]}'
    [recipe] = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
    assert (tmp_path / 'my_recipe.py').read_text() == recipe
    for table in re.findall(r'```text\n(recorders.*?)```', PAGE, re.DOTALL):
        shown = [line.rstrip() for line in outputs['inspect_config.py'].splitlines()]
        assert [x for x in table.splitlines() if x not in shown] == []
    assert (tmp_path / 'student.onnx').is_file()
    assert list((tmp_path / 'pictures').glob('*_predictions.png'))
    assert 'linear CKA per level' in outputs['doctor.py']


def test_the_faults_of_the_page_are_listed(tmp_path: Path) -> None:
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    [recipe] = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
    [faults] = re.findall(r'```text\n(3 faults:.*?)```', PAGE, re.DOTALL)
    broken = recipe.replace('neck', 'nekc').replace('channels=64', 'channels=32')
    (tmp_path / 'my_recipe.py').write_text(broken)
    for tool in ('inspect_config.py', 'train.py'):
        log = tmp_path / f'{tool}.log'
        assert knock(tool, 'my_recipe.py', folder=tmp_path, log=log) == 2
        assert faults in log.read_text()
