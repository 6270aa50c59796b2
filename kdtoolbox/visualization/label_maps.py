"""Draw label maps over images, and where a predicted one is wrong."""

from collections.abc import Sequence

import numpy as np
from PIL import ImageDraw

from kdtoolbox.visualization.canvas import (
    fit,
    line_height,
    load_font,
    to_rgb,
)

RIGHT, WRONG, IGNORED = (70, 225, 80), (255, 80, 225), (0, 0, 0)
SHARE = 0.6
"""Share of the label's colour; the rest is the image."""


def draw_labels(
    image: np.ndarray, labels: np.ndarray, palette: Sequence[Sequence[int]]
) -> np.ndarray:
    """Draw a label map over its image.

    Args:
        image: RGB image (H, W, 3) of bytes.
        labels: Classes (H, W). Labels beyond the palette are left out.
        palette: The RGB colour of each class.

    Returns:
        The panel, an RGB image.
    """
    known = labels < len(palette)
    colours = np.asarray(palette, np.float32)[np.where(known, labels, 0)]
    blended = SHARE * colours + (1 - SHARE) * image
    return fit(np.where(known[..., None], blended, image).astype(np.uint8))


def draw_errors(
    image: np.ndarray, labels: np.ndarray, truth: np.ndarray, ignored: int
) -> np.ndarray:
    """Colour the pixels of an image: green is right, magenta wrong, black ignored.

    Args:
        image: RGB image (H, W, 3) of bytes, drawn in grey.
        labels: Predicted classes (H, W).
        truth: True classes (H, W).
        ignored: The label of pixels that count nowhere.

    Returns:
        The panel, an RGB image.
    """
    grey = np.repeat(image.mean(2, keepdims=True), 3, axis=2)
    colours = np.where((labels == truth)[..., None], RIGHT, WRONG)
    colours = np.where((truth == ignored)[..., None], IGNORED, colours)
    return fit((SHARE * colours + (1 - SHARE) * grey).astype(np.uint8))


def draw_legend(
    width: int, size: int, names: Sequence[str], colours: Sequence[Sequence[int]]
) -> np.ndarray:
    """Return a white strip with a coloured square and a name for each class.

    Args:
        width: Width of the strip in pixels.
        size: Size of the font in pixels.
        names: The names of the classes.
        colours: The RGB colour of each.
    """
    font = load_font(size)
    height = line_height(font) + 4
    places, x, y = [], 0, 0
    for name in names:
        needed = height + round(font.getlength(name)) + 14
        if x and x + needed > width:
            x, y = 0, y + height
        places.append((x, y))
        x += needed
    strip = np.full((y + height, width, 3), 255, np.uint8)
    canvas = to_rgb(strip)
    draw = ImageDraw.Draw(canvas)
    for (x, y), name, colour in zip(places, names, colours, strict=True):
        square = (x, y + 2, x + height - 8, y + height - 6)
        draw.rectangle(square, fill=tuple(colour), outline=(0, 0, 0))
        draw.text((x + height - 2, y), name, fill=(0, 0, 0), font=font)
    return np.asarray(canvas)
