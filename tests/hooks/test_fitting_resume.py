from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdtoolbox.hooks import FittingResumeHook

Toy = SimpleNamespace
STEPS = [dict(type='LinearLR', start_factor=0.5, by_epoch=False, end=3)]
COSINE = [dict(type='CosineAnnealingLR', T_max=4, by_epoch=False)]
ADAM = dict(type='AdamW', lr=0.01)
EMA = [dict(type='EMAHook', momentum=0.1)]


def model(toy: Toy, width: int = 8, names: tuple = ('a', 'b'), **changes: Any) -> dict:
    """Return the config of a distiller with one connector per name."""
    parts = dict(type='CWDLoss', teacher='teacher.fpn')
    connector = dict(
        type='ConvConnector', in_channels=8, out_channels=width, kernel_size=1
    )
    return toy.distiller(
        toy.gfl(),
        toy.gfl(out=width),
        connectors={name: dict(connector, input='student.fpn') for name in names},
        losses={f'loss_{name}': dict(parts, student=name) for name in sorted(names)},
        **changes,
    )


@pytest.fixture
def train(make_runner: Callable, tmp_path: Path) -> Callable:
    def run(model: dict, partly: bool = False, **options: Any) -> Any:
        optimizer = options.pop('optimizer', dict(type='SGD', lr=0.01, momentum=0.9))
        wrapper = options.pop('wrapper', {})
        options.setdefault('param_scheduler', STEPS)
        torch.manual_seed(0)
        runner = make_runner(model, **options)
        runner.optim_wrapper = dict(optimizer=optimizer, **wrapper)
        runner.register_hook(FittingResumeHook(partly))
        runner.train()
        return runner

    return run


@pytest.fixture(scope='module')
def first_epoch() -> dict[str, bytes]:
    """Return the checkpoint of `saved`, which is trained only once."""
    return {}


@pytest.fixture
def saved(
    train: Callable, toy: Toy, tmp_path: Path, first_epoch: dict[str, bytes]
) -> Path:
    path = tmp_path / 'epoch_1.pth'
    if not first_epoch:
        train(model(toy), train_cfg=dict(by_epoch=True, max_epochs=1))
        first_epoch['content'] = path.read_bytes()
    path.write_bytes(first_epoch['content'])
    path.with_name('last_checkpoint').write_text(str(path))
    return path


def drop(part: str, where: str = 'state_dict') -> Callable[[dict], None]:
    def change(content: dict) -> None:
        state = content[where]
        for key in [key for key in state if part in key]:
            del state[key]

    return change


def swap(content: dict) -> None:
    """Move the last parameter to the front."""
    state = content['state_dict']
    key = list(state)[-1]
    content['state_dict'] = {key: state[key]} | state


def join_groups(content: dict) -> None:
    content['optimizer']['param_groups'] *= 2


def lose_a_parameter(content: dict) -> None:
    content['optimizer']['param_groups'][0]['params'].pop()


CONTENTS = {
    'half the keys missing': (
        drop('backbone'),
        r'student\.backbone\.\S+ +- +\(.*\)\n  and 108 more\n',
    ),
    'a connector missing': (
        drop('connectors.a'),
        r'connectors\.a\.\S+ +- +\(8, 8, 1, 1',
    ),
    'another order': (swap, r'parameter 0 of the model +\S+ .*student\.backbone'),
    'more groups': (join_groups, r'optimizer: groups +2 +1'),
    'a parameter less': (lose_a_parameter, r'group 0 +\d+ parameters +\d+ parameters'),
    'no schedulers': (
        lambda content: content.pop('param_schedulers'),
        r'param_scheduler +0 +1',
    ),
    'no optimizer': (
        lambda content: content['optimizer'].clear(),
        r'optimizer +- +there',
    ),
}
RUNS: dict[str, tuple[dict, dict, str]] = {
    'a connector renamed': (
        dict(names=('c', 'b')),
        {},
        r'connectors\.a\.\S+ +\(8.*\) +-',
    ),
    'wider': (dict(width=16), {}, r'connectors\.a\.\S+ +\(8, 8.*\(16, 8, '),
    'another optimizer': ({}, dict(optimizer=ADAM), r'group 0 +momentum.* +betas, eps'),
    'another schedule': (
        {},
        dict(param_scheduler=COSINE),
        r'AnnealingLR +start_factor',
    ),
    'one schedule more': ({}, dict(param_scheduler=STEPS + COSINE), r'scheduler +1 +2'),
    'no schedule': ({}, dict(param_scheduler=None), r'param_scheduler +1 +0'),
    'an average': ({}, dict(custom_hooks=EMA), r'average of EMAHook +- +there'),
    'groups': (
        {},
        dict(wrapper=dict(paramwise_cfg=dict(bias_lr_mult=2.0))),
        r'optimizer: groups +1 +\d\d',
    ),
}


