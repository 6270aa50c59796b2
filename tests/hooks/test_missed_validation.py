from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from kdtoolbox.hooks import (
    BestCheckpointHook,
    ExportStudentHook,
    MissedValidationHook,
    ReadableCheckpointHook,
)

Toy = SimpleNamespace
EPOCHS = dict(by_epoch=True, max_epochs=2)
# The loop of two batches an epoch, by iteration.
ITERATIONS = dict(by_epoch=False, max_iters=4, val_interval=2)
SCORES = {2: 0.1, 4: 0.9}


class Killed(BaseException):
    """Ends a run like a signal: no handler of `Exception` runs."""


class ByIteration(BaseMetric):
    """Return a fixed score per iteration, and record the iterations."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []
        self.runner: Any = None

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict:
        self.asked.append(self.runner.iter)
        return dict(score=SCORES.get(self.runner.iter, 0.0))


class KillHook(Hook):
    """End the run at one point of the validation of an iteration."""

    priority = 'HIGHEST'

    def __init__(self, point: str, iteration: int) -> None:
        self.point, self.iteration = point, iteration

    def meet(self, runner: Runner, point: str) -> None:
        if (point, runner.iter) == (self.point, self.iteration):
            raise Killed

    def before_val(self, runner: Runner) -> None:
        self.meet(runner, 'before_val')

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        self.meet(runner, 'after_val_epoch')

    def after_val(self, runner: Runner) -> None:
        self.meet(runner, 'after_val')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        # Only best checkpoints have no optimizer.
        self.meet(runner, 'best' if 'optimizer' not in checkpoint else '')


@pytest.fixture
def train(toy: Toy, make_runner: Callable) -> Callable[..., list[int]]:
    """Return a function that trains in a folder and lists the validated iterations."""

    def run(folder: Path, loop: dict, *kill: Any, **options: Any) -> list[int]:
        data = toy.det_data(((64, 64),))
        sample = dict(inputs=data['inputs'][0], data_samples=data['data_samples'][0])
        metric = ByIteration()
        torch.manual_seed(0)
        by_epoch = loop['by_epoch']
        saver = dict(save_best='score', rule='greater', by_epoch=by_epoch)
        saver |= dict(interval=1 if by_epoch else 2)
        runner = make_runner(
            toy.distiller(toy.gfl()),
            work_dir=str(folder),
            checkpoint=saver,
            train_cfg=dict(loop),
            val_dataloader=DataLoader([sample], collate_fn=pseudo_collate),
            val_cfg=dict(),
            val_evaluator=Evaluator([metric]),
            **options,
        )
        metric.runner = runner
        hooks = [BestCheckpointHook, ExportStudentHook, ReadableCheckpointHook]
        for kind in (*hooks, MissedValidationHook):
            runner.register_hook(kind())
        if kill:
            runner.register_hook(KillHook(*kill))
            with pytest.raises(Killed):
                runner.train()
        else:
            runner.train()
        return metric.asked

    return run


def found(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob('*.pth'))


def noted(folder: Path, name: str) -> dict:
    """Return the score and the name of the best checkpoint in the last one."""
    content = torch.load(folder / name, weights_only=False)
    info = content['message_hub']['runtime_info']
    return dict(score=info['best_score'], best=Path(info['best_ckpt']).name)


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that trains each loop once and returns its folder."""
    folders: dict[bool, Path] = {}

    def run(train: Callable, loop: dict) -> Path:
        by_epoch = loop['by_epoch']
        if by_epoch not in folders:
            folder = tmp_path_factory.mktemp('whole')
            assert train(folder, loop) == [2, 4]
            folders[by_epoch] = folder
        return folders[by_epoch]

    return run


