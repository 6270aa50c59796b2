import pytest
import torch

from kdtoolbox.losses.relations.rows import read_rows

MAPS = torch.arange(2 * 3 * 8 * 6, dtype=torch.float64).sin().reshape(2, 3, 8, 6)


def test_each_part_of_a_map_is_a_row() -> None:
    rows, _ = read_rows(MAPS, MAPS, grid=2)
    expected = [
        image[:, 4 * y : 4 * y + 4, 3 * x : 3 * x + 3].mean((1, 2))
        for image in MAPS
        for y in (0, 1)
        for x in (0, 1)
    ]
    torch.testing.assert_close(rows, torch.stack(expected))


def test_without_a_grid_each_image_is_a_row() -> None:
    rows, _ = read_rows(MAPS, MAPS, grid=None)
    torch.testing.assert_close(rows, MAPS.reshape(2, -1), rtol=0, atol=0)


def test_rows_are_returned_unchanged() -> None:
    rows, _ = read_rows(MAPS[:, :, 0, 0].float(), MAPS[:, :, 1, 1].half(), grid=4)
    torch.testing.assert_close(rows, MAPS[:, :, 0, 0].float(), rtol=0, atol=0)


def test_maps_of_other_sizes_and_channels_give_the_same_number_of_rows() -> None:
    maps = MAPS[:, :2].clone().requires_grad_()
    student, teacher = read_rows(MAPS[..., :1, :1], maps, grid=3)
    assert student.shape == (18, 3)
    assert teacher.shape == (18, 2)
    assert not teacher.requires_grad


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r'rows .* or maps .* got student \(3, 8, 6\)'):
        read_rows(MAPS[0], MAPS[0], 4)
    with pytest.raises(ValueError, match=r'on both sides, got .*teacher \(2, 3\)'):
        read_rows(MAPS, MAPS[:, :, 0, 0], 4)
    with pytest.raises(
        ValueError, match=r'\(1, 3, 8, 6\) have different numbers .*RoIResponses'
    ):
        read_rows(MAPS, MAPS[:1], 4)
