"""Each recipe of docs/teachers.md, as its reader runs it."""

import re
from pathlib import Path

import pytest
from door import ROOT, knock

PAGE = (ROOT / 'docs/teachers.md').read_text()
RECIPES = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
SHORT = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2']
SHORT += ['default_hooks.checkpoint.interval=2', 'default_hooks.logger.interval=1']
SHORT += ['train_dataloader.batch_size=2']
SHORT += [
    f'{name}_dataloader.{key}'
    for name in ('train', 'val', 'test')
    for key in ('num_workers=0', 'persistent_workers=False')
]

pytestmark = [pytest.mark.e2e, pytest.mark.front_door]


RANDOM = ['model.teacher.model=transformers::dinov2', 'model.teacher.pretrained=False']
RANDOM += ['model.teacher.allow_random=True']
RANDOM += ['model.teacher.arguments.num_hidden_layers=2']
"""What a foundation model needs to be small and without its published weights."""


@pytest.fixture(scope='module')
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('repository')
    (folder / 'configs').symlink_to(ROOT / 'configs')
    scenes = ['--train', '8', '--val', '4', '--workers', '1']
    log = folder / 'scenes.log'
    status = knock('make_digit_scenes.py', *scenes, folder=folder, log=log)
    assert status == 0, log.read_text()
    return folder


def run(tool: str, *arguments: str, folder: Path) -> str:
    log = folder / f'{tool}.log'
    log.unlink(missing_ok=True)
    status = knock(tool, *arguments, folder=folder, log=log)
    text = log.read_text(errors='replace')
    assert status == 0, text[-4000:]
    return text


@pytest.mark.parametrize('number', range(len(RECIPES)))
def test_recipe_trains_and_its_student_is_plain(number: int, repository: Path) -> None:
    recipe = repository / f'recipe_{number}.py'
    recipe.write_text(RECIPES[number])
    random = RANDOM if 'FoundationTeacher' in RECIPES[number] else []
    options = ['--cfg-options', *random] if random else []
    shown = run('inspect_config.py', recipe.name, *options, folder=repository)
    assert 'not tried' not in shown
    short = ['--cfg-options', *SHORT, *random]
    log = run('train.py', recipe.name, *short, folder=repository)
    assert re.search(r'loss_\w+: 0*[1-9.]', log)
    work_dir = repository / 'work_dirs' / recipe.stem
    evaluated = run(
        'test.py',
        str(work_dir / 'student.py'),
        str(work_dir / 'student_iter_2.pth'),
        folder=repository,
    )
    assert 'Iter(test)' in evaluated
