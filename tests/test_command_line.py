from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.runner import CheckpointLoader

from kdtoolbox import command_line
from kdtoolbox.command_line import run_config, run_parser
from kdtoolbox.whole_files import WholeFileBackend

RECIPE = """
model = dict(type='None')
env_cfg = dict(mp_cfg=dict(opencv_num_threads=0), dist_cfg=dict(backend='nccl'))
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setenv('LOCAL_RANK', '0')
    path = tmp_path / 'recipe.py'
    path.write_text(RECIPE)
    yield str(path)
    register_backend('local', LocalBackend, force=True, prefixes='')


def configure(*arguments: str) -> Any:
    return run_config(run_parser(None).parse_args(arguments))


def test_every_run_reads_safely_and_writes_whole_files(recipe: str) -> None:
    configure(recipe)
    [loader] = set(CheckpointLoader._schemes.values())
    assert loader.__module__ == 'kdtoolbox.safe_loading'
    assert isinstance(get_file_backend(recipe), WholeFileBackend)


def test_processes_start_as_the_runner_would_start_them(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list = []
    for name in ('set_multi_processing', 'init_dist'):
        monkeypatch.setattr(
            command_line, name, lambda *args, **options: calls.append((args, options))
        )
    monkeypatch.setattr(command_line, 'get_device', lambda: 'cuda')
    configure(recipe)
    assert not calls
    options = ['--cfg-options', 'env_cfg.dist_cfg.timeout=9']
    configure(recipe, '--launcher', 'slurm', *options)
    assert calls == [
        ((), dict(opencv_num_threads=0, distributed=True)),
        (('slurm',), dict(backend='nccl', timeout=9)),
    ]
    # Where they run already, as on the CPU.
    monkeypatch.setattr(command_line, 'is_distributed', lambda: True)
    configure(recipe, '--launcher', 'slurm')
    assert len(calls) == 2
