"""The toy method of docs/writing-a-method.md, built in a copy of the tree."""

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
COPIED += ('tests/connector_arguments.py',)
PAGE = ROOT / 'docs/writing-a-method.md'
LOSS = 'kdtoolbox/losses/features/toy.py'
CONNECTOR = 'kdtoolbox/connectors/scale.py'
SOURCE = 'kdtoolbox/distillers/sources/reader_weights.py'
TESTS = (
    'tests/losses/features/test_toy.py',
    'tests/connectors/test_scale.py',
    'tests/distillers/sources/test_reader_weights.py',
)
RECIPE = 'configs/toy/toy_fpn_retina_r101_retina_r50_1x_coco.py'
USE = f"""
import sys

sys.path += ['docs', 'tools']
import class_table
from benchmark_guard import Watched, distiller_of

from kdtoolbox.connectors import ScaleConnector
from kdtoolbox.losses import ToyLoss, absolute_error
from kdtoolbox.recipes.catalogue import methods

assert 'kdtoolbox' in ToyLoss.__module__ and callable(absolute_error)
losses, others = class_table.losses(), class_table.others()
assert '| `ToyLoss` | 1 | map |' in losses
assert '[toy](methods/toy.md)' in losses
assert '`ScaleConnector`' in others and '`ReaderWeights`' in others
training = Watched(distiller_of({RECIPE!r}))
weight = training.model.student.neck.fpn_convs[0].conv.weight
before = weight.clone()
training.wrapper.optimizer.param_groups[0]['lr'] = 0.01
assert isinstance(training.model.losses['loss_toy'], ToyLoss)
assert isinstance(training.model.connectors['scaled'], ScaleConnector)
factors = training.model.connectors['scaled'].factors
training.step('both')
assert not before.equal(weight)
assert not (factors == 1).all()
"""
MINE = """
import sys

sys.path += ['tools', 'mine']
from benchmark_guard import Watched, distiller_of

training = Watched(distiller_of('mine/my_recipe.py'))
training.step('both')
kinds = [type(x) for x in training.model.losses.values()]
assert [kind.__module__ for kind in kinds] == ['my_method']
"""

pytestmark = pytest.mark.e2e


def blocks(start: str = '') -> dict[str, str]:
    """Return the blocks of the page that start with a path, by their paths.

    Args:
        start: Words before the path.
    """
    pattern = rf'```python\n(# {start}(\w[\w/]*\.py)\n.*?)```'
    found = re.findall(pattern, PAGE.read_text(), re.DOTALL)
    return {path: code for code, path in found}


@pytest.fixture(scope='module')
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp('new') / 'tree'
    skip = shutil.ignore_patterns('__pycache__', '_build', 'methods', 'families')
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
    for path, code in blocks('add to ').items():
        with (tree / path).open('a') as file:
            file.write(code)
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


def test_the_blocks_are_a_method_with_its_recipe_and_tests() -> None:
    assert list(blocks()) == [LOSS, CONNECTOR, SOURCE, RECIPE, *TESTS]
    assert list(blocks('add to ')) == [
        'kdtoolbox/distillers/sources/__init__.py',
        'tests/connector_arguments.py',
    ]
    for code in blocks().values():
        lines = [line for line in code.splitlines() if 'https://' not in line]
        assert max(map(len, lines)) <= 88


def test_the_parts_are_found_listed_and_trained(tree: Path) -> None:
    run(tree, '-c', USE)


def test_a_method_may_be_in_a_project_of_its_own(tree: Path) -> None:
    [imports] = re.findall(r'^custom_imports = .*', PAGE.read_text(), re.MULTILINE)
    code = blocks()[LOSS].replace('ToyLoss', 'MineLoss')
    recipe = blocks()[RECIPE].replace('ToyLoss', 'MineLoss')
    (tree / 'mine').mkdir()
    (tree / 'mine/my_method.py').write_text(code)
    (tree / 'mine/my_recipe.py').write_text(f'{imports}\n{recipe}')
    run(tree, '-c', MINE)


def test_the_readme_and_the_model_index_list_it(tree: Path) -> None:
    collection = dict(Name='Toy', Code='kdtoolbox/losses/features/toy.py')
    metafile = yaml.safe_dump(dict(Collections=[collection]))
    (tree / 'configs/toy/metafile.yml').write_text(metafile)
    run(tree, 'docs/method_table.py')
    assert '\n  [Toy](configs/toy),\n' in (tree / 'README.md').read_text()
    index = (tree / 'model-index.yml').read_text().splitlines()
    assert '  - configs/toy/metafile.yml' in index


def test_its_own_tests_pass_and_the_sweep_covers_it(tree: Path) -> None:
    options = ['-q', '-p', 'no:cacheprovider', '-m', 'not e2e']
    options += ['-k', 'toy or ToyLoss or test_scale or ScaleConnector or reader']
    shared = [f'tests/losses/test_{name}.py' for name in ('sweep', 'arguments')]
    output = run(tree, '-m', 'pytest', *options, *TESTS, LOSS, CONNECTOR, *shared)
    found = re.search(r'(\d+) passed', output)
    # Two doctests and eight tests of its own, three properties of the loss, and two
    # tests each of the numbers of loss and connector.
    assert found is not None
    assert int(found[1]) == 17, output[-2000:]


def test_the_benchmark_measures_it(tree: Path) -> None:
    sizes = '--size 64 96 --strides 8 16 --channels 8 --boxes 3 --repeats 1'
    command = f'tools/benchmark.py losses --only ToyLoss --threads 1 {sizes}'
    output = run(tree, *command.split())
    rows = [line.split() for line in output.splitlines()]
    [row] = [row for row in rows if row[:1] == ['ToyLoss']]
    assert row[1] == 'fpn'
