from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric, Evaluator
from torch import nn
from torch.utils.data import DataLoader

from kdtoolbox.hooks import ExportStudentHook
from kdtoolbox.hooks.readable_checkpoint import ReadableCheckpointHook

Toy = SimpleNamespace
ITERATIONS = dict(by_epoch=False, max_iters=4)


class Scripted(BaseMetric):
    """Give the scores of a list, one per evaluation."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = list(scores)

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict:
        return dict(score=self.scores.pop(0))


def validation(toy: Toy, scores: list[float]) -> dict:
    data = toy.det_data(((64, 64),))
    sample = dict(inputs=data['inputs'][0], data_samples=data['data_samples'][0])
    loader = DataLoader([sample], collate_fn=pseudo_collate)
    evaluator = Evaluator([Scripted(scores)])
    return dict(val_dataloader=loader, val_cfg=dict(), val_evaluator=evaluator)


def run(make_runner: Callable, model: Any, **arguments: Any) -> Any:
    hooks = [dict(type='kdtoolbox.ExportStudentHook')]
    runner = make_runner(model, custom_hooks=hooks, **arguments)
    runner.train()
    return runner


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob('*.pth'))


def pairs(*names: str) -> list[str]:
    return sorted([*names, *(f'student_{name}' for name in names)])


def predictions(model: nn.Module, data: dict) -> list[torch.Tensor]:
    with torch.no_grad():
        return [sample.pred_instances.scores for sample in model.eval().val_step(data)]


def assert_exports(toy: Toy, model: nn.Module, path: Path) -> None:
    """Assert that a file contains the plain student of a model."""
    content = torch.load(path, weights_only=True)
    plain = toy.build(toy.gfl())
    plain.load_state_dict(content['state_dict'], strict=True)
    expected = predictions(model, toy.det_data())
    assert all(map(torch.equal, predictions(plain, toy.det_data()), expected))


def test_each_epoch_is_exported(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    runner = run(make_runner, toy.distiller(toy.gfl()))
    assert checkpoints(tmp_path) == pairs('epoch_1.pth', 'epoch_2.pth')
    assert_exports(toy, runner.model, tmp_path / 'student_epoch_2.pth')
    assert not list(tmp_path.glob('.*'))


def test_exports_go_with_their_checkpoints(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    saver = dict(by_epoch=False, interval=1, max_keep_ckpts=2)
    model = toy.distiller(toy.gfl())
    runner = run(make_runner, model, train_cfg=ITERATIONS, checkpoint=saver)
    assert checkpoints(tmp_path) == pairs('iter_3.pth', 'iter_4.pth')
    assert_exports(toy, runner.model, tmp_path / 'student_iter_4.pth')


def test_exports_of_the_run_before_go_too(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    saver = dict(max_keep_ckpts=1)
    for epochs in (1, 2):
        run(
            make_runner,
            toy.distiller(toy.gfl()),
            checkpoint=saver,
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            resume=epochs > 1,
        )
    assert checkpoints(tmp_path) == pairs('epoch_2.pth')


def test_resuming_exports_a_student_that_a_kill_prevented(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    train_cfg = dict(by_epoch=True, max_epochs=1)
    run(make_runner, toy.distiller(toy.gfl()), train_cfg=train_cfg)
    (tmp_path / 'student_epoch_1.pth').unlink()
    elsewhere = dict(work_dir=str(tmp_path / 'elsewhere'))
    for options in (elsewhere, {}):
        assert not (tmp_path / 'student_epoch_1.pth').exists()
        source = str(tmp_path / 'epoch_1.pth')
        model = toy.distiller(toy.gfl())
        run(make_runner, model, resume=True, load_from=source, **options)
    assert checkpoints(tmp_path) == pairs('epoch_1.pth', 'epoch_2.pth')


def test_best_checkpoint_is_exported_and_replaced(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    saver = dict(max_keep_ckpts=1, save_best='score', rule='greater')
    run(
        make_runner,
        toy.distiller(toy.gfl()),
        checkpoint=saver,
        train_cfg=dict(by_epoch=True, max_epochs=3),
        **validation(toy, [0.1, 0.9, 0.5]),
    )
    assert checkpoints(tmp_path) == pairs('best_score_epoch_2.pth', 'epoch_3.pth')
    states = [
        torch.load(tmp_path / name, weights_only=False)['state_dict']
        for name in ('best_score_epoch_2.pth', 'student_best_score_epoch_2.pth')
    ]
    assert {f'student.{key}' for key in states[1]} <= states[0].keys()
    for key, value in states[1].items():
        assert torch.equal(value, states[0][f'student.{key}'])


def test_best_checkpoint_of_an_iteration_loop(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    saver = dict(by_epoch=False, interval=2, save_best='score', rule='greater')
    run(
        make_runner,
        toy.distiller(toy.gfl()),
        checkpoint=saver,
        train_cfg=dict(by_epoch=False, max_iters=4, val_interval=2),
        **validation(toy, [0.1, 0.9]),
    )
    names = ('best_score_iter_4.pth', 'iter_2.pth', 'iter_4.pth')
    assert checkpoints(tmp_path) == pairs(*names)


def test_second_run_in_a_folder_refreshes_its_exports(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    for _ in range(2):
        train_cfg = dict(by_epoch=True, max_epochs=1)
        runner = run(make_runner, toy.distiller(toy.gfl()), train_cfg=train_cfg)
        assert_exports(toy, runner.model, tmp_path / 'student_epoch_1.pth')


def test_ema_weights_are_exported(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    hooks = [dict(type='EMAHook'), dict(type='kdtoolbox.ExportStudentHook')]
    runner = make_runner(toy.distiller(toy.gfl()), custom_hooks=hooks)
    runner.train()
    content = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    exported = torch.load(tmp_path / 'student_epoch_2.pth')['state_dict']
    assert not [key for key in content['ema_state_dict'] if 'teacher' in key]
    for key, value in exported.items():
        assert torch.equal(value, content['state_dict'][f'student.{key}'])


def test_files_of_the_user_stay(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    (tmp_path / 'student_x.pth').write_text('mine')
    (tmp_path / 'features.pth').write_text('not a checkpoint')
    run(make_runner, toy.distiller(toy.gfl()))
    names = [*pairs('epoch_1.pth', 'epoch_2.pth'), 'features.pth', 'student_x.pth']
    assert checkpoints(tmp_path) == sorted(names)
    assert (tmp_path / 'student_x.pth').read_text() == 'mine'


def test_checkpoints_that_the_run_did_not_write_are_not_exported(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    torch.save(toy.build(toy.gfl()).state_dict(), tmp_path / 'pretrained.pth')
    run(make_runner, toy.distiller(toy.gfl()))
    names = [*pairs('epoch_1.pth', 'epoch_2.pth'), 'pretrained.pth']
    assert checkpoints(tmp_path) == sorted(names)


def test_out_dir_of_the_checkpoint_hook(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    work_dir = tmp_path / 'run'
    saver = dict(out_dir=str(tmp_path / 'elsewhere'))
    model = toy.distiller(toy.gfl())
    run(make_runner, model, work_dir=str(work_dir), checkpoint=saver)
    names = pairs('epoch_1.pth', 'epoch_2.pth')
    assert checkpoints(tmp_path / 'elsewhere/run') == names
    assert checkpoints(work_dir) == []


def test_the_error_without_a_checkpoint_hook_contains_the_fix() -> None:
    runner = SimpleNamespace(hooks=[])
    with pytest.raises(ValueError, match=r'default_hooks\.checkpoint='):
        ExportStudentHook().before_train(runner)


def test_the_export_does_not_read_the_checkpoint(
    toy: Toy, make_runner: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr('kdtoolbox.hooks.export_student.load_checkpoint')
    saver = dict(by_epoch=False, interval=1, save_best='score', rule='greater')
    runner = run(
        make_runner,
        toy.distiller(toy.gfl()),
        checkpoint=saver,
        train_cfg=dict(by_epoch=False, max_iters=2, val_interval=1),
        **validation(toy, [0.9, 0.1]),
    )
    names = ('best_score_iter_1.pth', 'iter_1.pth', 'iter_2.pth')
    assert checkpoints(tmp_path) == pairs(*names)
    assert_exports(toy, runner.model, tmp_path / 'student_iter_2.pth')
    for name in names:
        content = torch.load(tmp_path / name, weights_only=False)['state_dict']
        exported = torch.load(tmp_path / f'student_{name}')['state_dict']
        for key, value in exported.items():
            assert torch.equal(value, content[f'student.{key}'])


class Meta(list):
    """A data set with meta that plain `torch.load` cannot read."""

    metainfo = dict(
        palette=np.arange(3, dtype=np.uint8), root=Path('a'), odd=object(), scale=0.5
    )


def test_plain_torch_reads_the_exported_meta(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    hooks = [dict(type='kdtoolbox.ExportStudentHook')]
    runner = make_runner(toy.distiller(toy.gfl()), custom_hooks=hooks)
    samples = Meta(runner._train_dataloader.dataset)
    runner._train_dataloader = DataLoader(samples, collate_fn=pseudo_collate)
    # tools/train.py adds this hook, too. Without it the object cannot be pickled.
    runner.register_hook(ReadableCheckpointHook())
    runner.train()
    meta = torch.load(tmp_path / 'student_epoch_2.pth', weights_only=True)['meta']
    assert meta['dataset_meta'] == dict(palette=[0, 1, 2], root='a', scale=0.5)
    assert 'cfg' not in meta
    assert meta['epoch'] == 2


def test_the_config_of_the_student_lies_beside_its_weights(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    model = toy.distiller(toy.gfl())
    cfg = Config(dict(model=model, default_scope='mmdet', load_from='a.pth'))
    saver = dict(out_dir=str(tmp_path / 'elsewhere'))
    where = str(tmp_path / 'run')
    run(make_runner, model, work_dir=where, checkpoint=saver, cfg=cfg)
    student = Config.fromfile(tmp_path / 'elsewhere/run/student.py')
    assert student.to_dict() == toy.gfl()
    assert (tmp_path / 'elsewhere/run/student_epoch_2.pth').exists()


def test_a_config_of_the_run_with_the_name_of_the_students_is_kept(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    model = toy.distiller(toy.gfl())
    Config(dict(model=model, default_scope='mmdet')).dump(tmp_path / 'student.py')
    cfg = Config.fromfile(tmp_path / 'student.py')
    with pytest.raises(ValueError, match=r'student\.py, has that name too; rename'):
        run(make_runner, model, cfg=cfg, work_dir=str(tmp_path / 'run'))


def test_resuming_removes_students_whose_checkpoint_was_removed(
    toy: Toy, make_runner: Callable, tmp_path: Path
) -> None:
    saver = dict(by_epoch=False, interval=1, max_keep_ckpts=2)
    loop = dict(by_epoch=False, max_iters=3)
    options = dict(train_cfg=loop, checkpoint=saver)
    run(make_runner, toy.distiller(toy.gfl()), **options)
    # The state after a kill that followed the removal of iter_2, and students of
    # others, which have to stay.
    (tmp_path / 'iter_2.pth').unlink()
    for name in ('student_mine.pth', 'student_iter_9.pth', 'student_epoch_9.pth'):
        (tmp_path / name).touch()
    source = str(tmp_path / 'iter_3.pth')
    run(
        make_runner,
        toy.distiller(toy.gfl()),
        resume=True,
        load_from=source,
        **options | dict(train_cfg=ITERATIONS),
    )
    kept = ['student_mine.pth', 'student_iter_9.pth', 'student_epoch_9.pth']
    assert checkpoints(tmp_path) == sorted([*pairs('iter_3.pth', 'iter_4.pth'), *kept])
