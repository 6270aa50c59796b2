import numpy as np
import torch

from kdtoolbox.visualization import draw_map
from kdtoolbox.visualization.maps import colour_bar, paint_map

IMAGE = np.full((32, 48, 3), 90, np.uint8)


def test_a_map_is_bright_where_it_is_active() -> None:
    feature = torch.zeros(4, 8, 12)
    feature[:, 2, 3] = 5.0
    drawn = draw_map(feature, IMAGE, scale=2)
    assert drawn.shape == (64, 96, 3)
    # Red is high, blue is low.
    assert drawn[20, 28, 0] > drawn[60, 90, 0]


def test_each_cell_has_the_colour_of_its_value() -> None:
    values = np.array([[0.0, 0.5], [1.0, 2.0]])
    drawn = paint_map(values, IMAGE, top=2.0, covered=(32, 48))
    height, width = drawn.shape[:2]
    corners = [drawn[y, x] for y in (0, height - 1) for x in (0, width - 1)]
    assert len({tuple(corner) for corner in corners}) == 4
    assert (drawn[: height // 2, : width // 2] == corners[0]).all()
    assert corners[3].sum() > corners[2].sum() > corners[1].sum() > corners[0].sum()


def test_padding_is_cut_off() -> None:
    values = np.zeros((2, 3))
    values[:, 2] = 1.0
    # The last column of the map covers only padding.
    cut = paint_map(values, IMAGE, top=1.0, covered=(32, 72))
    assert cut.shape == paint_map(values, IMAGE, 1.0, (32, 48)).shape
    assert (cut == cut[0, 0]).all()


def test_an_empty_map_is_drawn() -> None:
    drawn = paint_map(np.zeros((2, 2)), IMAGE, top=0.0, covered=(32, 48))
    assert (drawn == drawn[0, 0]).all()


def test_the_scale_ends_in_the_colours_of_the_panel() -> None:
    image = np.full((300, 300, 3), 128, np.uint8)
    panel = paint_map(np.array([[0.0, 3.0]]), image, top=3.0, covered=(300, 300))
    bar = colour_bar(panel, top=3.0)
    assert bar.shape[0] == panel.shape[0]
    assert np.abs(bar[0, 5].astype(int) - panel[0, -1]).max() <= 1
    assert np.abs(bar[-1, 5].astype(int) - panel[0, 0]).max() <= 1
