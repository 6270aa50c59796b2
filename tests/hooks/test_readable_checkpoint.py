from collections.abc import Callable
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.registry import PARAM_SCHEDULERS as DET_SCHEDULERS
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS
from mmseg.registry import PARAM_SCHEDULERS as SEG_SCHEDULERS
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kdtoolbox.checkpoints.plain_values import NotPlainError
from kdtoolbox.checkpoints.reading import read_checkpoint
from kdtoolbox.hooks.readable_checkpoint import ReadableCheckpointHook, readable

Toy = SimpleNamespace
ARGUMENTS = dict(
    step_size=1, param_name='lr', factor=0.5, milestones=[1], T_max=3, gamma=0.9,
    eta_max=0.2, eta_min=0.01, total_steps=9, monitor='loss', periods=[2, 4],
    restart_weights=[1, 1], end=9,
)  # fmt: skip
# Kinds that need several processes, and the base class.
NO_OPTIMIZERS = {'Optimizer', 'ZeroRedundancyOptimizer'}


def all_schedulers() -> list[type]:
    """Return the schedulers of mmengine, mmdet and mmseg."""
    kinds = set()
    for registry in (PARAM_SCHEDULERS, DET_SCHEDULERS, SEG_SCHEDULERS):
        registry.import_from_location()
        kinds |= set(registry.module_dict.values())
    return sorted(kinds, key=lambda kind: kind.__name__)


def stepped(optimizer: torch.optim.Optimizer) -> OptimWrapper:
    """Return a wrapper around an optimizer after one step."""
    for group in optimizer.param_groups:
        for parameter in group['params']:
            grad = torch.ones_like(parameter)
            sparse = 'Sparse' in type(optimizer).__name__
            parameter.grad = grad.to_sparse() if sparse else grad
    optimizer.step(lambda: torch.ones(()))
    return OptimWrapper(optimizer)


def restored(checkpoint: dict, folder: Path) -> tuple[dict, list[str]]:
    content, dropped = readable(checkpoint)
    torch.save(content, folder / 'a.pth')
    return read_checkpoint(folder / 'a.pth'), dropped


def built(kind: type, optimizer: Any) -> Any:
    # The classes for lr and momentum pass all arguments to their bases.
    names = {name for base in kind.__mro__[:-1] for name in signature(base).parameters}
    if 'ParamScheduler' not in kind.__name__:
        names -= {'param_name'}
    given = {key: ARGUMENTS[key] for key in ARGUMENTS.keys() & names}
    return kind(optimizer=optimizer, **given)


@pytest.mark.parametrize('kind', all_schedulers(), ids=lambda kind: kind.__name__)
def test_every_scheduler_resumes_from_its_readable_state(
    kind: type, tmp_path: Path
) -> None:
    def start() -> tuple[Any, Any]:
        weight = nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        return optimizer, built(kind, optimizer)

    def step(scheduler: Any) -> None:
        optimizer.step()
        scheduler.step(*[dict(loss=1.0)] * ('Plateau' in kind.__name__))

    optimizer, scheduler = start()
    for _ in range(2):
        step(scheduler)
    state = dict(param_schedulers=[scheduler.state_dict()], state_dict={})
    content, dropped = restored(state, tmp_path)
    assert not dropped
    saved = optimizer.state_dict()
    step(scheduler)
    expected = scheduler.get_last_value(), scheduler.last_step
    optimizer, resumed = start()
    optimizer.load_state_dict(saved)
    resumed.load_state_dict(content['param_schedulers'][0])
    step(resumed)
    assert (resumed.get_last_value(), resumed.last_step) == expected
    assert resumed.state_dict().keys() == scheduler.state_dict().keys()


