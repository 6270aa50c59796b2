from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdtoolbox.losses.detection.boxes import (
    box_areas,
    box_intersections,
    box_ious,
    center_distances,
    enclosing_diagonals,
    giou_distances,
    to_corners,
)


def boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    first, size = torch.rand(2, count, 2, generator=generator, dtype=torch.float64)
    return torch.cat([first, first + size], 1)


def naive(a: Tensor, b: Tensor) -> dict[str, float]:
    ax1, ay1, ax2, ay2 = a.tolist()
    bx1, by1, bx2, by2 = b.tolist()
    width = max(min(ax2, bx2) - max(ax1, bx1), 0)
    height = max(min(ay2, by2) - max(ay1, by1), 0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - width * height
    hull_width = max(ax2, bx2) - min(ax1, bx1)
    hull_height = max(ay2, by2) - min(ay1, by1)
    hull = hull_width * hull_height
    x, y = (ax1 + ax2 - bx1 - bx2) / 2, (ay1 + ay2 - by1 - by2) / 2
    return dict(
        box_intersections=width * height,
        box_ious=width * height / union,
        giou_distances=1 - width * height / union + (hull - union) / hull,
        center_distances=x**2 + y**2,
        enclosing_diagonals=hull_width**2 + hull_height**2,
    )


PAIRWISE = (
    box_intersections,
    box_ious,
    giou_distances,
    center_distances,
    enclosing_diagonals,
)


@pytest.mark.parametrize('function', PAIRWISE, ids=lambda f: f.__name__)
def test_all_pairs_match_plain_loops(function: Callable) -> None:
    a, b = boxes(7, 0), boxes(5, 1)
    found = function(a[:, None], b)
    assert found.shape == (7, 5)
    expected = [[naive(x, y)[function.__name__] for y in b] for x in a]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize('function', PAIRWISE, ids=lambda f: f.__name__)
def test_gradients_equal_finite_differences(function: Callable) -> None:
    a, b = boxes(6, 2).requires_grad_(), boxes(6, 3).requires_grad_()
    assert torch.autograd.gradcheck(function, (a, b))


@pytest.mark.parametrize('function', PAIRWISE, ids=lambda f: f.__name__)
def test_arguments_are_not_changed(function: Callable) -> None:
    a, b = boxes(4, 4), boxes(4, 5)
    copies = a.clone(), b.clone()
    function(a, b)
    assert torch.equal(a, copies[0])
    assert torch.equal(b, copies[1])


def test_boxes_without_overlap() -> None:
    a = torch.tensor([0.0, 0.0, 1.0, 1.0])
    for shift in ([5.0, 0, 5, 0], [0.0, 5, 0, 5], [5.0, 5, 5, 5]):
        b = a + torch.tensor(shift)
        assert box_intersections(a, b) == 0
        assert box_ious(a, b) == 0
        assert giou_distances(a, b) > 1


def test_boxes_without_area_stay_finite() -> None:
    point = torch.zeros(4).requires_grad_()
    total = box_ious(point, point) + giou_distances(point, point)
    total.backward()
    assert total.isfinite()
    assert point.grad.isfinite().all()


@pytest.mark.parametrize('eps', [0.5, 2.0])
def test_eps_bounds_the_divisors(eps: float) -> None:
    a = torch.tensor([0.0, 0.0, 0.5, 0.5])
    b = torch.tensor([0.0, 0.0, 0.25, 0.5])
    assert float(box_ious(a, b, eps)) == pytest.approx(0.125 / eps)
    # The union and the enclosing box are both `eps`.
    assert float(giou_distances(a, b, eps)) == pytest.approx(1 - 0.125 / eps)


def test_areas_and_corners() -> None:
    corners = to_corners(torch.tensor([[5.0, 6.0, 4.0, 2.0]]))
    assert corners.tolist() == [[3.0, 5.0, 7.0, 7.0]]
    assert box_areas(corners).tolist() == [8.0]
