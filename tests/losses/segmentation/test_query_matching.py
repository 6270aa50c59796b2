from itertools import permutations

import pytest
import torch
from torch import Tensor

from kdtoolbox.losses.segmentation.query_matching import (
    match_queries,
    object_confidence,
    query_affinity,
)


def queries(students: int = 5, teachers: int = 4) -> tuple[Tensor, ...]:
    """Return 4 x 3 masks of student and teacher, then logits of 3 classes + none."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, n, *size) for size in ((4, 3), (4,)) for n in (students, teachers)]
    return tuple(2 * torch.randn(s, generator=generator).double() for s in shapes)


def affinity_of(m: Tensor, n: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Return the affinity of one query of the student with one of the teacher."""
    p, q = (x.exp() / x.exp().sum() for x in (p, q))
    m, n = (1 / (1 + torch.exp(-x)) for x in (m, n))
    classes = 1 - sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2
    dice = (2 * (m * n).sum() + 1) / ((m * m).sum() + (n * n).sum() + 1)
    return (1 - q[-1]) * (3 * classes + 2 * dice)


def test_affinity_matches_naive_loops() -> None:
    arguments = queries()
    found = query_affinity(*arguments, class_weight=3.0, mask_weight=2.0)
    assert found.shape == (2, 5, 4)
    m, n, s, t = arguments
    for image in range(2):
        for i in range(5):
            for j in range(4):
                expected = affinity_of(
                    m[image, i], n[image, j], s[image, i], t[image, j]
                )
                torch.testing.assert_close(found[image, i, j], expected)


@pytest.mark.parametrize(('students', 'teachers'), [(4, 4), (5, 3), (3, 5), (1, 4)])
def test_matching_is_optimal(students: int, teachers: int) -> None:
    generator = torch.Generator().manual_seed(1)
    affinity = torch.rand(3, students, teachers, generator=generator)
    rows, columns = match_queries(affinity)
    assert rows.shape == columns.shape == (3, min(students, teachers))
    assert rows.dtype == columns.dtype == torch.long
    for image, i, j in zip(affinity, rows, columns, strict=True):
        assert len(set(i.tolist())) == len(set(j.tolist())) == min(students, teachers)
        few, many = sorted((students, teachers))
        table = image if students <= teachers else image.T
        best = max(
            sum(table[a, b] for a, b in enumerate(order))
            for order in permutations(range(many), few)
        )
        torch.testing.assert_close(image[i, j].sum(), best)


def test_permuted_queries_are_matched() -> None:
    m, _, s, _ = queries(students=6)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    rows, columns = match_queries(query_affinity(m[:, order], m, s[:, order], s))
    assert torch.equal(order[rows], columns)


def test_teacher_queries_with_objects_are_matched_first() -> None:
    m, n, s, t = queries(students=2, teachers=4)
    t[..., -1] = 30.0
    t[0, 1, -1] = t[0, 2, -1] = t[1, 0, -1] = t[1, 3, -1] = -5.0
    _, columns = match_queries(query_affinity(m, n, s, t))
    assert columns.sort().values.tolist() == [[1, 2], [0, 3]]


def test_matching_uses_classes_and_masks() -> None:
    logits = 20 * torch.eye(3)[:2][None]
    masks = torch.tensor([[[[9.0, -9.0]], [[-9.0, 9.0]]]])
    swapped = masks.flip(1)
    _, by_class = match_queries(query_affinity(masks, swapped, logits, logits, 9, 1))
    _, by_mask = match_queries(query_affinity(masks, swapped, logits, logits, 1, 9))
    assert by_class.tolist() == [[0, 1]]
    assert by_mask.tolist() == [[1, 0]]


def test_confidence_of_an_empty_query_is_accurate() -> None:
    logits = torch.tensor([[[0.0, 0.0, 40.0]]], requires_grad=True)
    found = object_confidence(logits)
    torch.testing.assert_close(found[0, 0], 2 * torch.tensor(-40.0).exp())
    assert not found.requires_grad


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_values_that_are_not_finite_do_not_raise(value: float) -> None:
    affinity = torch.tensor([[[0.0, 2.0], [2.0, value]]])
    rows, columns = match_queries(affinity)
    assert (rows.tolist(), columns.tolist()) == ([[0, 1]], [[1, 0]])
