import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml

from kdtoolbox import __version__
from kdtoolbox.datasets import PRESETS, make_digit_scenes

ROOT = Path(__file__).parents[1]
MIM = ('configs', 'tools', 'model-index.yml')
SOURCES = (
    *MIM,
    'kdtoolbox',
    'requirements',
    'docs',
    'setup.py',
    'pyproject.toml',
    'MANIFEST.in',
    'README.md',
    'CHANGELOG.md',
    'LICENSE',
)

needs_openmim = pytest.mark.skipif(
    not list(distributions(name='openmim')), reason='openmim is not installed'
)


def files_in(folder: Path) -> set[str]:
    """Return the files of a distribution, relative to the parent of `folder`."""
    return {
        path.relative_to(folder.parent).as_posix()
        for path in folder.rglob('*')
        if path.is_file() and not {'__pycache__', '.mim'} & set(path.parts)
    }


def run(*command: str | Path, cwd: Path, site: Path | None = None) -> str:
    """Run Python in a folder, with the packages in ``site`` before all others."""
    env = os.environ | (dict(PYTHONPATH=str(site)) if site else {})
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make(*arguments: str) -> subprocess.CompletedProcess:
    """Return the commands that make would run."""
    # This test may run inside `make test PY=...`, which passes its variables on.
    env = {key: value for key, value in os.environ.items() if 'MAKE' not in key}
    command = ['make', '-n', *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def build(hook: str, tree: Path, out: Path) -> Path:
    """Call one hook of the build backend, as pip does."""
    code = f'from setuptools import build_meta as b; b.{hook}({str(out)!r})'
    out.mkdir()
    run('-c', code, cwd=tree)
    return next(out.iterdir())


def wheel_of(source: Path, out: Path) -> Path:
    pip = ('-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation')
    run(*pip, '-w', out, source, cwd=out.parent)
    return next(out.glob('kdtoolbox-*.whl'))


@pytest.fixture(scope='module')
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources after an editable install."""
    tree = tmp_path_factory.mktemp('packaging') / 'tree'
    tree.mkdir()
    ignored = shutil.ignore_patterns('__pycache__', '.mim', '_build')
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
        else:
            shutil.copy2(ROOT / name, tree / name)
    build('build_editable', tree, tree.parent / 'editable')
    return tree


@pytest.fixture(scope='module')
def wheel(tree: Path) -> Path:
    return wheel_of(tree, tree.parent / 'wheel')


@pytest.fixture(scope='module')
def site(wheel: Path) -> Path:
    """A folder of packages in which the wheel is installed."""
    site = wheel.parent / 'site'
    pip = ('-m', 'pip', 'install', '-q', '--no-deps', '--target', site)
    run(*pip, wheel, cwd=wheel.parent)
    return site


def test_model_index_lists_every_metafile() -> None:
    listed = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    there = [path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/*/*.yml')]
    assert listed == sorted(there)


def test_every_requirement_is_pinned() -> None:
    requirements = ROOT / 'requirements'
    lines = (requirements / 'constraints.txt').read_text().splitlines()
    pins = {line.split('==')[0] for line in lines if '==' in line}
    asked = {
        line.split('>=')[0]
        for path in requirements.glob('*.txt')
        if path.name != 'constraints.txt'
        for line in path.read_text().splitlines()
        if line and not line.startswith('#')
    }
    assert asked <= pins


@pytest.mark.parametrize(
    ('stack', 'venv'), [('forks', '.venv'), ('openmmlab', '.venv-openmmlab')]
)
def test_each_stack_has_an_environment_of_its_own(stack: str, venv: str) -> None:
    plan = make('test', f'STACK={stack}').stdout
    assert f'{venv}/bin/python -m pytest' in plan


def test_an_unknown_stack_is_refused() -> None:
    assert 'STACK is fork, not forks or openmmlab' in make('test', 'STACK=fork').stderr


@pytest.mark.e2e
def test_wheel_carries_the_package_and_its_mim(tree: Path, wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    mim = {name for name in names if name.startswith('kdtoolbox/.mim/')}
    expected = files_in(tree / 'configs') | files_in(tree / 'tools')
    assert mim == {f'kdtoolbox/.mim/{name}' for name in expected | {'model-index.yml'}}

    package = {name for name in names - mim if '.dist-info/' not in name}
    assert package == files_in(tree / 'kdtoolbox')


@pytest.mark.e2e
@pytest.mark.usefixtures('wheel')
def test_building_a_wheel_leaves_an_editable_tree_alone(tree: Path) -> None:
    for name in MIM:
        link = tree / 'kdtoolbox' / '.mim' / name
        assert link.is_symlink()
        assert link.resolve() == tree / name
    assert files_in(tree / 'configs') == files_in(ROOT / 'configs')


@pytest.mark.e2e
def test_sdist_builds_the_same_wheel(tree: Path, wheel: Path, tmp_path: Path) -> None:
    sdist = build('build_sdist', tree, tmp_path / 'sdist')
    rebuilt = wheel_of(sdist, tmp_path / 'wheel')
    names = [sorted(zipfile.ZipFile(path).namelist()) for path in (wheel, rebuilt)]
    assert names[0] == names[1]


@pytest.mark.e2e
def test_installed_wheel_imports(site: Path, tmp_path: Path) -> None:
    code = 'import kdtoolbox; print(kdtoolbox.__version__, kdtoolbox.__file__)'
    version, file = run('-c', code, cwd=tmp_path, site=site).split()
    assert version == __version__
    assert Path(file).is_relative_to(site)


def test_a_recipe_is_found_by_its_name() -> None:
    """`mim train kdtoolbox NAME.py` looks for NAME.py in all folders of recipes."""
    names = [path.name for path in (ROOT / 'configs').rglob('*.py')]
    assert len(names) == len(set(names)) > 100


def command(by: str, site: Path, job: str, checkpoint: str | None) -> list[str | Path]:
    """Return the command that trains or tests on the digits with an installed wheel."""
    if by == 'mim':
        weights = ['--checkpoint', checkpoint] if checkpoint else []
        return ['-m', 'mim', job, 'kdtoolbox', 'det_distilled.py', *weights]
    # This is what mim starts.
    mim = site / 'kdtoolbox/.mim'
    config = mim / 'configs/digits/det_distilled.py'
    weights = [checkpoint] if checkpoint else []
    return [mim / f'tools/{job}.py', config, *weights, '--launcher', 'none']


@pytest.mark.e2e
@pytest.mark.parametrize('by', ['tools', pytest.param('mim', marks=needs_openmim)])
def test_an_installed_wheel_trains_and_tests(
    by: str, site: Path, tmp_path: Path
) -> None:
    scenes = tmp_path / 'data/digits_det'
    make_digit_scenes(scenes, PRESETS['det'], train=4, val=2, workers=1)
    short = [f'train_cfg.{key}=1' for key in ('max_iters', 'val_interval')]
    short += ['default_hooks.checkpoint.interval=1', 'train_dataloader.batch_size=2']
    short += [
        f'{name}_dataloader.{key}'
        for name in ('train', 'val', 'test')
        for key in ('num_workers=0', 'persistent_workers=False')
    ]
    options = ['--work-dir', 'work', '--cfg-options', *short]
    train = command(by, site, 'train', None)
    run(*train, *options, cwd=tmp_path, site=site)
    test = command(by, site, 'test', 'work/student_iter_1.pth')
    assert 'Iter(test) [1/1]' in run(*test, *options, cwd=tmp_path, site=site)


@pytest.mark.e2e
@needs_openmim
def test_mim_searches_the_recipes(site: Path, tmp_path: Path) -> None:
    search = ('-m', 'mim', 'search', 'kdtoolbox')
    recipe = 'pkd_fpn_gfl_r101_gfl_r50_1x_coco'
    named = run(*search, '--config', recipe, cwd=tmp_path, site=site)
    assert f'configs/pkd/{recipe}.py' in named
    found = run(*search, '--model', 'cwd', '--dataset', 'coco', cwd=tmp_path, site=site)
    assert 'config id: cwd_fpn_retina_x101_retina_r50_2x_coco' in found
    assert 'cityscapes' not in found
