"""Areas, overlaps and cells of boxes, for tensors whose leading axes broadcast."""

from collections.abc import Sequence

import torch
from torch import Tensor


def box_areas(boxes: Tensor) -> Tensor:
    """Compute the areas of boxes.

    Args:
        boxes: Boxes (..., 4) as (x1, y1, x2, y2).

    Returns:
        The areas (...).

    Example:
        >>> box_areas(torch.tensor([[0.0, 0.0, 2.0, 3.0]]))
        tensor([6.])
    """
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_intersections(a: Tensor, b: Tensor) -> Tensor:
    """Compute the areas of the intersections of boxes.

    Args:
        a: Boxes (..., 4) as (x1, y1, x2, y2).
        b: Boxes (..., 4) that broadcast with `a`.

    Returns:
        The areas (...); 0 for boxes that do not meet.

    Example:
        >>> a = torch.tensor([0.0, 0.0, 2.0, 2.0])
        >>> box_intersections(a, a + 1)
        tensor(1.)
    """
    # In place: for all anchors and boxes of a batch these are the largest tensors.
    width, height = (
        torch.minimum(a[..., axis + 2], b[..., axis + 2])
        .sub_(torch.maximum(a[..., axis], b[..., axis]))
        .clamp_(min=0)
        for axis in (0, 1)
    )
    return width.mul_(height)


def box_ious(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """Compute the IoU of boxes.

    Args:
        a: Boxes (..., 4) as (x1, y1, x2, y2).
        b: Boxes (..., 4) that broadcast with `a`.
        eps: Smallest area of a union.

    Returns:
        The IoUs (...).

    Example:
        >>> a = torch.tensor([0.0, 0.0, 2.0, 2.0])
        >>> box_ious(a, a + torch.tensor([1.0, 0.0, 1.0, 0.0]))
        tensor(0.3333)
    """
    return _ious_and_unions(a, b, eps)[0]


def giou_distances(a: Tensor, b: Tensor, eps: float = 1e-7) -> Tensor:
    """Compute 1 - GIoU of boxes (arXiv:1902.09630).

    Args:
        a: Boxes (..., 4) as (x1, y1, x2, y2).
        b: Boxes (..., 4) that broadcast with `a`.
        eps: Smallest area of a union and of an enclosing box.

    Returns:
        The distances (...), from 0 to 2.

    Example:
        >>> a = torch.tensor([0.0, 0.0, 2.0, 2.0])
        >>> giou_distances(a, a), giou_distances(a, a + torch.tensor([6.0, 0, 6, 0]))
        (tensor(0.), tensor(1.5000))
    """
    ious, unions = _ious_and_unions(a, b, eps)
    enclosing = box_areas(_enclosing(a, b)).clamp(min=eps)
    return 1 - ious + (enclosing - unions) / enclosing


def center_distances(a: Tensor, b: Tensor) -> Tensor:
    """Compute the squared distances of the centres of boxes.

    Args:
        a: Boxes (..., 4) as (x1, y1, x2, y2).
        b: Boxes (..., 4) that broadcast with `a`.

    Returns:
        The squared distances (...).

    Example:
        >>> a = torch.tensor([0.0, 0.0, 2.0, 2.0])
        >>> center_distances(a, a + torch.tensor([3.0, 4.0, 3.0, 4.0]))
        tensor(25.)
    """
    a_center, b_center = ((x[..., :2] + x[..., 2:]) / 2 for x in (a, b))
    return (a_center - b_center).square().sum(-1)


def enclosing_diagonals(a: Tensor, b: Tensor) -> Tensor:
    """Compute the squared diagonals of the smallest boxes that enclose two boxes each.

    DIoU (arXiv:1911.08287) is the IoU minus `center_distances` divided by these.

    Args:
        a: Boxes (..., 4) as (x1, y1, x2, y2).
        b: Boxes (..., 4) that broadcast with `a`.

    Returns:
        The squared diagonals (...).

    Example:
        >>> a = torch.tensor([0.0, 0.0, 2.0, 2.0])
        >>> enclosing_diagonals(a, a + 1)
        tensor(18.)
    """
    enclosing = _enclosing(a, b)
    return (enclosing[..., 2:] - enclosing[..., :2]).square().sum(-1)


def to_corners(boxes: Tensor) -> Tensor:
    """Convert boxes (..., 4) from (cx, cy, w, h) to (x1, y1, x2, y2).

    Example:
        >>> to_corners(torch.tensor([2.0, 2.0, 2.0, 4.0]))
        tensor([1., 0., 3., 4.])
    """
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], -1)


def to_cells(
    boxes: Tensor, shapes: Sequence[tuple[int, int]], size: tuple[int, int]
) -> Tensor:
    """Convert boxes in pixels into boxes in cells of maps that cover the images.

    Args:
        boxes: Boxes (N, G, 4).
        shapes: Height and width of each image in pixels, or one pair for all images.
        size: Height and width of the maps.

    Example:
        >>> to_cells(torch.tensor([[[0.0, 8.0, 16.0, 32.0]]]), [(32, 64)], (4, 8))
        tensor([[[0., 1., 2., 4.]]])
    """
    height, width = size
    cells = _from_host([(width, height) * 2], boxes)
    extents = _from_host([(w, h, w, h) for h, w in shapes], boxes)
    return boxes * cells[:, None] / extents[:, None]


def _from_host(rows: list[tuple], like: Tensor) -> Tensor:
    # `like.new_tensor` waits until the device has done all its work before.
    values = torch.tensor(rows, dtype=like.dtype, device='cpu')
    return values.to(like.device, non_blocking=True)


def _ious_and_unions(a: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    overlaps = box_intersections(a, b)
    unions = (box_areas(a) + box_areas(b)).sub_(overlaps).clamp_(min=eps)
    return overlaps / unions, unions


def _enclosing(a: Tensor, b: Tensor) -> Tensor:
    first = torch.minimum(a[..., :2], b[..., :2])
    last = torch.maximum(a[..., 2:], b[..., 2:])
    return torch.cat([first, last], -1)
