"""Find places for the labels of boxes."""

from collections.abc import Sequence
from itertools import product

from PIL import ImageDraw

from kdtoolbox.visualization.canvas import Colour

Rectangle = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""


def place_label(
    box: Rectangle,
    size: tuple[float, float],
    limits: tuple[int, int],
    placed: Sequence[Rectangle],
    boxes: Sequence[Rectangle],
) -> Rectangle:
    """Return the place of a label near its box that hides the least.

    Args:
        box: The box of the label.
        size: Width and height of the label.
        limits: Width and height of the panel.
        placed: The labels that are already there.
        boxes: All boxes; what is in them should stay visible.
    """
    (x1, y1, x2, y2), (width, height) = box, size

    def cost(place: Rectangle) -> float:
        hidden = 10 * sum(overlap(place, other) for other in placed)
        hidden += max(overlap(place, other) for other in boxes)
        return hidden + abs(place[0] - x1) + 2 * abs(place[1] - y1 + height)

    lefts = (x1, x2 - width, x2 + 1, x1 - width - 1)
    steps = range(-2, 2 + int((y2 - y1) // height))
    tops = [y2 + 1, *(y1 + step * height for step in steps)]
    places = []
    for x, y in product(lefts, tops):
        x = min(max(0, x), limits[0] - width - 1)
        y = min(max(0, y), limits[1] - height - 1)
        places.append((x, y, x + width, y + height))
    return min(places, key=cost)


def link_label(
    draw: ImageDraw.ImageDraw, label: Rectangle, box: Rectangle, colour: Colour
) -> None:
    """Draw a line from a label to its box, unless they touch."""
    ends = []
    for near, far in ((label, box), (box, label)):
        center = [(far[axis] + far[axis + 2]) / 2 for axis in (0, 1)]
        ends.append(
            [min(max(center[i], near[i]), near[i + 2]) for i in (0, 1)],
        )
    (x1, y1), (x2, y2) = ends
    if abs(x1 - x2) > 2 or abs(y1 - y2) > 2:
        draw.line((x1, y1, x2, y2), fill=(0, 0, 0), width=3)
        draw.line((x1, y1, x2, y2), fill=colour, width=1)


def overlap(a: Rectangle, b: Rectangle) -> float:
    """Return the area that two rectangles share.

    Example:
        >>> overlap((0.0, 0.0, 4.0, 4.0), (2.0, 3.0, 9.0, 9.0))
        2.0
    """
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)
