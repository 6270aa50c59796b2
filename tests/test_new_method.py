"""The toy method of CONTRIBUTING.md, built in a copy of the tree."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
COPIED = ('kdtoolbox', 'configs', 'docs', 'tools', 'tests/losses', 'tests/conftest.py')
COPIED += ('pyproject.toml', 'README.md', 'model-index.yml')
RECIPE = 'configs/toy/toy_fpn_retina_r101_retina_r50_1x_coco.py'
USE = f"""
import sys

sys.path += ['docs', 'tools']
import method_table
from benchmark_guard import Watched, distiller_of

from kdtoolbox.losses import ToyLoss, absolute_error

assert 'kdtoolbox' in ToyLoss.__module__ and callable(absolute_error)
page = method_table.page()
assert '`ToyLoss` 1 (map)' in page
assert '[toy](methods/toy.md)' in page
training = Watched(distiller_of({RECIPE!r}))
weight = training.model.student.neck.fpn_convs[0].conv.weight
before = weight.clone()
training.wrapper.optimizer.param_groups[0]['lr'] = 0.01
assert isinstance(training.model.losses['loss_toy'], ToyLoss)
training.step('both')
assert not before.equal(weight)
"""

pytestmark = pytest.mark.e2e


def blocks() -> dict[str, str]:
    """Return the blocks of CONTRIBUTING.md that start with a path, by their paths."""
    text = (ROOT / 'CONTRIBUTING.md').read_text()
    pattern = r'```python\n(# (\w[\w/]*\.py)\n.*?)```'
    return {path: code for code, path in re.findall(pattern, text, re.DOTALL)}


@pytest.fixture(scope='module')
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp('new') / 'tree'
    skip = shutil.ignore_patterns('__pycache__', '_build', 'methods')
    for name in COPIED:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=skip)
        else:
            shutil.copy(ROOT / name, tree / name)
    for path, code in blocks().items():
        assert not (tree / path).exists()
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(code)
    return tree


def run(tree: Path, *arguments: str) -> str:
    """Run Python in the copied tree and return its output."""
    environment = os.environ | dict(PYTHONPATH=str(tree), COLUMNS='200')
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    return result.stdout


def test_the_blocks_are_the_loss_its_recipe_and_its_test() -> None:
    loss, test = 'kdtoolbox/losses/features/toy.py', 'tests/losses/features/test_toy.py'
    assert list(blocks()) == [loss, RECIPE, test]
    for code in blocks().values():
        lines = [line for line in code.splitlines() if 'https://' not in line]
        assert max(map(len, lines)) <= 88


def test_the_loss_is_found_listed_and_trained(tree: Path) -> None:
    run(tree, '-c', USE)


def test_the_readme_and_the_model_index_list_it(tree: Path) -> None:
    collection = dict(Name='Toy', Code='kdtoolbox/losses/features/toy.py')
    metafile = yaml.safe_dump(dict(Collections=[collection]))
    (tree / 'configs/toy/metafile.yml').write_text(metafile)
    run(tree, 'docs/method_table.py')
    assert '\n  [Toy](configs/toy),\n' in (tree / 'README.md').read_text()
    index = (tree / 'model-index.yml').read_text().splitlines()
    assert '  - configs/toy/metafile.yml' in index


def test_its_own_tests_pass_and_the_sweep_covers_it(tree: Path) -> None:
    loss, test = 'kdtoolbox/losses/features/toy.py', 'tests/losses/features/test_toy.py'
    options = ['-q', '-p', 'no:cacheprovider', '-m', 'not e2e', '-k', 'toy or ToyLoss']
    shared = [f'tests/losses/test_{name}.py' for name in ('sweep', 'arguments')]
    output = run(tree, '-m', 'pytest', *options, test, loss, *shared)
    found = re.search(r'(\d+) passed', output)
    # A doctest, its own three tests, three properties, bad and small weights.
    assert found is not None
    assert int(found[1]) == 9, output[-2000:]


def test_the_benchmark_measures_it(tree: Path) -> None:
    sizes = '--size 64 96 --strides 8 16 --channels 8 --boxes 3 --repeats 1'
    command = f'tools/benchmark.py losses --only ToyLoss --threads 1 {sizes}'
    output = run(tree, *command.split())
    rows = [line.split() for line in output.splitlines()]
    [row] = [row for row in rows if row[:1] == ['ToyLoss']]
    assert row[1] == 'fpn'
