"""`docs/private-apis.md` lists each private or patched API of other libraries."""

import ast
import doctest
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import kdtoolbox.recorders

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = {'_base_', '_delete_', '_scope_', '_exit'}
"""Keys of a config, and ``os._exit``, which are documented in spite of their names."""
LOOKUPS = {'getattr', 'hasattr', 'setattr', 'delattr', 'get', 'import_module'}


def is_private(name: object) -> bool:
    last = name.rpartition('.')[2] if isinstance(name, str) else ''
    return bool(re.fullmatch(r'_[a-z]\w*', last)) and last not in PUBLIC


def own_names(tree: ast.AST) -> Iterator[str]:
    """Yield the private methods and attributes that the classes of a file define."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from (n.name for n in node.body if isinstance(n, ast.FunctionDef))
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and getattr(node.value, 'id', '') == 'self'
        ):
            yield node.attr


def is_super(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'super'


def private(tree: ast.AST, own: set[str]) -> Iterator[str]:
    """Yield the private names of others that a file uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if is_private(node.attr) and (is_super(node.value) or node.attr not in own):
                yield node.attr
        elif isinstance(node, ast.Call):
            name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
            texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
            if name in LOOKUPS:
                yield from (t for t in texts if is_private(t) and t not in own)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [*node.module.split('.'), *(alias.name for alias in node.names)]
            if not node.module.startswith('kdtoolbox'):
                yield from filter(is_private, names)


def patched(tree: ast.AST) -> Iterator[str]:
    """Yield what a file replaces in objects that it has not made."""
    functions = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
            if name.startswith('register_') and any(
                k.arg == 'force' and getattr(k.value, 'value', False)
                for k in node.keywords
            ):
                yield name
        if not isinstance(node, ast.Assign):
            continue
        value = node.value
        is_function = getattr(value, 'id', '') in functions or (
            isinstance(value, ast.Call) and getattr(value.func, 'id', '') == 'partial'
        )
        for target in node.targets:
            if isinstance(target, ast.Attribute):
                name = target.attr
                if is_function or (name.startswith('__') and name != '__name__'):
                    yield name
            elif isinstance(target, ast.Subscript):
                name = getattr(target.value, 'attr', '')
                if name.isupper():
                    yield name


def sources() -> list[Path]:
    folders = ('kdtoolbox', 'tools')
    found = [path for name in folders for path in (ROOT / name).rglob('*.py')]
    return [*found, ROOT / 'conftest.py', ROOT / 'tests/conftest.py']


def uses() -> set[tuple[str, str]]:
    """Return each name with the file that uses it."""
    trees = {path: ast.parse(path.read_text()) for path in sources()}
    own = {name for tree in trees.values() for name in own_names(tree)}
    return {
        (name, path.relative_to(ROOT).as_posix())
        for path, tree in trees.items()
        for name in [*private(tree, own), *patched(tree)]
    }


def table() -> list[list[str]]:
    lines = (ROOT / 'docs/private-apis.md').read_text().splitlines()
    rows = [line.strip('|').split('|') for line in lines if line.startswith('| `')]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_page_lists_every_private_api() -> None:
    listed = {
        (name.strip('`'), path)
        for name, _, where, *_ in table()
        for path in re.findall(r'`(\S+)`', where)
    }
    found = uses()
    assert not found - listed
    # The fixtures of the tests may do without.
    assert not {(n, p) for n, p in listed - found if not p.startswith('tests/')}


def test_each_private_api_has_a_test() -> None:
    for name, _, _, why, tests in table():
        assert why, name
        for place in re.findall(r'`(\S+)`', tests):
            path, _, function = place.partition('::')
            assert f'\ndef {function}(' in (ROOT / path).read_text(), place


@pytest.mark.parametrize(
    ('code', 'names'),
    [
        ('x._version', ['_version']),
        ("hasattr(x, '_orig_mod')", ['_orig_mod']),
        ("import_module('torch._dynamo')", ['torch._dynamo']),
        ('super()._apply(fn)', ['_apply']),
        ('from torch._utils import x', ['_utils']),
        ("x['_base_']; x.public; x.__class__", []),
        ('class A:\n def _f(self): self._f()', []),
    ],
)
def test_private_names_are_recognised(code: str, names: list[str]) -> None:
    tree = ast.parse(code)
    assert list(private(tree, set(own_names(tree)))) == names


@pytest.mark.parametrize(
    ('code', 'names'),
    [
        ('def f(): ...\nhead.loss = f', ['loss']),
        ('x.__getitems__ = partial(f, x)', ['__getitems__']),
        ('module.TABLE[0] = 1', ['TABLE']),
        ("register_backend('local', A, force=True)", ['register_backend']),
        ('x.value = 1', []),
    ],
)
def test_patches_are_recognised(code: str, names: list[str]) -> None:
    assert list(patched(ast.parse(code))) == names


# One test for each API that no other test covers directly.


