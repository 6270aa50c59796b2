"""Caches of teachers, filled and read from the command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file

from kdtoolbox.datasets import PRESETS, make_digit_scenes

ROOT = Path(__file__).resolve().parents[2]
IMAGES, VIEWS = 16, 2
RECIPE = """
custom_imports = dict(imports=['uncached'])
val_cfg = val_dataloader = val_evaluator = None
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=3)
train_dataloader = dict(
    batch_size=6,
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(data_root='{data}/', pipeline=_base_.train_pipeline),
)
train_dataloader['dataset']['pipeline'][2:2] = [
    dict(type='RandomFlip', prob=0.5), dict(type='PhotoMetricDistortion')
]
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(by_epoch=True, interval=1)
)
log_processor = dict(by_epoch=True, window_size=1)
model = dict(teacher=dict(cache=dict(path='{caches}', views=2)))
"""
pytestmark = pytest.mark.e2e


def tool(name: str, *arguments: str | Path, status: int = 0) -> str:
    path = os.pathsep.join(map(str, (ROOT, Path(__file__).parent)))
    run = subprocess.run(
        [sys.executable, f'tools/{name}.py', *map(str, arguments)],
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=path, COLUMNS='200'),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert run.returncode == status, run.stdout[-2000:] + run.stderr[-4000:]
    return run.stdout + run.stderr


@pytest.fixture(scope='module')
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('caches')
    data = folder / 'data'
    make_digit_scenes(data, PRESETS['det'], train=IMAGES, val=2, workers=1)
    path = folder / 'det.py'
    text = RECIPE.format(data=data, caches=folder / 'caches')
    path.write_text(f"_base_ = '{ROOT}/configs/digits/det_distilled.py'\n{text}")
    return path


def entries(config: Path) -> dict[Path, bytes]:
    found = (config.parent / 'caches').rglob('*.safetensors')
    return {path: path.read_bytes() for path in found}


def ran(output: str) -> list[tuple[int, int]]:
    """Return for each epoch how many images were read and how many computed."""
    counts = re.findall(r'records of (\d+) images were read .* of (\d+) comp', output)
    return [(int(read), int(computed)) for read, computed in counts]


def losses(output: str) -> list[list[float]]:
    lines = re.findall(r'Epoch\(train\).*', output)
    return [
        [float(x) for x in re.findall(r'loss\w*: ([\d.]+)', line)] for line in lines
    ]


def weights(work_dir: Path) -> dict[str, torch.Tensor]:
    path = work_dir / 'epoch_3.pth'
    return torch.load(path, map_location='cpu', weights_only=False)['state_dict']


def test_a_filled_cache_trains_as_the_teacher_and_never_runs_it(
    config: Path, tmp_path: Path
) -> None:
    output = tool('cache_teacher', config, '--yes')
    assert f'{IMAGES * VIEWS} computed, 0 were there' in output
    assert f'{IMAGES} x {VIEWS}' in output
    filled = entries(config)
    assert len(filled) == IMAGES * VIEWS

    cached = tool('train', config, '--work-dir', tmp_path / 'cached')
    assert ran(cached) == [(IMAGES, 0)] * 3
    assert entries(config) == filled

    hooked = tmp_path / 'online.py'
    hook = "custom_hooks = [dict(type='UncachedHook')]"
    hooked.write_text(f"_base_ = '{config}'\n{hook}\n")
    online = tool('train', hooked, '--work-dir', tmp_path / 'online')
    assert ran(online) == []
    left, right = losses(cached), losses(online)
    assert len(left) == len(right) == 9
    assert len({*map(tuple, left)}) == 9
    for one, other in zip(left, right, strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=2e-3)

    # A second run equals the first one exactly.
    again = tool('train', config, '--work-dir', tmp_path / 'again')
    assert losses(again) == left
    expected = weights(tmp_path / 'cached')
    for key, value in weights(tmp_path / 'again').items():
        assert torch.equal(value, expected[key]), key


def test_an_interrupted_fill_goes_on_where_it_ended(
    config: Path, tmp_path: Path
) -> None:
    option = ['--cfg-options', f'model.teacher.cache.path={tmp_path}/caches']
    # A training fills an empty cache in its first epochs.
    log = tool('train', config, '--work-dir', tmp_path / 'run', *option)
    assert ran(log) == [(0, IMAGES), (0, IMAGES), (IMAGES, 0)]
    whole = sorted((tmp_path / 'caches').rglob('*.safetensors'))
    contents = {path: path.read_bytes() for path in whole}
    for path in whole[::4]:
        path.unlink()
    whole[1].write_bytes(contents[whole[1]][:100])
    output = tool('cache_teacher', config, '--yes', *option)
    assert f'{len(whole[::4]) + 1} computed' in output
    assert f'{whole[1]} is damaged and gets replaced' in output
    assert sorted((tmp_path / 'caches').rglob('*.safetensors')) == whole
    for path, content in contents.items():
        # Sums of a model may round otherwise in a batch of another size.
        for name, value in load(content).items():
            near = torch.allclose(load_file(path)[name], value, rtol=2e-3, atol=1e-3)
            assert near, (path, name)
    kept = [path for path in whole if path not in {whole[1], *whole[::4]}]
    assert all(path.read_bytes() == contents[path] for path in kept)


def test_faults_end_the_tool_before_it_computes(config: Path, tmp_path: Path) -> None:
    def fails(*arguments: str) -> str:
        return tool('cache_teacher', config, *arguments, status=2)

    assert 'add --yes' in fails()
    options = ['--yes', '--cfg-options']
    assert 'no teacher has a cache' in fails(*options, 'model.teacher.cache=None')
    assert 'cache.views: expected' in fails(*options, 'model.teacher.cache.views=0')
    huge = fails(
        *options,
        f'model.teacher.cache.path={tmp_path}/a',
        'model.teacher.cache.views=999999999',
    )
    assert 'bytes and' in huge
    assert 'another' in huge
    assert not list(tmp_path.iterdir())
