import array
import datetime
import enum
import io
import types
from collections import Counter, OrderedDict, UserString, defaultdict, deque, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from torch import nn

from kdtoolbox.checkpoints.plain_values import NotPlainError, plain
from kdtoolbox.checkpoints.reading import unpickle

Point = namedtuple('Point', 'x y')


class Colour(enum.Enum):
    RED = 'red'
    PAIR = ('a', {1: Path('b')})


class Level(enum.IntEnum):
    HIGH = 2


class Name(str):
    pass


class Tagged(torch.Tensor):
    pass


class Grid(np.ndarray):
    pass


def restored(value: Any, **options: Any) -> Any:
    """Return a value after it was made plain, saved and read again."""
    file = io.BytesIO()
    torch.save(plain(value, 'meta', **options), file)
    file.seek(0)
    return unpickle(file)


@pytest.mark.parametrize(
    'value',
    [
        None, True, 3, 2**2000, -0.5, float('inf'), 1 + 2j, 'ä', b'x', bytearray(b'y'),
        [1, [2]], (1, (2, 'a')), {1: {'a': None}}, {1, 'a'}, OrderedDict(a=1),
        torch.Size([2]), torch.float16, torch.device('cpu'), [], {}, set(), (),
    ],
)  # fmt: skip
def test_plain_values_come_back_the_same(value: Any) -> None:
    result = restored(value)
    assert type(result) is type(value)
    assert result == value


@pytest.mark.parametrize(
    ('value', 'expected'),
    [
        (Path('a/b'), 'a/b'),
        (range(1, 4), [1, 2, 3]),
        (Point(1, Path('c')), (1, 'c')),
        (defaultdict(list, a=[1]), dict(a=[1])),
        (Counter('aab'), dict(a=2, b=1)),
        (ConfigDict(a=ConfigDict(b=(1,))), dict(a=dict(b=(1,)))),
        (types.MappingProxyType(dict(a=1)), dict(a=1)),
        (frozenset({1}), {1}),
        (dict(a=1).keys(), {'a'}),
        (dict(a=1).values(), [1]),
        (deque([1, 2]), [1, 2]),
        (array.array('i', [3]), [3]),
        (Colour.RED, 'red'),
        (Colour.PAIR, ('a', {1: 'b'})),
        (Level.HIGH, 2),
        ({Colour.RED: Level.HIGH}, dict(red=2)),
        (Name('a'), 'a'),
        (UserString('ab'), 'ab'),
        (np.str_('a'), 'a'),
        (np.complex64(1 + 1j), 1 + 1j),
        (np.array(['a', 'b']), ['a', 'b']),
        (np.array([1, 'a', None, Path('b')], dtype=object), [1, 'a', None, 'b']),
    ],
)
def test_other_values_get_a_plain_form(value: Any, expected: Any) -> None:
    result = restored(value)
    assert result == expected
    assert type(result) is type(expected)


NUMBERS = [
    np.arange(6, dtype=np.uint8).reshape(2, 3),
    np.arange(3, dtype='>f4'),
    np.array([True]),
    np.array(1.5, dtype=np.longdouble),
    np.ones((1, 2)).view(Grid),
    np.asfortranarray(np.ones((2, 3))),
    np.float16(0.5),
    np.longdouble(0.5),
    np.int64(3),
    np.bool_(True),
]


@pytest.mark.parametrize('value', NUMBERS, ids=repr)
def test_numbers_of_numpy_stay_or_become_lists(value: Any) -> None:
    kept = restored(value)
    np.testing.assert_array_equal(kept, value)
    assert kept.dtype.type is value.dtype.type
    file = io.BytesIO()
    torch.save(plain(dict(a=value), 'meta', arrays=False), file)
    file.seek(0)
    # torch reads it without our list of safe globals.
    np.testing.assert_array_equal(torch.load(file, weights_only=True)['a'], value)


def test_tensors_keep_their_kind_and_a_model_state_its_versions() -> None:
    assert type(restored(nn.Parameter(torch.ones(1)))) is nn.Parameter
    assert type(restored(torch.ones(1).as_subclass(Tagged))) is torch.Tensor
    state = nn.BatchNorm2d(2).state_dict()
    result = restored(state)
    assert result._metadata == state._metadata
    assert all(torch.equal(result[key], state[key]) for key in state)


def test_log_histories_keep_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = HistoryBuffer([1.0, 2.0], [1, 1], 7)
    registered = dict(HistoryBuffer._statistics_methods, own=lambda self: 5)
    monkeypatch.setattr(HistoryBuffer, '_statistics_methods', registered)
    result = restored(dict(a=buffer))['a']
    assert type(result) is HistoryBuffer
    assert [part.tolist() for part in result.data] == [[1.0, 2.0], [1, 1]]
    assert (result.max_length, result.mean()) == (7, 1.5)
    assert result.statistics('own') == 5


WITHOUT_FORM = [
    lambda: 0,
    print,
    Path,
    object(),
    types.SimpleNamespace(a=1),
    datetime.date(2020, 1, 1),
    np.datetime64('2020'),
    np.ma.array([1]),
    np.zeros(1, dtype=[('a', int)]),
    np.array([object()], dtype=object),
    2**2041,
    (i for i in ()),
    [1, print],
    {1, frozenset({2})},
    ...,
]


@pytest.mark.parametrize('value', WITHOUT_FORM, ids=lambda value: type(value).__name__)
def test_values_without_a_plain_form_are_named_and_left_out(value: Any) -> None:
    meta = dict(a=1, b=dict(c=value, d=2))
    with pytest.raises(NotPlainError, match=r'^meta\.b\.c.*expected tensors'):
        plain(meta, 'meta')
    dropped: list[str] = []
    assert restored(meta, dropped=dropped) == dict(a=1, b=dict(d=2))
    assert len(dropped) == 1
    assert dropped[0].startswith('meta.b.c')
    with pytest.raises(NotPlainError, match='^meta'):
        plain(value, 'meta', [])


def test_keys_without_a_plain_form_are_left_out_with_their_values() -> None:
    dropped: list[str] = []
    keys = {print: 1, Path('a'): 2, 'a': 3, frozenset({1}): 4, (1, Level.HIGH): 5}
    assert restored(keys, dropped=dropped) == {'a': 2, (1, 2): 5}
    assert len(dropped) == 3


def test_the_argument_is_not_modified() -> None:
    value = dict(a=[Path('b')], c=print)
    plain(value, 'meta', [])
    assert value == dict(a=[Path('b')], c=print)