@pytest.mark.parametrize(
    'point',
    ['before_val', pytest.param('after_val_epoch', marks=pytest.mark.e2e), 'best'],
)
@pytest.mark.e2e
@pytest.mark.parametrize('iteration', [2, 4])
@pytest.mark.parametrize('loop', [EPOCHS, ITERATIONS], ids=['epochs', 'iterations'])
def test_a_validation_that_a_kill_prevented_runs_after_the_resume(
    train: Callable,
    uninterrupted: Callable,
    loop: dict,
    iteration: int,
    point: str,
    tmp_path: Path,
) -> None:
    whole, killed = uninterrupted(train, loop), tmp_path / 'killed'
    train(killed, loop, point, iteration)
    assert train(killed, loop, resume=True) == [2, 4][iteration == 4 :]
    last = 'epoch_2.pth' if loop['by_epoch'] else 'iter_4.pth'
    best = f'best_score_{last}'
    assert {best, f'student_{best}', f'student_{last}'} < set(found(whole))
    assert set(found(whole)) <= set(found(killed))
    assert not [
        name for name in set(found(killed)) - set(found(whole)) if name[0] == 'b'
    ]
    assert noted(killed, last) == noted(whole, last) == dict(score=0.9, best=best)


def test_a_finished_validation_is_not_repeated(train: Callable, tmp_path: Path) -> None:
    for loop in (EPOCHS, ITERATIONS):
        folder = tmp_path / str(loop['by_epoch'])
        assert train(folder, loop) == [2, 4]
        assert train(folder, loop, resume=True) == []
        longer = {
            key: 2 * value if 'max' in key else value for key, value in loop.items()
        }
        assert train(folder, longer, resume=True) == [6, 8]


def test_an_almost_finished_validation_can_be_repeated(
    train: Callable, tmp_path: Path
) -> None:
    train(tmp_path, EPOCHS, 'after_val', 4)
    before = noted(tmp_path, 'epoch_2.pth')
    assert train(tmp_path, EPOCHS, resume=True) == [4]
    assert noted(tmp_path, 'epoch_2.pth') == before


def test_a_validation_that_was_not_due_is_not_made_up_for(
    train: Callable, tmp_path: Path
) -> None:
    loop = dict(ITERATIONS, val_interval=3, val_begin=3)
    train(tmp_path, loop, 'before_val', 3)
    # The checkpoint is of iteration 2.
    assert train(tmp_path, loop, resume=True) == [3, 4]


def test_dynamic_intervals_count(train: Callable, tmp_path: Path) -> None:
    loop = dict(ITERATIONS, val_interval=4, dynamic_intervals=[(2, 1)])
    folders = [tmp_path / 'whole', tmp_path / 'killed']
    assert train(folders[0], loop) == [1, 2, 3, 4]
    train(folders[1], loop, 'before_val', 2)
    assert train(folders[1], loop, resume=True) == [2, 3, 4]


def test_the_record_of_an_abandoned_branch_is_removed(
    train: Callable, tmp_path: Path
) -> None:
    train(tmp_path, EPOCHS)
    assert (tmp_path / 'last_validation').read_text() == '4'
    first = str(tmp_path / 'epoch_1.pth')
    # The run resumes from an earlier checkpoint, and is killed at the iteration that
    # the old record names.
    train(tmp_path, EPOCHS, 'before_val', 4, resume=True, load_from=first)
    assert train(tmp_path, EPOCHS, resume=True) == [4]


def test_a_damaged_record_is_ignored(train: Callable, tmp_path: Path) -> None:
    train(tmp_path, EPOCHS)
    for content in ('', 'x', '9' * 30, '\0\0'):
        (tmp_path / 'last_validation').write_text(content)
        assert train(tmp_path, EPOCHS, resume=True) == [4]


def test_a_missed_validation_is_repeated_in_another_folder(
    train: Callable, tmp_path: Path
) -> None:
    first, second = tmp_path / 'first', tmp_path / 'second'
    train(first, EPOCHS, 'before_val', 4)
    options = dict(resume=True, load_from=str(first / 'epoch_2.pth'))
    assert train(second, EPOCHS, **options) == [4]
    names = ['best_score_epoch_2.pth', 'epoch_2.pth']
    assert found(second) == sorted([*names, *(f'student_{name}' for name in names)])
