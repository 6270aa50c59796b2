import errno
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import mmengine
import pytest
import torch
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.runner import save_checkpoint

from kdtoolbox.checkpoints.writing import (
    WholeFileBackend,
    remove_partials,
    use_whole_files,
    write_whole,
)


@pytest.fixture
def whole_files() -> Iterator[None]:
    use_whole_files()
    yield
    register_backend('local', LocalBackend, force=True, prefixes='')


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_to_death(function: Callable, *arguments: Any) -> None:
    """Call a function that kills its process in a child process."""
    child = os.fork()
    if not child:
        try:
            function(*arguments)
        finally:
            os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (-signal.SIGKILL, -signal.SIGXFSZ)


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def save_and_die(content: dict, path: Path, place: str) -> None:
    if place == 'write':
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    elif place == 'sync of the file':
        os.fsync = die
    elif place == 'replace':
        os.replace = die
    else:
        os.open = die
    save_checkpoint(content, str(path))


@pytest.mark.usefixtures('whole_files')
@pytest.mark.parametrize(
    'place', ['write', 'sync of the file', 'replace', 'sync of the folder']
)
@pytest.mark.parametrize('exists', [False, True])
def test_checkpoints_are_written_whole_or_not_at_all(
    place: str, exists: bool, tmp_path: Path
) -> None:
    path = tmp_path / 'epoch_1.pth'
    old, new = (dict(state_dict=dict(a=torch.full((999,), n))) for n in (1.0, 2.0))
    if exists:
        save_checkpoint(old, str(path))
    run_to_death(save_and_die, new, path, place)
    written = place == 'sync of the folder'
    assert path.exists() == (exists or written)
    if path.exists():
        state = torch.load(path)['state_dict']
        assert torch.equal(state['a'], (new if written else old)['state_dict']['a'])
    remove_partials(tmp_path)
    assert files_of(tmp_path) == ([path.name] if path.exists() else [])


def test_a_file_appears_after_the_block(tmp_path: Path) -> None:
    path = tmp_path / 'epoch_1.pth'
    with write_whole(path) as file:
        file.write(b'new')
        assert not path.exists()
    assert path.read_bytes() == b'new'
    assert files_of(tmp_path) == ['epoch_1.pth']


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / 'epoch_1.pth'
    path.write_bytes(b'old')

    def fill_the_disk() -> None:
        with write_whole(path) as file:
            file.write(b'half')
            raise OSError(errno.ENOSPC, 'No space left on device')

    with pytest.raises(OSError, match='No space'):
        fill_the_disk()
    assert path.read_bytes() == b'old'
    assert files_of(tmp_path) == ['epoch_1.pth']


def write_torch(path: Path) -> None:
    with write_whole(path) as file:
        torch.save(torch.zeros(100_000), file)


def write_bytes(path: Path) -> None:
    WholeFileBackend().put(bytes(400_000), path)


def write_pieces(path: Path) -> None:
    with write_whole(path) as file:
        for _ in range(400):
            file.write(bytes(1000))


def open_full(path: Path, mode: str) -> BinaryIO:
    """Open the kernel's full disk instead of a path."""
    return open('/dev/full', 'wb')


@pytest.mark.parametrize('write', [write_torch, write_bytes, write_pieces])
def test_a_full_disk_is_reported_with_file_and_needed_and_free_space(
    write: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=99_999)
    monkeypatch.setattr('shutil.disk_usage', lambda folder: free)
    monkeypatch.setattr(Path, 'open', open_full)
    path = tmp_path / 'a.pth'
    with pytest.raises(OSError, match='No space left on device') as caught:
        write(path)
    need = '400,000' if write is write_bytes else 'more than 0'
    expected = f'it takes {need} bytes and 99,999 are free in its folder; remove files'
    assert expected in str(caught.value)
    assert str(caught.value).endswith(f"'{path}'")
    assert not files_of(tmp_path)


