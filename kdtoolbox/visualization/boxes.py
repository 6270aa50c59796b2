"""Compare predicted boxes with the ground truth, and draw boxes with labels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ImageDraw
from torch import Tensor

from kdtoolbox.losses.detection.boxes import box_ious
from kdtoolbox.visualization.canvas import (
    Colour,
    fit,
    font_of,
    line_height,
    panel_scale,
    to_rgb,
)
from kdtoolbox.visualization.label_places import (
    Rectangle,
    link_label,
    overlap,
    place_label,
)

TRUE, FALSE, TRUTH = (70, 225, 80), (255, 80, 225), (255, 255, 255)
"""Colours that also colour-blind readers tell apart."""

LEAST_SCORE, LEAST_IOU, MOST_BOXES = 0.3, 0.5, 40


class Mark(NamedTuple):
    """A box with its label, in pixels of the image."""

    box: Rectangle
    text: str
    colour: Colour


def match_boxes(
    boxes: Tensor, labels: Tensor, truth: Tensor, truth_labels: Tensor
) -> Tensor:
    """Return which predictions are true.

    A prediction is true if its class is right and its IoU with an object is at least
    0.5. Each object counts once, for the prediction that comes first.

    Args:
        boxes: Predictions (M, 4) as (x1, y1, x2, y2), the best first.
        labels: Their classes (M,).
        truth: Ground truth (G, 4).
        truth_labels: Its classes (G,).

    Returns:
        Mask (M,).

    Example:
        >>> box = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
        >>> two = torch.tensor([1, 1])
        >>> match_boxes(box.expand(2, 4), two, box, two[:1]).tolist()
        [True, False]
    """
    ious = box_ious(boxes[:, None], truth[None].to(boxes))
    ious = ious.where(labels[:, None] == truth_labels[None], 0)
    found = torch.zeros_like(labels, dtype=torch.bool)
    for index in range(len(boxes) if len(truth) else 0):
        best, place = ious[index].max(0)
        if best >= LEAST_IOU:
            found[index] = True
            ious[:, place] = 0
    return found


def truth_marks(instances: Any, classes: Sequence[str]) -> list[Mark]:
    """Return the marks of ground truth with ``bboxes`` and ``labels``."""
    boxes, labels = box_tensor(instances).tolist(), instances.labels.tolist()
    pairs = zip(boxes, labels, strict=True)
    return [Mark(tuple(box), name_of(label, classes), TRUTH) for box, label in pairs]


def predicted_marks(predicted: Any, truth: Any, classes: Sequence[str]) -> list[Mark]:
    """Return the marks of predictions with a score of at least 0.3, the best first."""
    scores = predicted.scores.cpu()
    order = scores.argsort(descending=True)[:MOST_BOXES]
    order = order[scores[order] >= LEAST_SCORE]
    boxes, labels = box_tensor(predicted)[order], predicted.labels.cpu()[order]
    right = match_boxes(boxes, labels, box_tensor(truth), truth.labels.cpu())
    rows = (values.tolist() for values in (boxes, labels, scores[order], right))
    return [
        Mark(
            tuple(box),
            f'{name_of(label, classes)}: {score:.2f}',
            TRUE if is_right else FALSE,
        )
        for box, label, score, is_right in zip(*rows, strict=True)
    ]


def box_tensor(instances: Any) -> Tensor:
    """Return boxes (M, 4) on the CPU, of a tensor or of mmdet's box type."""
    boxes = getattr(instances.bboxes, 'tensor', instances.bboxes)
    return boxes.detach().float().cpu().reshape(-1, 4)


def name_of(label: int, classes: Sequence[str]) -> str:
    """Return the name of a class, or its number if there is no name."""
    return classes[label] if 0 <= label < len(classes) else f'class {label}'


def draw_marks(image: np.ndarray, marks: Sequence[Mark]) -> np.ndarray:
    """Draw boxes and their labels on the panel of an image.

    Args:
        image: RGB image (H, W, 3) of bytes.
        marks: The boxes; the first gets the best place for its label.

    Returns:
        The panel, an RGB image.
    """
    return mark_panel(fit(image), marks, panel_scale(*image.shape[:2]))


def mark_panel(panel: np.ndarray, marks: Sequence[Mark], scale: float) -> np.ndarray:
    """Draw boxes on a panel (H, W, 3) that is ``scale`` times as large as its image.

    A mark without text gets no label, and neither does one without room for it.
    """
    canvas, font = to_rgb(panel), font_of(panel)
    draw = ImageDraw.Draw(canvas)
    boxes = [_scaled(mark.box, scale) for mark in marks]
    for box, mark in reversed(list(zip(boxes, marks, strict=True))):
        x1, y1, x2, y2 = box
        # A dark line outside keeps the box visible on a bright image.
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=(0, 0, 0), width=4)
        draw.rectangle(box, outline=mark.colour, width=2)
    labels: list[tuple[Rectangle, Rectangle, Mark]] = []
    for box, mark in zip(boxes, marks, strict=True):
        places = [place for place, _, _ in labels]
        size = (font.getlength(mark.text) + 6, line_height(font))
        place = place_label(box, size, (canvas.width, canvas.height), places, boxes)
        if mark.text and not any(overlap(place, other) for other in places):
            labels.append((place, box, mark))
    # All lines first, so that none crosses a label.
    for place, box, mark in labels:
        link_label(draw, place, box, mark.colour)
    for place, _, mark in labels:
        draw.rectangle(place, fill=mark.colour, outline=(0, 0, 0))
        draw.text((place[0] + 3, place[1] + 1), mark.text, fill=(0, 0, 0), font=font)
    return np.asarray(canvas)


def _scaled(box: Rectangle, scale: float) -> Rectangle:
    x1, y1, x2, y2 = (round(side * scale) for side in box)
    return x1, y1, max(x1, x2), max(y1, y2)
