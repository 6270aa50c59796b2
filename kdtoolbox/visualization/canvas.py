"""Size of panels and fonts, and text on images."""

import math
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SMALLEST, LARGEST = 256, 720
"""Bounds of the longer side of a panel in pixels."""

Colour = tuple[int, int, int]


def panel_scale(height: int, width: int) -> float:
    """Return the factor between an image and its panel.

    Small images grow by a whole factor, so that all their pixels stay equally large.

    Example:
        >>> panel_scale(128, 128), panel_scale(400, 600), panel_scale(800, 1440)
        (2, 1.0, 0.5)
    """
    longer = max(height, width)
    if longer < SMALLEST:
        return math.ceil(SMALLEST / longer)
    return min(1.0, LARGEST / longer)


def fit(image: np.ndarray) -> np.ndarray:
    """Resize an image (H, W) or (H, W, C) to the size of its panel."""
    scale = panel_scale(*image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    kind = cv2.INTER_NEAREST if scale >= 1 else cv2.INTER_AREA
    return cv2.resize(image, (width, height), interpolation=kind)


def font_of(panel: np.ndarray) -> ImageFont.FreeTypeFont:
    """Return the font for labels on a panel (H, W, 3) and for its title."""
    return load_font(max(14, round(max(panel.shape[:2]) / 42)))


@lru_cache
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font that matplotlib ships, in pixels."""
    path = Path(matplotlib.get_data_path(), 'fonts/ttf/DejaVuSans.ttf')
    return ImageFont.truetype(str(path), size)


def line_height(font: ImageFont.FreeTypeFont) -> int:
    """Return the distance of two lines of text in pixels."""
    return round(font.size * 1.35)


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break a text into lines that are at most ``width`` pixels wide.

    A single word that is wider has a line of its own.
    """
    lines = ['']
    for paragraph in text.splitlines():
        for word in paragraph.split(' '):
            longer = f'{lines[-1]} {word}'.strip()
            if lines[-1] and font.getlength(longer) > width:
                lines.append(word)
            else:
                lines[-1] = longer
        lines.append('')
    return [line for line in lines if line]


def write_lines(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    lines: list[str],
    font: ImageFont.FreeTypeFont,
) -> None:
    """Write lines of black text from a top left corner downwards."""
    x, y = place
    for line in lines:
        draw.text((x, y), line, fill=(0, 0, 0), font=font)
        y += line_height(font)


def to_rgb(image: np.ndarray) -> Image.Image:
    """Return an image (H, W, 3) of bytes for drawing."""
    return Image.fromarray(np.ascontiguousarray(image, dtype=np.uint8))
