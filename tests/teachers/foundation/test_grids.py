import pytest
import torch

from kdtoolbox.teachers.foundation.grids import to_map

IMAGE = (42, 70)


def test_tokens_of_patches_become_a_map_row_by_row() -> None:
    tokens = torch.arange(2 * 17 * 3.0).reshape(2, 17, 3)
    found = to_map(tokens, IMAGE, 14)
    assert found.shape == (2, 3, 3, 5)
    for row in range(3):
        for column in range(5):
            token = tokens[:, 2 + row * 5 + column]
            assert torch.equal(found[:, :, row, column], token)


def test_channels_are_found_before_and_behind_the_grid() -> None:
    grid = torch.randn(2, 8, 3, 5)
    assert to_map(grid, IMAGE, None) is grid
    assert torch.equal(to_map(grid.permute(0, 2, 3, 1), IMAGE, 14), grid)


def test_a_map_rounded_by_strided_convolutions_is_still_one() -> None:
    grid = torch.randn(1, 40, 4, 5)
    assert to_map(grid, (100, 140), None) is grid


@pytest.mark.parametrize(
    ('output', 'patch', 'message'),
    [
        (torch.zeros(2, 7), 14, r'expected a map .* got shape \(2, 7\)'),
        ('maps', 14, 'got str; choose others'),
        (torch.zeros(2, 8, 30, 5), 14, 'sides have another ratio'),
        (torch.zeros(2, 16, 3), None, 'set `patch_size` in pixels'),
        (torch.zeros(2, 14, 3), 14, '3 x 5 patches of 14 pixels'),
        (torch.zeros(2, 15 + 17, 3), 14, r'at most 16 tokens .* \(2, 32, 3\)'),
    ],
)
def test_other_outputs_are_refused(output: object, patch: int, message: str) -> None:
    with pytest.raises(ValueError, match=f'model.teacher: .*{message}'):
        to_map(output, IMAGE, patch)
