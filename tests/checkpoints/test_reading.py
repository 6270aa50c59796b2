import argparse
import os
import pickle
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from mmengine.config import Config, ConfigDict
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint
from safetensors import safe_open

from kdtoolbox.checkpoints.digests import DIGEST_KEY, file_digest, tensor_digest
from kdtoolbox.checkpoints.reading import (
    UntrustedError,
    read_checkpoint,
    use_safe_loaders,
)
from kdtoolbox.checkpoints.student_export import export_student
from kdtoolbox.runs.work_dir import enter_work_dir
from kdtoolbox.teachers import MMEngineTeacher

ROOT = Path(__file__).parents[2]
WEIGHTS = {'weight': torch.arange(4.0), 'bias': torch.ones(2)}


class Touch:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


class Reach:
    """An object whose unpickling calls ``getattr``."""

    def __init__(self, owner: Any, name: str) -> None:
        self.arguments = owner, name

    def __reduce__(self) -> tuple:
        return getattr, self.arguments


def save(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def run_content(**more: Any) -> dict:
    """Return the content of a checkpoint to resume from."""
    meta = dict(epoch=0, iter=0, seed=0)
    hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
    state = dict(state_dict=dict(WEIGHTS), message_hub=hub, optimizer={})
    return dict(meta=meta, **state) | more


@pytest.fixture
def safe_loaders(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    use_safe_loaders()
    yield
    # The tools register another backend.
    register_backend('local', LocalBackend, force=True, prefixes='')


def call_tool(name: str, *arguments: Any) -> None:
    """Run a tool in this process; raise the error whose message it prints."""
    command = [name, *map(str, arguments)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', command)
        # The tools set it for the rest of the process.
        patch.setitem(os.environ, 'LOCAL_RANK', '0')
        try:
            runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')
        except SystemExit as ended:
            raise ended.__context__ from None


def teach(path: Path, tools: SimpleNamespace) -> None:
    MMEngineTeacher(tools.toy.gfl(), str(path))


def start_from(path: Path, tools: SimpleNamespace) -> None:
    tools.make_runner(tools.toy.gfl()['model'], load_from=str(path)).train()


def resume(path: Path, tools: SimpleNamespace) -> None:
    model = tools.toy.gfl()['model']
    tools.make_runner(model, load_from=str(path), resume=True).train()


def resume_the_newest(path: Path, tools: SimpleNamespace) -> None:
    path.rename(path.with_name('iter_1.pth'))
    enter_work_dir(Config(dict(work_dir=str(path.parent))), 'auto')


def initialise(
    path: Path, tools: SimpleNamespace, name: str = '', **options: str
) -> None:
    config = tools.toy.gfl()
    pretrained = dict(type='Pretrained', checkpoint=name or str(path), **options)
    config['model']['backbone']['init_cfg'] = pretrained
    tools.toy.build(config).init_weights()


def initialise_by_name(path: Path, tools: SimpleNamespace) -> None:
    folder = path.parent / 'hub/checkpoints'
    folder.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.hub, 'get_dir', lambda: str(folder.parent))
        patch.setattr(
            'kdtoolbox.checkpoints.locations.download',
            lambda url, target, _: path.rename(target),
        )
        initialise(path, tools, 'torchvision://resnet18')


def initialise_a_part(path: Path, tools: SimpleNamespace) -> None:
    initialise(path, tools, prefix='backbone')


def config_of(path: Path, tools: SimpleNamespace) -> Path:
    config = path.with_name('config.py')
    Config(tools.toy.gfl()).dump(config)
    return config


def call_train(path: Path, tools: SimpleNamespace) -> None:
    config = config_of(path, tools)
    call_tool('train.py', config, '--work-dir', path.parent / 'run', '--resume', path)


def call_test(path: Path, tools: SimpleNamespace) -> None:
    config = config_of(path, tools)
    call_tool('test.py', config, path, '--work-dir', path.parent / 'run')


def call_export(path: Path, tools: SimpleNamespace) -> None:
    call_tool('export_student.py', path, path.with_name('out.pth'))


def export(path: Path, tools: SimpleNamespace) -> None:
    export_student(path, path.with_name('out.pth'))


WAYS = [teach, start_from, resume, resume_the_newest, initialise, initialise_by_name]
WAYS += [initialise_a_part, call_train, call_test, call_export, export]


@pytest.mark.usefixtures('safe_loaders')
@pytest.mark.parametrize('way', WAYS)
def test_a_malicious_pickle_is_refused_wherever_a_checkpoint_is_read(
    way: Callable, toy: SimpleNamespace, make_runner: Callable, tmp_path: Path
) -> None:
    victim = tmp_path / 'victim'
    path = save(run_content(extra=Touch(victim)), tmp_path / 'a.pth')
    with pytest.raises(UntrustedError, match='could run code'):
        way(path, SimpleNamespace(toy=toy, make_runner=make_runner))
    assert not victim.exists()
    assert not (tmp_path / 'out.pth').exists()


@pytest.mark.parametrize('trust_pickle', [False, True])
def test_nothing_of_a_malicious_pickle_runs(trust_pickle: bool, tmp_path: Path) -> None:
    victim = tmp_path / 'victim'
    contents = [
        Touch(victim),
        dict(state_dict=WEIGHTS, meta=Touch(victim)),
        dict(state_dict={'weight': Touch(victim)}),
    ]
    paths = [save(content, tmp_path / f'{i}.pth') for i, content in enumerate(contents)]
    old = dict(_use_new_zipfile_serialization=False)
    paths.append(save(contents[1], tmp_path / 'old.pth', **old))
    paths.append(tmp_path / 'plain.pth')
    paths[-1].write_bytes(pickle.dumps(contents[1], protocol=2))
    for path in paths[: 3 if trust_pickle else None]:
        if trust_pickle:
            read_checkpoint(path, trust_pickle=True)
            assert victim.exists()
            victim.unlink()
        else:
            with pytest.raises(UntrustedError, match=r'code.*`trust_pickle=True`'):
                read_checkpoint(path)
            assert not victim.exists()


@pytest.mark.parametrize(
    ('owner', 'name'),
    [(HistoryBuffer, '__init__'), (dict, 'mro'), (np.ndarray, 'tofile')],
)
def test_nothing_is_reached_through_getattr(
    owner: type, name: str, tmp_path: Path
) -> None:
    path = save(dict(state_dict=WEIGHTS, meta=Reach(owner, name)), tmp_path / 'a.pth')
    with pytest.raises(UntrustedError, match='could run code'):
        read_checkpoint(path)


@pytest.mark.usefixtures('safe_loaders')
def test_no_config_in_a_checkpoint_runs_when_it_is_resumed(
    toy: SimpleNamespace, make_runner: Callable, tmp_path: Path
) -> None:
    make_runner(toy.gfl()['model'], train_cfg=dict(by_epoch=True, max_epochs=1)).train()
    content = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    victim = tmp_path / 'victim'
    content['meta']['config'] = (
        f'from pathlib import Path\nPath({str(victim)!r}).touch()'
    )
    path = save(content, tmp_path / 'epoch_1.pth')
    make_runner(toy.gfl()['model'], load_from=str(path), resume=True).train()
    assert not victim.exists()


@pytest.mark.usefixtures('safe_loaders')
def test_no_loader_of_mmengine_is_used() -> None:
    assert len({loader for loader in CheckpointLoader._schemes.values()}) == 1


@pytest.mark.usefixtures('safe_loaders')
def test_mmengine_resumes_and_loads_by_the_safe_loaders(
    toy: SimpleNamespace, make_runner: Callable, tmp_path: Path
) -> None:
    model = toy.gfl()['model']
    make_runner(model, train_cfg=dict(by_epoch=True, max_epochs=1)).train()
    path = tmp_path / 'epoch_1.pth'
    resumed = make_runner(model, load_from=str(path), resume=True)
    resumed.train()
    assert resumed.epoch == 2
    # A relative path, and a safetensors file.
    state = torch.load(path, weights_only=False)['state_dict']
    safetensors.torch.save_file(state, tmp_path / 'a.safetensors')
    for source in (os.path.relpath(path), str(tmp_path / 'a.safetensors')):
        plain = toy.build(toy.gfl())
        load_checkpoint(plain, source, map_location='meta', strict=True)
        assert all(torch.equal(plain.state_dict()[key], state[key]) for key in state)


@pytest.mark.usefixtures('safe_loaders')
def test_mmcls_names_load_the_backbone_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {'backbone.a': torch.ones(1), 'head.backbone.a': torch.zeros(1)}
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(
        'kdtoolbox.checkpoints.locations.download',
        lambda url, target, _: torch.save(dict(state_dict=state), target),
    )
    loaded = CheckpointLoader.load_checkpoint('mmcls://vgg11')
    assert loaded == dict(state_dict={'a': torch.ones(1)})


def test_the_records_of_a_run_are_read_without_trust(tmp_path: Path) -> None:
    noted = dict(
        metainfo=ConfigDict(classes=('a',), areas=ConfigDict(small=1)),
        palette=np.array([[1, 2, 3]], np.uint8),
        best=np.float32(0.5),
        flags=[np.bool_(True), np.int32(1), np.float16(1)],
    )
    path = save(dict(state_dict=WEIGHTS, meta=noted), tmp_path / 'a.pth')
    meta = read_checkpoint(path)['meta']
    assert meta['metainfo'] == noted['metainfo']
    assert meta['palette'].tolist() == [[1, 2, 3]]
    assert (meta['best'], meta['flags']) == (noted['best'], noted['flags'])


def test_trust_pickle_loads_a_custom_object(tmp_path: Path) -> None:
    meta = dict(args=argparse.Namespace(lr=0.1))
    path = save(dict(state_dict=WEIGHTS, meta=meta), tmp_path / 'a.pth')
    with pytest.raises(UntrustedError, match='argparse.Namespace'):
        read_checkpoint(path)
    assert read_checkpoint(path, trust_pickle=True)['meta'] == meta


def test_the_command_in_the_message_extracts_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(dict(state_dict=WEIGHTS, meta=argparse.Namespace()), tmp_path / 'a.pth')
    with pytest.raises(UntrustedError) as error:
        read_checkpoint('a.pth')
    line = str(error.value).partition('weights: ')[2].rpartition(', or')[0]
    interpreter, flag, code = shlex.split(line)
    assert (interpreter, flag) == ('python', '-c')
    exec(code, {})
    state = read_checkpoint('a_weights.pth')['state_dict']
    assert all(torch.equal(state[key], WEIGHTS[key]) for key in WEIGHTS)


def test_reading_does_not_change_torchs_safe_globals(tmp_path: Path) -> None:
    # As sets, since the order of torch's list is random.
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(save(WEIGHTS, tmp_path / 'a.pth'))
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize(
    'content', [b'', b'P', b'PK', b'\x80\2', b'\0' * 99, b'<html>404</html>', None]
)
@pytest.mark.parametrize('trust_pickle', [False, True])
def test_broken_file_is_named_and_not_trusted(
    tmp_path: Path, content: bytes | None, trust_pickle: bool
) -> None:
    path = save(WEIGHTS, tmp_path / 'broken.pth')
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(ValueError, match=r'broken\.pth.* is damaged') as caught:
        read_checkpoint(path, trust_pickle)
    assert not isinstance(caught.value, UntrustedError)


def test_broken_safetensors_is_named(tmp_path: Path) -> None:
    (tmp_path / 'broken.safetensors').write_bytes(b'<html>404</html>')
    with pytest.raises(ValueError, match=r'broken\.safetensors'):
        read_checkpoint(tmp_path / 'broken.safetensors')


def test_a_damaged_checkpoint_reads_the_same_or_not_at_all(tmp_path: Path) -> None:
    path = save(dict(state_dict=WEIGHTS, meta=dict(epoch=1)), tmp_path / 'a.pth')
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 17):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        for content in (bytes(flipped), whole[:place]):
            path.write_bytes(content)
            try:
                checkpoint = read_checkpoint(path)
            except ValueError:
                refused += 1
            else:
                # Only padding and dates can change without an error.
                assert len(content) == len(whole)
                assert checkpoint['meta'] == dict(epoch=1)
                state = checkpoint['state_dict']
                assert all(torch.equal(state[key], WEIGHTS[key]) for key in WEIGHTS)
    assert refused > len(whole) / 17


@pytest.fixture
def flip(tmp_path: Path) -> Callable[[Path, int], tuple[int, int]]:
    """Return a function that flips one bit in each of many bytes of a file.

    It returns the numbers of errors and of flips. Without an error, the damaged file
    has to read like the original one.
    """

    def try_all(path: Path, count: int) -> tuple[int, int]:
        whole, expected = path.read_bytes(), tensors_of(path)
        places = range(0, len(whole), max(1, len(whole) // count))
        messages = []
        copy = tmp_path / 'copy' / path.name
        copy.parent.mkdir(exist_ok=True)
        for place in places:
            flipped = bytearray(whole)
            flipped[place] ^= 1 << place % 8
            copy.write_bytes(flipped)
            try:
                state = tensors_of(copy)
            except ValueError as error:
                messages.append(str(error))
            else:
                assert_same(state, expected)
        assert all(str(copy) in message for message in messages)
        return len(messages), len(places)

    return try_all


def tensors_of(path: Path) -> dict:
    content = read_checkpoint(path)
    return content.get('state_dict', content)


def assert_same(state: dict, expected: dict) -> None:
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert (state[key].dtype, state[key].shape) == (value.dtype, value.shape)
        assert torch.equal(state[key], value)


def named_by_hash(path: Path) -> Path:
    """Add the hash to the name of a file, as in published files of OpenMMLab."""
    return path.rename(
        path.with_name(f'{path.stem}-{file_digest(path)[:8]}{path.suffix}')
    )


def test_every_flipped_bit_of_an_exported_safetensors_file_is_told(
    tmp_path: Path, flip: Callable
) -> None:
    state = {
        'student.a.weight': torch.arange(12.0).reshape(4, 3),
        'student.a.bias': torch.ones(4, dtype=torch.bfloat16),
        'student.steps': torch.tensor(7),
    }
    source = save(dict(state_dict=state), tmp_path / 'a.pth')
    export_student(source, tmp_path / 'a.safetensors')
    errors, flips = flip(tmp_path / 'a.safetensors', 10_000)
    # Only padding and the name of the digest can change without an error.
    assert flips - errors <= len('kdtoolbox_sha256') + 8


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_every_flipped_bit_of_the_shipped_teachers_is_detected(
    task: str, flip: Callable
) -> None:
    path = ROOT / f'configs/digits/{task}_teacher.safetensors'
    with safe_open(path, framework='pt') as file:
        assert file.metadata().keys() == {DIGEST_KEY}
    errors, flips = flip(path, 60)
    assert errors == flips


@pytest.mark.parametrize('kind', ['legacy', 'safetensors'])
def test_every_flipped_bit_of_a_file_with_a_hash_in_its_name_is_detected(
    kind: str, tmp_path: Path, flip: Callable
) -> None:
    if kind == 'safetensors':
        path = tmp_path / 'a.safetensors'
        safetensors.torch.save_file(WEIGHTS, path)
    else:
        options = dict(_use_new_zipfile_serialization=False, pickle_protocol=2)
        path = save(dict(state_dict=WEIGHTS), tmp_path / 'a.pth', **options)
    errors, flips = flip(named_by_hash(path), 10_000)
    assert errors == flips > 100


def test_the_error_of_a_changed_file_contains_the_fix(tmp_path: Path) -> None:
    old = dict(_use_new_zipfile_serialization=False)
    path = save(WEIGHTS, tmp_path / 'net-0123abcd.pth', **old)
    with pytest.raises(
        ValueError, match='hash 0123abcd, .* rename it without'
    ) as caught:
        read_checkpoint(path)
    assert not isinstance(caught.value, UntrustedError)
    assert_same(read_checkpoint(path.rename(tmp_path / 'net.pth')), WEIGHTS)

    path = tmp_path / 'a.safetensors'
    safetensors.torch.save_file(WEIGHTS, path, {DIGEST_KEY: tensor_digest({})})
    with pytest.raises(ValueError, match=f'{DIGEST_KEY} .* without that entry'):
        read_checkpoint(path)


@pytest.mark.parametrize(
    'name', ['a-20240131.pth', 'a-00050000.pth', 'a-3f2a91b.pth', 'a-0123abcd.bin']
)
def test_names_without_a_hash_are_not_checked(name: str, tmp_path: Path) -> None:
    old = dict(_use_new_zipfile_serialization=False)
    assert_same(read_checkpoint(save(WEIGHTS, tmp_path / name, **old)), WEIGHTS)


def test_a_whole_archive_may_have_any_name(tmp_path: Path) -> None:
    # Users often keep the name of a file that they fine-tune or strip.
    path = save(WEIGHTS, tmp_path / 'net-0123abcd.pth')
    assert_same(read_checkpoint(path), WEIGHTS)


def test_tensors_in_another_order_have_the_same_digest(tmp_path: Path) -> None:
    state = {'a': torch.ones(2), 'b': torch.zeros(3), 'empty': torch.zeros(0, 2)}
    note = {DIGEST_KEY: tensor_digest(state), 'format': 'pt'}
    turned = dict(reversed(state.items()))
    safetensors.torch.save_file(turned, tmp_path / 'a.safetensors', note)
    assert_same(read_checkpoint(tmp_path / 'a.safetensors'), state)


def test_the_error_of_a_damaged_cached_file_contains_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(
        'kdtoolbox.checkpoints.locations.download',
        lambda url, target, _: target.write_text('404'),
    )
    expected = rf"'{tmp_path}/checkpoints/\w+/a\.pth' is damaged .*; remove it to fetch"
    with pytest.raises(ValueError, match=expected):
        read_checkpoint('https://example.com/a.pth')
