import os
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from kdtoolbox.checkpoints import resuming
from kdtoolbox.checkpoints.resuming import (
    Checkpoint,
    named_checkpoint,
    newest_checkpoint,
)


def save(path: Path, number: int = 0, **changes: Any) -> Path:
    """Write a checkpoint like mmengine's, and `last_checkpoint`."""
    content = dict(
        meta=dict(epoch=number, iter=number, seed=7),
        state_dict=dict(weight=torch.arange(1000.0)),
        message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}),
        optimizer={},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({k: v for k, v in (content | changes).items() if v is not None}, path)
    # A checkpoint is one second newer than the one before it.
    os.utime(path, (1e9 + number, 1e9 + number))
    (path.parent / 'last_checkpoint').write_text(str(path))
    return path


def flip(path: Path) -> Path:
    """Change one bit of the weights."""
    content = bytearray(path.read_bytes())
    where = content.index(torch.tensor(500.0).numpy().tobytes())
    content[where + 2] ^= 1
    path.write_bytes(content)
    return path


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-100])
    return path


def empty(path: Path) -> Path:
    path.write_bytes(b'')
    return path


def zero(path: Path) -> Path:
    """Fill a file with zeros, as some file systems do after a crash."""
    path.write_bytes(bytes(path.stat().st_size))
    return path


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    for number in (8, 9, 10):
        save(tmp_path / f'iter_{number}.pth', number)
    save(tmp_path / 'best_iter_12.pth', 12, optimizer=None)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_10.pth'))
    torch.save({}, tmp_path / 'student_iter_10.pth')
    return tmp_path


def newest(work_dir: Path, **cfg: Any) -> str | None:
    found = newest_checkpoint(Config(dict(work_dir=str(work_dir), **cfg)))
    return found and Path(found.path).name


def test_the_newest_is_found_with_its_meta(work_dir: Path) -> None:
    found = newest_checkpoint(Config(dict(work_dir=str(work_dir))))
    meta = dict(epoch=10, iter=10, seed=7)
    assert found == Checkpoint(str(work_dir / 'iter_10.pth'), meta)


