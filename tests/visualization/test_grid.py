from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdtoolbox.visualization import compose, save_panels
from kdtoolbox.visualization.canvas import fit, load_font, wrap

RED = np.full((60, 300, 3), (255, 0, 0), np.uint8)


def test_panels_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / 'panels.png'
    save_panels([[('a', RED), ('b', RED)], [('c', RED)]], path, 'a caption')
    assert Image.open(path).size[0] > 600
    assert list(tmp_path.iterdir()) == [path]


def test_panels_keep_their_pixels_and_titles_are_outside() -> None:
    picture = compose([[('a title', RED), ('another', RED)]])
    is_red = (picture == (255, 0, 0)).all(2)
    assert is_red.sum() == 2 * RED.shape[0] * RED.shape[1]
    # There is text above the panels, in black.
    top = np.flatnonzero(is_red.any(1))[0]
    assert (picture[:top] < 100).any()


def test_a_long_caption_makes_the_picture_higher_and_not_wider() -> None:
    short, long = (compose([[('', RED)]], 'word ' * count) for count in (1, 60))
    assert short.shape[1] == long.shape[1]
    assert long.shape[0] > short.shape[0] + 50
    # Nothing is written beyond the border.
    assert (long[:, -8:] == 255).all()


def test_lines_fit_their_width() -> None:
    font = load_font(14)
    lines = wrap('some words of a caption\nand a second line', font, 90)
    assert ' '.join(lines) == 'some words of a caption and a second line'
    assert all(font.getlength(line) <= 90 for line in lines)
    assert lines[:3] == ['some words', 'of a caption', 'and a']


@pytest.mark.parametrize(
    ('size', 'panel'),
    [((128, 128), (256, 256)), ((300, 500), (300, 500)), ((800, 1333), (432, 720))],
)
def test_panels_have_a_readable_size(size: tuple, panel: tuple) -> None:
    assert fit(np.zeros((*size, 3), np.uint8)).shape == (*panel, 3)
