import pytest
import torch

from kdtoolbox.connectors import LevelsConnector


def test_levels_are_taken_unchanged_and_in_order() -> None:
    maps = [torch.zeros(1, 2, size, size) for size in (8, 4, 2)]
    found = LevelsConnector([2, 0])(maps)
    assert [id(level) for level in found] == [id(maps[2]), id(maps[0])]


def test_a_missing_level_is_named() -> None:
    with pytest.raises(ValueError, match=r'has 2 levels, so .* 0 to 1, got \[0, 2\]'):
        LevelsConnector([0, 2])([torch.zeros(1)] * 2)


@pytest.mark.parametrize('levels', [[], [-1], [0.5], 'ab'])
def test_levels_are_positions_from_zero(levels: object) -> None:
    with pytest.raises(ValueError, match='expected levels='):
        LevelsConnector(levels)
