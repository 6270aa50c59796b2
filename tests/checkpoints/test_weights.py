from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from kdtoolbox.checkpoints import weights
from kdtoolbox.checkpoints.student_export import (
    export_student,
    select_student,
    write_student,
)
from kdtoolbox.checkpoints.weights import (
    class_names,
    load_checkpoint,
    load_strictly,
)

WEIGHTS = {'conv.weight': torch.arange(4.0).reshape(2, 2), 'conv.bias': torch.ones(2)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.neck = nn.Sequential(nn.Conv2d(4, 4, 1))


def assert_equal(state: dict, expected: dict) -> None:
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize('as_type', [str, Path])
def test_plain_state_dict(tmp_path: Path, as_type: type) -> None:
    path = save(WEIGHTS, tmp_path / 'a.pth')
    loaded = load_checkpoint(as_type(path))
    assert_equal(loaded['state_dict'], WEIGHTS)
    assert loaded['meta'] == {}


def test_state_dict_below_its_key_with_meta(tmp_path: Path) -> None:
    path = save(dict(state_dict=WEIGHTS, meta=dict(epoch=3)), tmp_path / 'a.pth')
    loaded = load_checkpoint(path)
    assert_equal(loaded['state_dict'], WEIGHTS)
    assert loaded['meta'] == dict(epoch=3)


def test_safetensors(tmp_path: Path) -> None:
    safetensors.torch.save_file(WEIGHTS, tmp_path / 'a.safetensors')
    state = load_checkpoint(tmp_path / 'a.safetensors')['state_dict']
    assert_equal(state, WEIGHTS)


def test_real_runner_checkpoint_loads_without_trust(
    toy: SimpleNamespace, make_runner: Callable, tmp_path: Path
) -> None:
    config = toy.gfl()
    make_runner(config['model'], train_cfg=dict(by_epoch=True, max_epochs=1)).train()
    raw = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    # The history of the losses is pickled as an object.
    assert raw['message_hub']['log_scalars']
    loaded = load_checkpoint(tmp_path / 'epoch_1.pth')
    assert_equal(loaded['state_dict'], raw['state_dict'])
    load_strictly(toy.build(config), loaded['state_dict'], 'epoch_1')


@pytest.mark.parametrize(
    'content',
    [dict(epoch=1), {}, dict(state_dict={}), [1, 2], torch.ones(2), dict(a=[1])],
    ids=['meta alone', 'empty', 'empty state', 'list', 'tensor', 'no tensors'],
)
def test_file_without_state_dict(tmp_path: Path, content: Any) -> None:
    path = save(content, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'a\.pth.* contains no state dict'):
        load_checkpoint(path)


@pytest.mark.parametrize('kind', ['alone', 'beside meta', 'of the optimizer itself'])
def test_file_of_an_optimizer(tmp_path: Path, kind: str) -> None:
    optimizer = torch.optim.SGD(Net().parameters(), 1.0).state_dict()
    contents = {
        'alone': dict(optimizer=optimizer),
        'beside meta': dict(optimizer=optimizer, meta=dict(epoch=1)),
        'of the optimizer itself': optimizer,
    }
    path = save(contents[kind], tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='but the state of an optimizer') as caught:
        load_checkpoint(path)
    assert 'under `state_dict`' in str(caught.value)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of the lines that the module logs."""
    lines: list[str] = []
    monkeypatch.setattr(weights, 'print_log', lambda text, logger: lines.append(text))
    return lines


@pytest.fixture
def run_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str], None]:
    """Return a function that runs the command in a line of the log."""
    monkeypatch.chdir(tmp_path)
    return lambda line: exec(line.partition('python -c "')[2].removesuffix('"'), {})


def test_ema_of_mmengine(
    toy: SimpleNamespace,
    make_runner: Callable,
    tmp_path: Path,
    logged: list[str],
    run_command: Callable[[str], None],
) -> None:
    """The average is in `state_dict`, the last step in `ema_state_dict`."""
    config = toy.gfl()
    runner = make_runner(
        config['model'],
        train_cfg=dict(by_epoch=True, max_epochs=1),
        custom_hooks=[dict(type='EMAHook', momentum=0.3)],
    )
    runner.train()
    [hook] = [hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook']
    average, last = hook.ema_model.module.state_dict(), runner.model.state_dict()
    key = 'bbox_head.gfl_cls.weight'
    assert not torch.equal(average[key], last[key])
    assert_equal(load_checkpoint(tmp_path / 'epoch_1.pth')['state_dict'], average)
    assert 'loaded the average' in logged[0]
    run_command(logged[0])
    other = load_checkpoint(tmp_path / 'epoch_1_other.pth')
    assert other['meta']['epoch'] == 1
    model = toy.build(config)
    load_strictly(model, other['state_dict'], 'other')
    assert_equal(model.state_dict(), last)


@pytest.mark.parametrize('nested', [True, False])
@pytest.mark.parametrize('trust', [True, False])
def test_ema_of_mmdet_2(
    tmp_path: Path,
    logged: list[str],
    run_command: Callable[[str], None],
    nested: bool,
    trust: bool,
) -> None:
    net = Net()
    plain = net.state_dict()
    averages = {key: value + 1 for key, value in plain.items() if 'num' not in key}
    for key, value in averages.items():
        net.register_buffer('ema_' + key.replace('.', '_'), value)
    state = net.state_dict()
    meta = SimpleNamespace() if trust else dict(epoch=2)
    content = dict(state_dict=state, meta=meta) if nested or trust else state
    path = save(content, tmp_path / 'old.pth')
    loaded = load_checkpoint(path, trust)['state_dict']
    assert_equal(loaded, plain)
    load_strictly(Net(), loaded, 'old')
    assert 'not the keys that start with `ema_`' in logged[0]
    run_command(logged[0])
    other = load_checkpoint(tmp_path / 'old_other.pth', trust)['state_dict']
    assert_equal(other, {**plain, **averages})


def test_a_single_copy_of_the_weights_logs_nothing(
    tmp_path: Path, logged: list[str]
) -> None:
    path = save(dict(state_dict=WEIGHTS, meta={}), tmp_path / 'a.pth')
    load_strictly(nn.ModuleDict(dict(conv=nn.Linear(2, 2))), WEIGHTS, 'a')
    load_checkpoint(path)
    assert not logged


@pytest.mark.parametrize(
    ('meta', 'names'),
    [
        (dict(dataset_meta=dict(classes=('a', 'b'))), ('a', 'b')),
        (dict(dataset_meta=dict(CLASSES=['a', 'b'])), ('a', 'b')),
        (dict(CLASSES=('a', 'b')), ('a', 'b')),
        (dict(CLASSES='person'), ('person',)),
        (dict(dataset_meta=None), None),
        (dict(dataset_meta=dict(classes=None)), None),
        ({}, None),
        (SimpleNamespace(), None),
    ],
)
def test_class_names(meta: Any, names: tuple | None) -> None:
    assert class_names(meta) == names


def test_load_strictly_logs_the_removed_prefix(logged: list[str]) -> None:
    net = Net()
    state = nn.ModuleDict(dict(module=net)).state_dict()
    target = Net()
    load_strictly(target, state, "'net.pth'")
    assert_equal(target.state_dict(), net.state_dict())
    assert logged == ["checkpoint 'net.pth': removed 'module.' in front of its keys"]


@pytest.mark.usefixtures('logged')
def test_missing_keys_are_named_without_the_removed_prefix() -> None:
    state = nn.ModuleDict(dict(module=Net())).state_dict()
    del state['module.neck.0.bias']
    with pytest.raises(ValueError, match=r'\(removed .module.. in') as caught:
        load_strictly(Net(), state, 'a')
    assert '1 missing (neck.0: 1), such as neck.0.bias' in str(caught.value)
    assert 'unexpected' not in str(caught.value)


def test_load_strictly_fills_the_model() -> None:
    source, target = Net(), Net()
    load_strictly(target, source.state_dict(), 'a')
    assert_equal(target.state_dict(), source.state_dict())


def test_missing_and_unexpected_keys_are_counted_by_submodule() -> None:
    state = Net().state_dict()
    for key in ('backbone.1.weight', 'backbone.1.bias', 'neck.0.bias'):
        state[f'student.{key}'] = state.pop(key)
    with pytest.raises(ValueError, match='does not fit Net') as caught:
        load_strictly(Net(), state, "'net.pth'")
    message = str(caught.value)
    assert "'net.pth'" in message
    assert '3 missing (backbone.1: 2, neck.0: 1)' in message
    assert '3 unexpected (student.backbone: 2, student.neck: 1)' in message


def test_misshapen_keys_are_counted_with_both_shapes() -> None:
    state = Net().state_dict()
    state['neck.0.weight'] = torch.ones(5, 4, 1, 1)
    state['neck.0.bias'] = torch.ones(5)
    with pytest.raises(ValueError, match=r'2 misshapen \(neck.0: 2\)') as caught:
        load_strictly(Net(), state, 'a')
    assert 'neck.0.weight (5, 4, 1, 1) for (4, 4, 1, 1)' in str(caught.value)
    assert 'missing' not in str(caught.value)


def test_missing_keys_show_beside_misshapen_ones() -> None:
    state = Net().state_dict()
    state['neck.0.weight'] = torch.ones(5, 4, 1, 1)
    del state['backbone.0.weight'], state['backbone.0.bias']
    with pytest.raises(ValueError, match='1 misshapen') as caught:
        load_strictly(Net(), state, 'a')
    assert '2 missing (backbone.0: 2)' in str(caught.value)


def test_select_student_keeps_layout_versions() -> None:
    model = nn.ModuleDict(dict(student=Net(), connectors=nn.Conv2d(1, 1, 1)))
    state = model.state_dict()
    student = select_student(state)
    assert_equal(student, model['student'].state_dict())
    assert isinstance(student, OrderedDict)
    assert student._metadata['backbone.1'] == dict(version=2)
    assert set(student._metadata) == set(Net().state_dict()._metadata)


def test_select_student_passes_a_plain_state() -> None:
    state = Net().state_dict()
    assert select_student(state) is state


def distilled(net: nn.Module) -> dict:
    model = nn.ModuleDict(dict(student=net, connectors=nn.Conv2d(1, 1, 1)))
    meta = dict(cfg='model = 1', epoch=3, dataset_meta=dict(classes=('a',)))
    return dict(meta=meta, state_dict=model.state_dict(), optimizer={})


@pytest.mark.parametrize('name', ['out.pth', 'out.safetensors'])
def test_export_writes_a_plain_student(tmp_path: Path, name: str) -> None:
    net = Net()
    source = save(distilled(net), tmp_path / 'epoch_3.pth')
    export_student(source, tmp_path / name)
    assert files_of(tmp_path) == sorted(['epoch_3.pth', name])
    state = load_checkpoint(tmp_path / name)['state_dict']
    assert_equal(state, net.state_dict())


def test_export_keeps_the_meta_but_not_the_distillers_config(tmp_path: Path) -> None:
    source = save(distilled(Net()), tmp_path / 'epoch_3.pth')
    export_student(source, tmp_path / 'out.pth')
    exported = torch.load(tmp_path / 'out.pth', weights_only=True)
    assert exported.keys() == {'meta', 'state_dict'}
    assert exported['meta'] == dict(epoch=3, dataset_meta=dict(classes=('a',)))
    assert exported['state_dict']._metadata['backbone.1'] == dict(version=2)


@pytest.mark.parametrize('name', ['out.pth', 'out.safetensors'])
def test_export_of_tied_weights(tmp_path: Path, name: str) -> None:
    # The levels of RTMDet's heads share convolutions.
    net = Net()
    net.twin = net.neck
    source = save(distilled(net), tmp_path / 'epoch_3.pth')
    export_student(source, tmp_path / name)
    state = load_checkpoint(tmp_path / name)['state_dict']
    assert_equal(state, net.state_dict())


@pytest.mark.parametrize('name', ['out.pth', 'out.safetensors'])
def test_export_of_weights_in_channels_last(tmp_path: Path, name: str) -> None:
    net = Net().to(memory_format=torch.channels_last)
    net.wide = nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last)
    export_student(save(distilled(net), tmp_path / 'a.pth'), tmp_path / name)
    assert_equal(load_checkpoint(tmp_path / name)['state_dict'], net.state_dict())


@pytest.mark.parametrize('name', ['out.pth', 'out.safetensors'])
@pytest.mark.parametrize('meta', [None, [], 'text', dict(cfg=None, dataset_meta=None)])
def test_export_of_a_plain_dict_with_any_meta(
    tmp_path: Path, name: str, meta: Any
) -> None:
    state = {f'student.{key}': value for key, value in WEIGHTS.items()}
    source = save(dict(meta=meta, state_dict=state), tmp_path / 'a.pth')
    export_student(source, tmp_path / name)
    assert_equal(load_checkpoint(tmp_path / name)['state_dict'], WEIGHTS)
    # tools/make_teachers.py writes state dicts without the prefix.
    write_student(dict(meta=meta, state_dict=WEIGHTS), tmp_path / name)
    assert_equal(load_checkpoint(tmp_path / name)['state_dict'], WEIGHTS)


@pytest.mark.parametrize('prefix', ['', 'module.student.', 'students.', 'teacher.'])
def test_export_refuses_a_checkpoint_without_a_student(
    tmp_path: Path, prefix: str
) -> None:
    state = {prefix + key: value for key, value in WEIGHTS.items()}
    source = save(dict(state_dict=state), tmp_path / 'a.pth')
    first = prefix.partition('.')[0] or 'conv'
    with pytest.raises(ValueError, match=rf'a.pth. holds no student.*got {first}\. '):
        export_student(source, tmp_path / 'out.pth')
    assert files_of(tmp_path) == ['a.pth']


@pytest.mark.parametrize('name', ['out.pth', 'out.safetensors'])
def test_export_names_the_folder_that_is_missing(tmp_path: Path, name: str) -> None:
    source = save(distilled(Net()), tmp_path / 'a.pth')
    with pytest.raises(OSError, match='no folder .*gone.; make it first') as caught:
        export_student(source, tmp_path / 'gone' / name)
    assert 'partial' not in str(caught.value)


@pytest.mark.parametrize('name', ['out.pth', 'out.safetensors'])
def test_failing_export_does_not_change_the_target(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(distilled(Net()), tmp_path / 'epoch_3.pth')
    (tmp_path / name).write_text('old')

    def fill_the_disk(descriptor: int) -> None:
        raise OSError('No space left on device')

    monkeypatch.setattr('os.fsync', fill_the_disk)
    with pytest.raises(OSError, match='No space'):
        export_student(source, tmp_path / name)
    assert (tmp_path / name).read_text() == 'old'
    assert files_of(tmp_path) == sorted(['epoch_3.pth', name])
