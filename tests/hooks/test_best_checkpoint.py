import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import CheckpointHook
from torch.utils.data import DataLoader

from kdtoolbox.hooks import BestCheckpointHook

Toy = SimpleNamespace


class Scripted(BaseMetric):
    """Give the scores of a list, one per evaluation."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = list(scores)

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict:
        return dict(score=self.scores.pop(0))


def train(
    toy: Toy, make_runner: Callable, scores: list[float], epochs: int, **options: Any
) -> None:
    data = toy.det_data(((64, 64),))
    sample = dict(inputs=data['inputs'][0], data_samples=data['data_samples'][0])
    runner = make_runner(
        ConfigDict(toy.gfl()['model']),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        val_dataloader=DataLoader([sample], collate_fn=pseudo_collate),
        val_cfg=dict(),
        val_evaluator=Evaluator([Scripted(scores)]),
        custom_hooks=[dict(type='kdtoolbox.BestCheckpointHook')],
        **options,
    )
    runner.train()


def best(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob('best_*.pth'))


def test_a_resumed_run_removes_only_its_own_best_checkpoint(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    saver = dict(save_best='score', rule='greater')
    first, second, copy = (tmp_path / name for name in ('first', 'second', 'copy'))
    train(toy, make_runner, [0.1], 1, checkpoint=saver, work_dir=str(first))
    assert best(first) == ['best_score_epoch_1.pth']
    shutil.copytree(first, copy)
    for folder in (second, copy, first):
        options = dict(load_from=str(first / 'epoch_1.pth'), resume=True)
        options |= dict(checkpoint=saver, work_dir=str(folder))
        train(toy, make_runner, [0.9], 2, **options)
        assert best(folder) == ['best_score_epoch_2.pth']
        if folder != first:
            assert best(first) == ['best_score_epoch_1.pth']


@pytest.mark.parametrize('exists', [False, True])
def test_out_dir_of_the_checkpoint_hook(exists: bool, tmp_path: Path) -> None:
    own = tmp_path / 'out/run/best_a.pth'
    own.parent.mkdir(parents=True)
    if exists:
        own.touch()
    saver = CheckpointHook(out_dir=str(tmp_path / 'out'))
    runner = SimpleNamespace(work_dir=str(tmp_path / 'run'), hooks=[saver])
    noted = dict(best_ckpt_mAP='/other/best_a.pth', best_score_mAP=0.5)
    checkpoint = dict(message_hub=dict(runtime_info=noted))
    BestCheckpointHook().after_load_checkpoint(runner, checkpoint)
    best_ckpt = dict(best_ckpt_mAP=str(own)) if exists else {}
    assert noted == dict(best_score_mAP=0.5) | best_ckpt
    # A checkpoint of weights alone has no `message_hub`.
    BestCheckpointHook().after_load_checkpoint(runner, dict(state_dict={}))