def test_module_apply_moves_every_tensor() -> None:
    class Counting(nn.Linear):
        calls = 0

        def _apply(self, fn, recurse=True):
            self.calls += 1
            return super()._apply(fn, recurse)

    layer = Counting(1, 1)
    layer.to(torch.float64)
    layer.half()
    assert layer.calls == 2
    assert layer.weight.dtype == torch.float16


def test_module_load_from_state_dict_sees_all_keys_before_loading() -> None:
    class Renaming(nn.Linear):
        def _load_from_state_dict(self, state, prefix, *args):
            state[f'{prefix}weight'] = state.pop('old')
            super()._load_from_state_dict(state, prefix, *args)

    layer = Renaming(1, 1, bias=False)
    layer.load_state_dict({'old': torch.full((1, 1), 7.0)})
    assert layer.weight.item() == 7


def test_state_dict_metadata_holds_versions_by_module() -> None:
    state = nn.Sequential(nn.BatchNorm2d(1)).state_dict()
    assert state._metadata['0'] == dict(version=2)


def test_module_keeps_its_children_in_modules() -> None:
    assert list(nn.Sequential(nn.ReLU()).__dict__['_modules']) == ['0']


def test_torch_compile_wraps_the_model_as_orig_mod() -> None:
    layer = nn.Linear(1, 1)
    assert torch.compile(layer)._orig_mod is layer


def test_numpy_pickles_arrays_and_scalars_by_these_functions() -> None:
    core = getattr(np, '_core', None) or np.core
    assert np.zeros(1).__reduce__()[0] is core.multiarray._reconstruct
    assert np.float64(1).__reduce__()[0] is core.multiarray.scalar


def test_the_loader_asks_the_data_set_object_for_getitems() -> None:
    class Numbers(list):
        pass

    data = Numbers(range(4))
    data.__getitems__ = lambda indices: [-index for index in indices]
    batches = DataLoader(data, batch_size=2, collate_fn=list)
    assert list(batches) == [[0, -1], [-2, -3]]


def test_runner_keeps_resume_and_load_from() -> None:
    from mmengine.runner import Runner

    source = inspect.getsource(Runner.__init__)
    assert 'self._resume = resume' in source
    assert 'self._load_from = load_from' in source


@pytest.mark.parametrize('kind', ['EpochBasedTrainLoop', 'IterBasedTrainLoop'])
def test_train_loops_decide_their_validation_interval(kind: str) -> None:
    from mmengine.runner import loops

    source = inspect.getsource(getattr(loops, kind)._decide_current_val_interval)
    assert 'self.val_interval = ' in source


def test_preprocessors_tell_whether_they_swap_channels() -> None:
    from mmdet.models import DetDataPreprocessor
    from mmseg.models import SegDataPreProcessor

    assert DetDataPreprocessor(bgr_to_rgb=True)._channel_conversion
    swapping = SegDataPreProcessor(
        mean=[0] * 3, std=[1] * 3, bgr_to_rgb=True, size=(4, 4)
    )
    names = ('_channel_conversion', 'channel_conversion')
    assert any(getattr(swapping, name, False) for name in names)


def test_label_maps_are_loaded_by_the_method_of_mmseg() -> None:
    from mmseg.datasets.transforms import LoadAnnotations

    assert LoadAnnotations._load_seg_map.__module__.startswith('mmseg.')


def test_roi_heads_ask_the_box_head_by_bbox_forward_and_loss() -> None:
    from mmdet.models import BBoxHead, StandardRoIHead

    asked = inspect.signature(StandardRoIHead._bbox_forward)
    assert list(asked.parameters) == ['self', 'x', 'rois']
    parameters = list(inspect.signature(BBoxHead.loss).parameters)
    assert parameters[1:5] == ['cls_score', 'bbox_pred', 'rois', 'labels']
    assert 'self.loss(' in inspect.getsource(BBoxHead.loss_and_target)


@pytest.mark.parametrize('kind', ['GFLHead', 'ATSSHead', 'FCOSHead', 'RetinaHead'])
def test_dense_heads_assign_targets_by_get_targets(kind: str) -> None:
    from mmdet.models import dense_heads

    head = getattr(dense_heads, kind)
    assert 'self.get_targets(' in inspect.getsource(head.loss_by_feat)


def test_the_scopes_of_the_registries_lie_in_one_dict() -> None:
    from mmengine.registry import DefaultScope

    assert isinstance(DefaultScope._instance_dict, dict)


def test_a_test_knows_the_scopes_of_its_fixtures(
    request: pytest.FixtureRequest,
) -> None:
    assert hasattr(request.node._fixtureinfo, 'name2fixturedefs')


def test_doctest_finds_the_examples_of_decorated_functions() -> None:
    found = doctest.DocTestFinder().find(kdtoolbox.recorders)
    [example] = [test for test in found if test.name.endswith('.record')]
    assert example.examples
