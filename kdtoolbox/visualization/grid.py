"""Put images with titles and a caption into one picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kdtoolbox.checkpoints.writing import write_whole
from kdtoolbox.visualization.canvas import (
    font_of,
    line_height,
    to_rgb,
    wrap,
    write_lines,
)

Panel = tuple[str, np.ndarray]
"""A title and an RGB image (H, W, 3) of bytes."""

GAP = 10
"""White space around the panels in pixels."""


def compose(rows: Sequence[Sequence[Panel]], caption: str = '') -> np.ndarray:
    """Return one picture of panels in rows, with a caption below them.

    Args:
        rows: The panels of each row, drawn at their own size. The first panel sets
            the size of the text.
        caption: Says what is shown. Lines end at line breaks and at the border.

    Returns:
        RGB image (H, W, 3) of bytes.

    Example:
        >>> panel = np.zeros((100, 200, 3), np.uint8)
        >>> compose([[('a', panel), ('b', panel)]]).shape
        (139, 430, 3)
    """
    # The first panel is an image; others may be as wide as a row.
    font = font_of(rows[0][0][1])
    strips = [_strip(row, font) for row in rows]
    width = max(strip.width for strip in strips) + GAP
    lines = wrap(caption, font, width - 2 * GAP)
    top = sum(strip.height for strip in strips)
    picture = Image.new(
        'RGB', (width, top + len(lines) * line_height(font) + GAP), 'white'
    )
    y = 0
    for strip in strips:
        picture.paste(strip, (0, y))
        y += strip.height
    write_lines(ImageDraw.Draw(picture), (GAP, top + GAP // 2), lines, font)
    return np.asarray(picture)


def _strip(row: Sequence[Panel], font: ImageFont.FreeTypeFont) -> Image.Image:
    """Return one row with its titles; white space is above and left of each panel."""
    titles = [wrap(title, font, image.shape[1]) for title, image in row]
    above = GAP + max(map(len, titles)) * line_height(font)
    width = sum(GAP + image.shape[1] for _, image in row)
    height = above + max(image.shape[0] for _, image in row)
    strip = Image.new('RGB', (width, height), 'white')
    draw, x = ImageDraw.Draw(strip), GAP
    for lines, (_, image) in zip(titles, row, strict=True):
        write_lines(draw, (x, above - len(lines) * line_height(font)), lines, font)
        strip.paste(to_rgb(image), (x, above))
        x += GAP + image.shape[1]
    return strip


def save_picture(picture: np.ndarray, path: str | Path) -> None:
    """Write an RGB image (H, W, 3) of bytes as PNG."""
    with write_whole(path) as file:
        to_rgb(picture).save(file, format='PNG', optimize=True)


def save_panels(
    rows: Sequence[Sequence[Panel]], path: str | Path, caption: str = ''
) -> None:
    """Write images with titles as a grid; ``rows`` are the rows of the picture."""
    save_picture(compose(rows, caption), path)