@pytest.mark.parametrize('write', [write_torch, write_bytes, write_pieces])
def test_a_full_disk_is_told_on_a_real_one(write: Callable, tmp_path: Path) -> None:
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=200k', 'none', str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('a small disk can be mounted by root alone')
    try:
        with pytest.raises(OSError, match='No space left') as caught:
            write(tmp_path / 'a.pth')
        left = files_of(tmp_path)
    finally:
        subprocess.run(['umount', str(tmp_path)], check=True)
    assert '204,800 are free in its folder; remove files' in str(caught.value)
    assert str(caught.value).endswith(f"'{tmp_path}/a.pth'")
    assert not left


@pytest.mark.parametrize('write', [write_torch, write_bytes, write_pieces])
def test_a_limit_of_file_sizes_is_told(write: Callable, tmp_path: Path) -> None:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.raises(OSError, match='File too large') as caught:
            write(tmp_path / 'a.pth')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert '`ulimit -f` and the file system allow 100,000' in str(caught.value)
    assert not files_of(tmp_path)


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('gone/a.pth', r'there is no folder .*gone.; make it first'),
        ('file/a.pth', 'Not a directory'),
        ('folder', 'Is a directory'),
        ('a' * 250, 'File name too long'),
    ],
)
def test_errors_name_the_final_file(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    (tmp_path / 'folder').mkdir()
    with pytest.raises(OSError, match=reason) as caught, write_whole(tmp_path / name):
        pass
    assert caught.value.filename == str(tmp_path / name)
    assert 'partial' not in str(caught.value)
    assert files_of(tmp_path) == ['file', 'folder']


def test_errors_of_other_files_are_not_changed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='elsewhere'):  # noqa: SIM117
        with write_whole(tmp_path / 'a'):
            (tmp_path / 'elsewhere').read_bytes()


def test_file_and_folder_are_synced_before_and_after_the_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        calls.append(os.readlink(f'/proc/self/fd/{descriptor}'))
        sync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        assert source.read_bytes() == b'all'
        calls.append('replace')
        replace(source, target)

    monkeypatch.setattr(os, 'fsync', note_sync)
    monkeypatch.setattr(os, 'replace', note_replace)
    with write_whole(tmp_path / 'a') as file:
        file.write(b'all')
    assert [Path(call).suffix for call in calls[:2]] == ['.partial', '']
    assert calls[1:] == ['replace', str(tmp_path)]


@pytest.mark.parametrize(
    ('code', 'fails'),
    [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)],
)
def test_folders_that_cannot_be_synced(
    code: int, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if Path(os.readlink(f'/proc/self/fd/{descriptor}')).is_dir():
            raise OSError(code, 'refused')
        sync(descriptor)

    monkeypatch.setattr(os, 'fsync', refuse_folders)
    if fails:
        with pytest.raises(OSError, match='refused'), write_whole(tmp_path / 'a'):
            pass
    else:
        with write_whole(tmp_path / 'a') as file:
            file.write(b'all')
    assert (tmp_path / 'a').exists()


def test_files_of_live_writers_and_others_are_not_removed(tmp_path: Path) -> None:
    (tmp_path / '.hidden').write_text('kept')
    (tmp_path / 'visible.partial').write_text('kept')
    with write_whole(tmp_path / 'epoch_1.pth') as file:
        # First with an empty file, then with content.
        remove_partials(tmp_path)
        file.write(b'half')
        file.flush()
        remove_partials(tmp_path)
    assert files_of(tmp_path) == ['.hidden', 'epoch_1.pth', 'visible.partial']
    assert (tmp_path / 'epoch_1.pth').read_bytes() == b'half'


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    with write_whole(tmp_path / 'a') as file:
        file.write(b'1')
    (tmp_path / 'b').write_bytes(b'1')
    modes = {(tmp_path / name).stat().st_mode for name in 'ab'}
    assert len(modes) == 1


@pytest.mark.usefixtures('whole_files')
def test_mmengine_writes_its_local_files_through_it(tmp_path: Path) -> None:
    path = tmp_path / 'new/a.json'
    for backend in (
        get_file_backend(path),
        get_file_backend(backend_args=dict(backend='local')),
    ):
        assert isinstance(backend, WholeFileBackend)
    mmengine.dump(dict(a='ü'), path)
    assert mmengine.load(path) == dict(a='ü')
    get_file_backend(path).put(b'1', tmp_path / 'deep/er/b')
    assert (tmp_path / 'deep/er/b').read_bytes() == b'1'
