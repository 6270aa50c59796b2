from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import CheckpointLoader

from kdtoolbox.checkpoints.writing import WholeFileBackend
from kdtoolbox.runs import command_line
from kdtoolbox.runs.command_line import run_config, run_parser

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
    assert loader.__module__ == 'kdtoolbox.checkpoints.reading'
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
    # On the CPU the processes have started already.
    monkeypatch.setattr(command_line, 'is_distributed', lambda: True)
    configure(recipe, '--launcher', 'slurm')
    assert len(calls) == 2


# The wrapper of the model on a CPU.

KIND = 'MMDistributedDataParallel'


@pytest.fixture
def wrapper(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., dict]]:
    """Return a function from lines of a config and options to the wrapper's config."""
    store = f'file://{tmp_path}/store'
    torch.distributed.init_process_group('gloo', store, rank=0, world_size=1)
    monkeypatch.setattr(command_line, 'get_device', lambda: 'cpu')

    def choose(lines: str = '', *options: str) -> dict:
        Path(recipe).write_text(RECIPE + lines)
        chosen = ['--cfg-options', *options] if options else []
        return configure(recipe, '--launcher', 'pytorch', *chosen).model_wrapper_cfg

    yield choose
    torch.distributed.destroy_process_group()


UNUSED = 'find_unused_parameters'


def test_on_a_cpu_the_default_wrapper_uses_no_device(
    wrapper: Callable,
) -> None:
    assert wrapper() == dict(type=KIND, broadcast_buffers=False, device_ids=None)


@pytest.mark.parametrize('options', [(), ('model_wrapper_cfg.static_graph=True',)])
def test_unused_parameters_reach_the_wrapper(wrapper: Callable, options: tuple) -> None:
    assert wrapper(f'{UNUSED} = True', *options)[UNUSED] is True
    assert wrapper('', f'{UNUSED}=True', *options)[UNUSED] is True
    # The config of the wrapper itself takes precedence.
    own = f'\nmodel_wrapper_cfg = dict({UNUSED}=False)'
    assert wrapper(f'{UNUSED} = True' + own, *options)[UNUSED] is False


def test_a_wrapper_of_the_recipe_keeps_its_arguments(wrapper: Callable) -> None:
    lines = (
        f"model_wrapper_cfg = dict(type='mmengine.{KIND}', bucket_cap_mb=1, "
        'device_ids=[0], output_device=0)'
    )
    kept = dict(type=f'mmengine.{KIND}', bucket_cap_mb=1, device_ids=None)
    assert wrapper(lines) == kept
    option = 'model_wrapper_cfg.detect_anomalous_params=True'
    assert wrapper(lines, option) == dict(kept, detect_anomalous_params=True)
    alone = dict(type=KIND, detect_anomalous_params=True, device_ids=None)
    assert wrapper('', option) == alone


def test_a_wrapper_class_of_the_user_is_kept(
    wrapper: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = dict(MODEL_WRAPPERS.module_dict)
    monkeypatch.setattr(MODEL_WRAPPERS, '_module_dict', kinds)
    mine = type('Mine', (MMDistributedDataParallel,), {})
    MODEL_WRAPPERS.register_module(module=mine)
    found = wrapper("model_wrapper_cfg = dict(type='Mine', speed=1)")
    assert found == dict(type='Mine', speed=1, device_ids=None)


@pytest.mark.parametrize(
    'kind',
    [
        'MMSeparateDistributedDataParallel',
        'MMFullyShardedDataParallel',
        'DistributedDataParallel',
        'DataParallel',
        'Unheard',
    ],
)
def test_a_wrapper_that_cannot_train_on_a_cpu_is_refused(
    wrapper: Callable, kind: str
) -> None:
    cure = f"model_wrapper_cfg.type: .*'{kind}'.*model_wrapper_cfg.type={KIND}"
    with pytest.raises(ValueError, match=cure):
        wrapper(f"model_wrapper_cfg = dict(type='{kind}')")


def test_batch_norms_over_processes_are_refused_on_a_cpu(wrapper: Callable) -> None:
    with pytest.raises(ValueError, match=r"sync_bn: 'torch'.*sync_bn=None"):
        wrapper("sync_bn = 'torch'")
    assert wrapper("sync_bn = 'torch'", 'sync_bn=None')['type'] == KIND


@pytest.mark.parametrize(
    ('option', 'name'),
    [('modle.type=A', 'model'), ('train_dataloder.batch_size=2', 'train_dataloader')],
)
def test_an_option_that_begins_with_a_typo_is_refused(
    recipe: str, option: str, name: str
) -> None:
    with pytest.raises(ValueError, match=f'{option[:8]}.*; did you mean {name!r}'):
        configure(recipe, '--cfg-options', option)


def test_an_option_may_add_an_entry(recipe: str) -> None:
    options = ('my_entry.size=1', 'val_dataloader=None', 'val_cfg.type=ValLoop')
    cfg = configure(recipe, '--cfg-options', *options)
    assert (cfg.my_entry.size, cfg.val_cfg.type) == (1, 'ValLoop')
