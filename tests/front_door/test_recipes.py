"""Every shipped config, run by the tools as its user runs it.

From a working folder that is not the repository, on data in the published layouts:
two iterations, the recipe's validation, a checkpoint, and a test of the exported
student. The first recipe of each method is also tested by its checkpoint, and resumed
for one more iteration or epoch by the config that the run has written.
"""

import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from door import ROOT, knock
from shrinking import shrink

from kdtoolbox.configuration import load_config

# A suite of `tools/run_benchmark.py` is no config of a model.
CONFIGS = sorted({*ROOT.glob('configs/*/*.py')} - {*ROOT.glob('configs/benchmarks/*')})
# The other recipes of a method differ in their models only, and what a checkpoint keeps
# depends on the method.
FIRST = {min(path.parent.glob('*.py')) for path in CONFIGS}
pytestmark = [pytest.mark.e2e, pytest.mark.front_door]


class Recipe:
    """A recipe in its working folder."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path, folder
        self.work_dir = folder / 'work_dirs' / path.stem
        self.changes = shrink(path, folder)
        self.by_epoch = any('max_epochs' in change for change in self.changes)
        self.losses = list(load_config(path).model.get('losses', {}))

    def run(self, tool: str, *arguments: str | Path, changes: list[str] = ()) -> str:
        log = self.folder / f'{self.path.stem}.log'
        log.unlink(missing_ok=True)
        # mmengine names the folder of a run by the second in which it starts.
        while (self.work_dir / time.strftime('%Y%m%d_%H%M%S')).exists():
            time.sleep(0.05)
        options = ['--cfg-options', *self.changes, *changes]
        status = knock(tool, *arguments, *options, folder=self.folder, log=log)
        output = log.read_text(errors='replace')
        assert status == 0, f'{tool}: {status}\n{output[-6000:]}'
        return output

    def logged(self, pattern: str) -> list[dict]:
        """Return what the newest run has logged, line by line."""
        newest = max(self.work_dir.glob(pattern))
        return [json.loads(line) for line in newest.read_text().splitlines()]

    def checkpoint(self, done: int) -> Path:
        unit = 'epoch' if self.by_epoch else 'iter'
        return self.work_dir / f'{unit}_{done}.pth'


@pytest.fixture
def recipe(request: pytest.FixtureRequest, folder: Path) -> Iterator[Recipe]:
    recipe = Recipe(request.param, folder)
    yield recipe
    shutil.rmtree(recipe.work_dir, ignore_errors=True)


@pytest.mark.parametrize('recipe', CONFIGS, ids=lambda path: path.stem, indirect=True)
def test_each_recipe_trains_and_exports_a_student(recipe: Recipe) -> None:
    recipe.run('train.py', recipe.path)
    _check_losses(recipe, steps=2)
    saved = recipe.checkpoint(1 if recipe.by_epoch else 2)
    student = saved.with_name(f'student_{saved.name}')
    tested = [student] if recipe.losses else [saved]
    if recipe.losses and recipe.path in FIRST:
        tested.append(saved)
    scores = []
    if load_config(recipe.path).get('test_evaluator') is not None:
        for checkpoint in tested:
            output = recipe.run('test.py', recipe.path, checkpoint)
            [score] = recipe.logged('[0-9]*/[0-9]*.json')
            scores.append({k: v for k, v in score.items() if 'time' not in k})
        assert all(score == scores[0] for score in scores)
        # A detector that knows nothing yet may be sure of nothing.
        empty = 'The testing results of the whole dataset is empty' in output
        assert empty or any('mAP' in key or 'mIoU' in key for key in scores[0])
    if recipe.path in FIRST:
        _check_resuming(recipe)


def _check_resuming(recipe: Recipe) -> None:
    written = recipe.work_dir / recipe.path.name
    command = [written, '--work-dir', recipe.work_dir, '--resume']
    longer = 'max_epochs=2' if recipe.by_epoch else 'max_iters=3'
    recipe.run('train.py', *command, changes=[f'train_cfg.{longer}'])
    _check_losses(recipe, steps=2 if recipe.by_epoch else 1)
    saved = recipe.checkpoint(2 if recipe.by_epoch else 3)
    assert saved.is_file()
    assert not recipe.losses or saved.with_name(f'student_{saved.name}').is_file()


def _check_losses(recipe: Recipe, steps: int) -> None:
    lines = recipe.logged('[0-9]*/vis_data/[0-9]*.json')
    trained = [numbers for numbers in lines if 'loss' in numbers]
    assert len(trained) == steps
    for step in trained:
        assert all(math.isfinite(value) for value in step.values())
        for name in recipe.losses:
            terms = [v for key, v in step.items() if key.partition('.')[0] == name]
            assert sum(map(abs, terms)) > 0, f'{name} is 0'