@pytest.mark.parametrize('damage', [flip, cut, empty, zero])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_is_used(
    damage: Any, work_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    damage(work_dir / 'iter_10.pth')
    assert newest(work_dir) == 'iter_9.pth'
    output = capsys.readouterr().out
    assert "iter_10.pth' is damaged" in output
    assert "iter_9.pth' is resumed from instead" in output
    damage(work_dir / 'iter_9.pth')
    assert newest(work_dir) == 'iter_8.pth'
    output = capsys.readouterr().out
    assert "iter_10.pth' is damaged" in output
    assert "iter_9.pth' is damaged" in output
    damage(work_dir / 'iter_8.pth')
    with pytest.raises(ValueError, match=r'nothing in .* can be resumed from') as error:
        newest(work_dir)
    for number in (8, 9, 10):
        assert f"iter_{number}.pth' is damaged" in str(error.value)


def test_torch_does_not_notice_a_flipped_bit(work_dir: Path) -> None:
    # This is the reason for the comparison of the checksums.
    state = torch.load(flip(work_dir / 'iter_10.pth'))['state_dict']
    assert not torch.equal(state['weight'], torch.arange(1000.0))


@pytest.mark.parametrize(
    'note', ['', '\n', 'iter_', '/nowhere/iter_7.pth', '\0' * 40, '\xff\xfe']
)
def test_an_invalid_last_checkpoint_file_is_ignored(note: str, work_dir: Path) -> None:
    (work_dir / 'last_checkpoint').write_bytes(note.encode('latin1'))
    assert newest(work_dir) == 'iter_10.pth'
    (work_dir / 'last_checkpoint').unlink()
    assert newest(work_dir) == 'iter_10.pth'


def test_a_checkpoint_newer_than_last_checkpoint_is_found(work_dir: Path) -> None:
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_9.pth'))
    assert newest(work_dir) == 'iter_10.pth'


def test_checkpoints_of_an_abandoned_branch_rank_last(work_dir: Path) -> None:
    # The run was resumed from iter_8 and has written iter_9 again.
    os.utime(work_dir / 'iter_9.pth', (2e9, 2e9))
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_9.pth'))
    assert newest(work_dir) == 'iter_9.pth'


def test_a_work_dir_without_checkpoints_gives_none(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert newest(tmp_path) is None
    assert newest(tmp_path / 'not there') is None
    save(tmp_path / 'best_1.pth')
    (tmp_path / 'last_checkpoint').write_text('')
    assert newest(tmp_path) is None
    assert not capsys.readouterr().out


def test_a_missing_last_checkpoint_raises(tmp_path: Path) -> None:
    save(tmp_path / 'iter_1.pth').unlink()
    with pytest.raises(ValueError, match=r'iter_1\.pth.* is gone; bring it back'):
        newest(tmp_path)


@pytest.mark.parametrize('key', ['optimizer', 'message_hub', 'meta', 'state_dict'])
def test_a_checkpoint_without_a_required_entry_is_skipped(
    key: str, tmp_path: Path
) -> None:
    save(tmp_path / 'epoch_1.pth')
    save(tmp_path / 'epoch_2.pth', 2, **{key: None})
    assert newest(tmp_path) == 'epoch_1.pth'
    with pytest.raises(ValueError, match=key):
        named_checkpoint(str(tmp_path / 'epoch_2.pth'))


class Huge:
    """An object of a few bytes whose unpickling allocates 1 TiB."""

    def __reduce__(self) -> tuple:
        return bytearray, (2**40,)


GOOD = dict(epoch=2, iter=2)
ODD = [
    dict(meta={}),
    dict(meta=[1]),
    dict(meta=dict(epoch=2)),
    dict(meta=GOOD | dict(iter=-1)),
    dict(meta=GOOD | dict(iter='2')),
    dict(meta=GOOD | dict(iter=2.0)),
    dict(meta=GOOD | dict(epoch=None)),
    dict(meta=GOOD | dict(epoch=True)),
    dict(meta=GOOD | dict(seed='a')),
    dict(optimizer=[]),
    dict(state_dict=[1]),
    dict(state_dict=dict(a=1)),
    dict(state_dict={1: torch.ones(1)}),
    dict(message_hub=[]),
    dict(message_hub={}),
    dict(message_hub=dict(log_scalars=None, runtime_info={}, resumed_keys={})),
    dict(extra=Huge()),
]


@pytest.mark.parametrize('changes', ODD, ids=lambda changes: str(changes)[:40])
@pytest.mark.parametrize('none', [False, True])
def test_checkpoints_with_invalid_contents_are_reported_and_skipped(
    changes: dict, none: bool, tmp_path: Path
) -> None:
    save(tmp_path / 'epoch_1.pth', 1)
    path = save(tmp_path / 'epoch_2.pth', 2, **changes)
    if none and 'extra' not in changes:
        content = torch.load(path, weights_only=False)
        torch.save(content | dict.fromkeys(changes), path)
    assert newest(tmp_path) == 'epoch_1.pth'
    with pytest.raises(
        ValueError, match=r"epoch_2\.pth' (cannot be resumed|is damaged)"
    ):
        named_checkpoint(str(path))


def test_too_little_memory_is_not_reported_as_damage(
    work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr('kdtoolbox.checkpoints.reading.unpickle', fail)
    monkeypatch.setattr('os.sysconf', lambda name: 1)
    with pytest.raises(MemoryError, match=r"iter_10\.pth' has \d+ bytes"):
        newest(work_dir)


def test_a_last_checkpoint_file_that_points_to_another_folder_is_followed(
    tmp_path: Path,
) -> None:
    for number in (1, 2, 4):
        save(tmp_path / f'other/iter_{number}.pth', number)
    (tmp_path / 'run').mkdir()
    named = tmp_path / 'other/iter_2.pth'
    (tmp_path / 'run/last_checkpoint').write_text(str(named))
    assert newest(tmp_path / 'run') == 'iter_2.pth'
    cut(named)
    assert newest(tmp_path / 'run') == 'iter_1.pth'
    named.unlink()
    with pytest.raises(ValueError, match=r'iter_2\.pth.* is gone'):
        newest(tmp_path / 'run')


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('key', ['state_dict', 'ema_state_dict'])
def test_a_checkpoint_with_a_weight_that_is_not_finite_is_not_resumed_from(
    work_dir: Path, key: str, value: float, capsys: pytest.CaptureFixture
) -> None:
    weights = dict(sound=torch.ones(2), broken=torch.tensor([0.0, value]))
    broken = save(work_dir / 'iter_11.pth', 11, **{key: weights})
    capsys.readouterr()
    assert newest(work_dir) == 'iter_10.pth'
    output = ' '.join(capsys.readouterr().out.split())
    assert 'cannot be resumed from: it has NaN or Inf in broken. Resume' in output
    assert "iter_10.pth' is resumed from instead" in output
    with pytest.raises(ValueError, match=r'NaN or Inf in broken.*\n.*iter_10\.pth'):
        named_checkpoint(str(broken))


def test_an_untrusted_checkpoint_is_not_skipped(work_dir: Path) -> None:
    save(work_dir / 'iter_11.pth', 11, extra=Path('a'))
    with pytest.raises(ValueError, match='could run code'):
        newest(work_dir)


def test_out_dir_of_the_checkpoint_hook(tmp_path: Path) -> None:
    hooks = dict(default_hooks=dict(checkpoint=dict(out_dir=str(tmp_path / 'out'))))
    work_dir = tmp_path / 'run'
    work_dir.mkdir()
    assert newest(work_dir, **hooks) is None
    path = save(tmp_path / 'out/run/epoch_3.pth', 3)
    assert newest(work_dir, **hooks) == 'epoch_3.pth'
    # Without `out_dir` in the config, last_checkpoint names the folder.
    assert newest(work_dir) is None
    (work_dir / 'last_checkpoint').write_text(str(path))
    assert newest(work_dir) == 'epoch_3.pth'
    cut(path)
    save(tmp_path / 'out/run/epoch_2.pth', 2)
    (work_dir / 'last_checkpoint').write_text(str(path))
    assert newest(work_dir) == 'epoch_2.pth'


def test_a_moved_work_dir(work_dir: Path, tmp_path_factory: Any) -> None:
    moved = tmp_path_factory.mktemp('moved')
    for path in work_dir.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    save(work_dir / 'iter_11.pth', 11)
    found = newest_checkpoint(Config(dict(work_dir=str(moved))))
    assert found is not None
    assert found.path == str(moved / 'iter_10.pth')


def test_the_error_of_a_damaged_named_checkpoint_lists_the_whole_ones(
    work_dir: Path,
) -> None:
    path = flip(work_dir / 'iter_10.pth')
    cut(work_dir / 'iter_8.pth')
    with pytest.raises(ValueError, match=r"iter_10\.pth' is damaged") as error:
        named_checkpoint(str(path))
    beside = str(error.value).partition('beside it: ')[2]
    assert beside == str(work_dir / 'iter_9.pth')


def test_the_other_processes_get_the_result_of_the_main_process(
    work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [Checkpoint('found.pth', {}), ValueError('nothing found')]

    def receive(outcome: list) -> None:
        outcome[0] = answers.pop(0)

    monkeypatch.setattr(resuming, 'is_main_process', lambda: False)
    monkeypatch.setattr(resuming, 'broadcast_object_list', receive)
    assert newest(work_dir) == 'found.pth'
    with pytest.raises(ValueError, match='nothing found'):
        newest(work_dir)


def test_the_main_process_sends_its_error_to_the_others(
    work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list = []
    monkeypatch.setattr(resuming, 'broadcast_object_list', sent.extend)
    newest(work_dir)
    for path in work_dir.glob('iter_*.pth'):
        empty(path)
    with pytest.raises(ValueError, match='can be resumed from'):
        newest(work_dir)
    assert [type(outcome) for outcome in sent] == [Checkpoint, ValueError]
