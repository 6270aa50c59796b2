import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend, register_backend
from mmengine.runner import CheckpointLoader

from kdtoolbox.runs.work_dir import enter_work_dir


def save(path: Path, **meta: Any) -> str:
    content = dict(
        meta=dict(epoch=1, iter=1, seed=7) | meta,
        state_dict={},
        message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}),
        optimizer={},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return str(path)


def config(work_dir: Path, **entries: Any) -> Config:
    return Config(dict(work_dir=str(work_dir), **entries))


@pytest.mark.parametrize(
    'name',
    ['epoch_1.pth', 'iter_9.pth', 'best_x.pth', 'student_a.pth', 'last_checkpoint'],
)
def test_a_work_dir_with_results_is_not_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf'{name}.*--resume.*--work-dir'):
        enter_work_dir(config(tmp_path), None)
    hooks = dict(checkpoint=dict(out_dir=str(tmp_path.parent)))
    elsewhere = tmp_path.parent / 'other' / tmp_path.name
    with pytest.raises(ValueError, match='would overwrite'):
        enter_work_dir(config(elsewhere, default_hooks=hooks), None)


def test_a_work_dir_without_results_is_entered(tmp_path: Path) -> None:
    (tmp_path / '20260101_000000').mkdir()
    (tmp_path / 'output.log').touch()
    (tmp_path / 'pretrained.pth').touch()
    for folder in (tmp_path, tmp_path / 'new'):
        cfg = config(folder, load_from='a.pth')
        enter_work_dir(cfg, None)
        assert cfg.to_dict() == dict(work_dir=str(folder), load_from='a.pth')


def test_the_newest_is_resumed_from_with_its_seed(tmp_path: Path) -> None:
    newest = [save(tmp_path / f'iter_{number}.pth') for number in (9, 10)][1]
    for resume, entries in (('auto', {}), (None, dict(resume=True, load_from=None))):
        cfg = config(tmp_path, randomness=dict(seed=3, diff_rank_seed=True), **entries)
        enter_work_dir(cfg, resume)
        assert (cfg.resume, cfg.load_from) == (True, newest)
        assert cfg.randomness == dict(seed=7, diff_rank_seed=True)


def test_a_run_without_a_noted_seed_keeps_its_own(tmp_path: Path) -> None:
    save(tmp_path / 'iter_9.pth', seed=None)
    cfg = config(tmp_path)
    enter_work_dir(cfg, 'auto')
    assert 'randomness' not in cfg


def test_without_checkpoints_the_training_starts_as_the_recipe_says(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cfg = config(tmp_path, load_from='pretrained.pth')
    enter_work_dir(cfg, 'auto')
    assert (cfg.resume, cfg.load_from) == (False, 'pretrained.pth')
    assert 'starts from the beginning' in capsys.readouterr().out


def test_a_checkpoint_of_another_run_needs_an_empty_work_dir(tmp_path: Path) -> None:
    source = save(tmp_path / 'other/epoch_3.pth')
    cfg = config(tmp_path / 'run')
    enter_work_dir(cfg, source)
    assert (cfg.resume, cfg.load_from) == (True, source)
    save(tmp_path / 'run/epoch_1.pth')
    with pytest.raises(ValueError, match=r'epoch_1\.pth\. Name another --work-dir'):
        enter_work_dir(cfg, source)


def test_resuming_an_older_checkpoint_does_not_overwrite_newer_ones(
    tmp_path: Path,
) -> None:
    first, last = (save(tmp_path / f'epoch_{number}.pth') for number in (1, 2))
    cfg = config(tmp_path)
    with pytest.raises(ValueError, match=r'epoch_2\.pth\. .*epoch_1\.pth in another'):
        enter_work_dir(cfg, first)
    # As in a config that was dumped when epoch_1 was the newest.
    with pytest.raises(ValueError, match='would overwrite'):
        enter_work_dir(config(tmp_path, resume=True, load_from=first), None)
    enter_work_dir(cfg, last)
    assert cfg.load_from == last


def test_partial_files_of_a_killed_run_are_removed_on_resume(
    tmp_path: Path,
) -> None:
    partial = tmp_path / '.iter_9.pth.01234567.partial'
    partial.write_text('half')
    enter_work_dir(config(tmp_path), None)
    assert partial.exists()
    enter_work_dir(config(tmp_path), 'auto')
    assert not partial.exists()


def test_a_setting_that_can_lose_the_only_checkpoint_is_refused(tmp_path: Path) -> None:
    for keep in (-1, 2, 1):
        saver = dict(type='CheckpointHook', max_keep_ckpts=keep)
        cfg = config(tmp_path, default_hooks=dict(checkpoint=saver))
        if keep != 1:
            enter_work_dir(cfg, None)
    with pytest.raises(
        ValueError, match=r'`default_hooks\.checkpoint\.max_keep_ckpts=2`'
    ):
        enter_work_dir(cfg, None)


def test_the_training_tool_looks_at_the_work_dir_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    recipe = tmp_path / 'recipe.py'
    recipe.write_text("model = dict(type='None')\ndefault_scope = 'mmdet'\n")
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/epoch_1.pth').touch()
    tool = Path(__file__).parents[2] / 'tools/train.py'
    command = [str(tool), str(recipe), '--work-dir', str(tmp_path / 'run')]
    # What the tool changes in this process.
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    try:
        for options in ([], ['--resume']):
            monkeypatch.setattr(sys, 'argv', [*command, *options])
            reason = r'epoch_1\.pth.* is damaged' if options else 'would overwrite'
            with pytest.raises(SystemExit, match='^2$'):
                runpy.run_path(str(tool), run_name='__main__')
            assert re.search(reason, capsys.readouterr().err)
    finally:
        register_backend('local', LocalBackend, force=True, prefixes='')
    left = {path.name for path in (tmp_path / 'run').iterdir()}
    assert left == {'epoch_1.pth', '.lock'}


def test_a_config_without_a_checkpoint_hook(tmp_path: Path) -> None:
    for hooks in ({}, dict(checkpoint=None)):
        enter_work_dir(config(tmp_path, default_hooks=hooks), 'auto')