@pytest.mark.parametrize('case', CONTENTS)
def test_resuming_a_checkpoint_that_does_not_fit_lists_the_differences(
    train: Callable, toy: Toy, saved: Path, case: str
) -> None:
    change, expected = CONTENTS[case]
    content = torch.load(saved, weights_only=False)
    change(content)
    torch.save(content, saved)
    with pytest.raises(ValueError, match=expected) as error:
        train(model(toy), resume=True, load_from=str(saved))
    assert "epoch_1.pth' does not fit this run" in str(error.value)
    assert 'add --resume-partly' in str(error.value)
    assert len(str(error.value).splitlines()) < 26


@pytest.mark.parametrize('case', RUNS)
def test_resuming_with_a_changed_recipe_is_refused(
    train: Callable, toy: Toy, saved: Path, case: str
) -> None:
    changes, options, expected = RUNS[case]
    with pytest.raises(ValueError, match=expected):
        train(model(toy, **changes), resume=True, **options)
    assert not saved.with_name('epoch_2.pth').exists()
    train(model(toy, **changes), partly=True, resume=True, **options)
    assert saved.with_name('epoch_2.pth').exists()


def test_the_same_recipe_resumes(train: Callable, toy: Toy, saved: Path) -> None:
    runner = train(model(toy), resume=True)
    assert runner.iter == 4
    other = [dict(STEPS[0], end=5)]
    # Another length of the schedule fits, and so does `load_from` without `resume`.
    train(model(toy), resume=True, train_cfg=dict(by_epoch=True, max_epochs=3))
    train(model(toy), param_scheduler=other, load_from=str(saved))
    train(model(toy, names=('c',)), load_from=str(saved))


def test_resuming_partly_keeps_what_fits(
    train: Callable, toy: Toy, saved: Path
) -> None:
    done = dict(by_epoch=True, max_epochs=1)
    options = dict(partly=True, resume=True, train_cfg=done)
    before = torch.load(saved, weights_only=False)['state_dict']
    runner = train(model(toy, width=16, names=('a', 'c')), **options)
    after = runner.model.state_dict()
    assert all(
        torch.equal(after[key], value)
        for key, value in before.items()
        if key.startswith('student.')
    )
    # The optimizer starts without the momentum of another part.
    assert not runner.optim_wrapper.optimizer.state
    assert runner.optim_wrapper.optimizer.param_groups[0]['lr'] == 0.005
    assert runner.iter == 2
    runner = train(model(toy), **options)
    assert runner.optim_wrapper.optimizer.state


def test_resuming_with_an_average_fits(train: Callable, toy: Toy) -> None:
    for epochs in (1, 2):
        runner = train(
            model(toy),
            custom_hooks=EMA,
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            resume=epochs > 1,
        )
    assert runner.iter == 4
    train(model(toy, width=16), True, custom_hooks=EMA, resume=True)
    with pytest.raises(ValueError, match='average of EMAHook +there +-'):
        train(model(toy), resume=True)