@pytest.mark.parametrize('name', sorted(OPTIMIZERS.module_dict.keys() - NO_OPTIMIZERS))
def test_every_optimizer_goes_on_from_its_readable_state(
    name: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    kind = OPTIMIZERS.get(name)

    def start() -> torch.optim.Optimizer:
        return kind([nn.Parameter(torch.ones(2, 2))], lr=0.1)

    wrapper = stepped(start())
    content, dropped = restored(dict(optimizer=wrapper.state_dict()), tmp_path)
    assert not dropped
    resumed = OptimWrapper(start())
    resumed.load_state_dict(content['optimizer'])
    assert not list(differences(resumed.state_dict(), wrapper.state_dict()))


def differences(left: Any, right: Any, place: str = '') -> Any:
    """Yield the places where two states differ."""
    if isinstance(left, Tensor):
        if not torch.equal(left, right):
            yield place
    elif isinstance(left, dict):
        for key in left.keys() | right.keys():
            yield from differences(left[key], right[key], f'{place}.{key}')
    elif left != right:
        yield place


def train(
    make_runner: Callable, model: Any, steps: int, hooks: tuple = (), **arguments: Any
) -> Any:
    schedule = dict(type='OneCycleLR', eta_max=0.1, total_steps=4, by_epoch=False)
    runner = make_runner(
        model,
        train_cfg=dict(by_epoch=False, max_iters=steps),
        checkpoint=dict(by_epoch=False),
        param_scheduler=arguments.pop('param_scheduler', schedule),
        **arguments,
    )
    for hook in (*hooks, ReadableCheckpointHook()):
        runner.register_hook(hook)
    return runner


@pytest.mark.parametrize('hooks', [[], [dict(type='EMAHook')]], ids=['plain', 'ema'])
def test_a_run_with_a_function_in_its_schedule_resumes_exactly(
    hooks: list, toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    config = toy.gfl()['model']
    for name, source in dict(whole=None, resumed=tmp_path / 'whole/iter_2.pth').items():
        train(
            make_runner,
            config,
            4,
            custom_hooks=hooks,
            work_dir=str(tmp_path / name),
            load_from=source and str(source),
            resume=source is not None,
        ).train()
    whole, resumed = (
        read_checkpoint(tmp_path / name / 'iter_4.pth') for name in ('whole', 'resumed')
    )
    assert not list(differences(whole['state_dict'], resumed['state_dict']))
    assert not list(differences(whole['optimizer'], resumed['optimizer']))
    [schedule] = whole['param_schedulers']
    assert [schedule] == resumed['param_schedulers']
    assert schedule['last_step'] == 3
    assert 'anneal_func' not in schedule


class Odd:
    """An object that cannot be converted to plain types."""


META = dict(
    classes=('a', 'b', 'c'),
    palette=np.zeros((3, 3), np.uint8),
    root=Path('data'),
    ids=range(3),
    odd=Odd(),
    rename=lambda name: name,
)


def test_any_meta_of_a_data_set_can_be_saved_and_read(
    toy: Toy,
    make_runner: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = train(make_runner, toy.gfl()['model'], 2)
    runner.message_hub.update_info('odd', Odd())
    samples = Listed(runner._train_dataloader.dataset)
    runner._train_dataloader = DataLoader(samples, collate_fn=pseudo_collate)
    warnings: list[str] = []
    monkeypatch.setattr(runner.logger, 'warning', warnings.append)
    runner.train()
    found = read_checkpoint(tmp_path / 'iter_2.pth')
    meta = found['meta']['dataset_meta']
    assert meta['palette'].tolist() == META['palette'].tolist()
    assert (meta['root'], meta['ids']) == ('data', [0, 1, 2])
    assert meta.keys() == META.keys() - {'odd', 'rename'}
    assert 'odd' not in found['message_hub']['runtime_info']
    [line] = [line for line in warnings if 'left out' in line]
    for place in ('meta.dataset_meta.odd', 'meta.dataset_meta.rename', 'info.odd'):
        assert f'{place} (' in line


class Listed(list):
    """A data set with a given meta."""

    metainfo = META


class Adds(Hook):
    """Add a value to each checkpoint."""

    priority = 'LOWEST'

    def __init__(self, *keys: str) -> None:
        self.keys = keys

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        for key in self.keys[:-1]:
            checkpoint = checkpoint[key]
        checkpoint[self.keys[-1]] = Odd()


@pytest.mark.parametrize(
    'place', [('optimizer', 'odd'), ('state_dict', 'a._extra_state')]
)
def test_weights_that_cannot_be_read_again_stop_the_run_at_its_start(
    place: tuple, toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    runner = train(make_runner, toy.gfl()['model'], 2, (Adds(*place),))
    text = f'checkpoint.{".".join(place)}'
    with pytest.raises(NotPlainError, match=text.replace('.', r'\.')):
        runner.train()
    assert runner.iter == 0
    assert not list(tmp_path.glob('*.pth'))


def test_an_object_of_another_hook_is_left_out(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    train(make_runner, toy.gfl()['model'], 2, (Adds('odd'),)).train()
    assert 'odd' not in read_checkpoint(tmp_path / 'iter_2.pth')


def test_an_unreadable_checkpoint_stops_the_run_at_its_start(
    toy: Toy, make_runner: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = train(make_runner, toy.gfl()['model'], 2, (Adds('odd'),))
    monkeypatch.setattr(
        'kdtoolbox.hooks.readable_checkpoint.readable',
        lambda content: (dict(content), []),
    )
    with pytest.raises(ValueError, match='could not be read again'):
        runner.train()
    assert runner.iter == 0


def test_the_probe_writes_no_file(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    runner = make_runner(
        toy.gfl()['model'], checkpoint=dict(interval=9, save_last=False)
    )
    runner.register_hook(ReadableCheckpointHook())
    runner.train()
    assert not list(tmp_path.rglob('*.pth'))
