"""Draw maps over images in colours of a known range."""

import cv2
import numpy as np
from matplotlib import colormaps
from mmengine.visualization import Visualizer
from PIL import ImageDraw
from torch import Tensor
from torch.nn import functional

from kdtoolbox.visualization.canvas import (
    fit,
    font_of,
    line_height,
    panel_scale,
    to_rgb,
)

COLOURS = 'viridis'
SHARE = 0.75
"""Share of the map's colour; the rest is the image in grey."""


def draw_map(feature: Tensor, image: np.ndarray, scale: int = 3) -> np.ndarray:
    """Draw a recorded map over its image, as the mean magnitude of its channels.

    Args:
        feature: Map (C, h, w) of any size.
        image: RGB image (H, W, 3) of bytes.
        scale: Enlargement, so that small images can be read.

    Returns:
        RGB image (scale * H, scale * W, 3).
    """
    height, width = (scale * side for side in image.shape[:2])
    magnitude = (feature - feature.mean((1, 2), keepdim=True)).abs().detach().cpu()
    return Visualizer.draw_featmap(
        functional.interpolate(magnitude[None], (height, width), mode='bilinear')[0],
        cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST),
        channel_reduction='squeeze_mean',
        alpha=0.4,
    )


def paint_map(
    values: np.ndarray, image: np.ndarray, top: float, covered: tuple[int, int]
) -> np.ndarray:
    """Draw one value per cell over an image, each cell with sharp borders.

    Args:
        values: Map (h, w), not negative.
        image: RGB image (H, W, 3) of bytes, without padding; drawn in grey.
        top: The value of the brightest colour; 0 has the darkest.
        covered: Height and width in pixels that the map covers, at least (H, W).

    Returns:
        The panel, an RGB image.

    Example:
        >>> image = np.full((32, 32, 3), 100, np.uint8)
        >>> panel = paint_map(np.eye(2), image, top=1.0, covered=(32, 32))
        >>> panel.shape, bool(panel[0, 0].sum() > panel[0, -1].sum())
        ((256, 256, 3), True)
    """
    scale, panel = panel_scale(*image.shape[:2]), fit(image)
    height, width = (round(side * scale) for side in covered)
    cells = cv2.resize(
        np.ascontiguousarray(values, dtype=np.float32),
        (width, height),
        interpolation=cv2.INTER_NEAREST,
    )
    cells = cells[: panel.shape[0], : panel.shape[1]]
    grey = panel.mean(2, keepdims=True)
    return (SHARE * _colours(cells, top) + (1 - SHARE) * grey).astype(np.uint8)


def _colours(values: np.ndarray, top: float) -> np.ndarray:
    shares = np.clip(values / top, 0, 1) if top > 0 else np.zeros_like(values)
    return 255 * colormaps[COLOURS](shares)[..., :3]


def colour_bar(panel: np.ndarray, top: float) -> np.ndarray:
    """Return the scale of a row of panels of ``paint_map``, as high as a panel.

    Args:
        panel: A panel of the row.
        top: As for ``paint_map``.
    """
    height, font = panel.shape[0], font_of(panel)
    texts = [f'{top * share:.3g}' for share in (1, 0.5, 0)]
    width = 26 + max(round(font.getlength(text)) for text in texts)
    strip = np.full((height, width, 3), 255, np.uint8)
    column = _colours(np.linspace(1, 0, height)[:, None], 1.0)
    # As on the panels, over a middle grey.
    strip[:, :18] = SHARE * column + (1 - SHARE) * 128
    canvas = to_rgb(strip)
    draw = ImageDraw.Draw(canvas)
    last = height - line_height(font)
    for text, y in zip(texts, (0, last / 2, last), strict=True):
        draw.text((22, y), text, fill=(0, 0, 0), font=font)
    return np.asarray(canvas)
