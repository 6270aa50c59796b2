from math import ceil

import pytest
import torch
from golden import TOLERANCES, assert_golden, load_golden, waves
from torch import Tensor

from kdtoolbox.losses.features.reviewkd import HCLLoss, hierarchical_context_loss
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 3, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 3, 6, 5), 0.23, 0.17, 0.4)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden(dtype: torch.dtype) -> None:
    golden = load_golden('reviewkd', 'hcl_only', dtype)
    students = [level.requires_grad_() for level in golden.inputs['student']]
    loss = MODELS.build(dict(type='kdtoolbox.HCLLoss'))
    levels = list(map(loss, students, golden.inputs['teacher']))
    assert_golden(torch.stack(levels).sum(), students, golden)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden_loss_of_fused_levels(dtype: torch.dtype) -> None:
    # tests/connectors/test_review.py checks the fused levels themselves.
    golden = load_golden('reviewkd', 'abf_hcl_three_levels', dtype)
    fused = [level.to(dtype) for level in golden.outputs['fused']]
    levels = list(map(hierarchical_context_loss, fused, golden.inputs['teacher']))
    rtol, atol, _ = TOLERANCES[dtype]
    loss = torch.stack(levels).sum()
    torch.testing.assert_close(loss, golden.loss, rtol=rtol, atol=atol)


def test_closed_form_inputs() -> None:
    student = waves((2, 4, 8, 8), 0.37, 0.11)
    teacher = 1.3 * waves((2, 4, 8, 8), 0.23, 0.17, 0.4)
    value = float(HCLLoss()(student.double(), teacher.double()))
    assert value == pytest.approx(1.0011482, rel=1e-6)


def cells(length: int, side: int) -> list[range]:
    return [
        range(i * length // side, ceil((i + 1) * length / side)) for i in range(side)
    ]


def pooled_error(difference: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average the difference over each cell, and return the mean of the squares."""
    rows, columns = (cells(*x) for x in zip(difference.shape[2:], grid, strict=True))
    squares = []
    for plane in difference.flatten(0, 1):
        for ys in rows:
            for xs in columns:
                values = [plane[y, x] for y in ys for x in xs]
                squares.append((sum(values) / len(values)) ** 2)
    return torch.stack(squares).sum() / len(squares)


def naive(student: Tensor, teacher: Tensor) -> Tensor:
    size = tuple(student.shape[2:])
    grids = [size] + [(side, side) for side in (4, 2, 1) if side < min(size)]
    weights = [0.5**index for index in range(len(grids))]
    errors = [pooled_error(student - teacher, grid) for grid in grids]
    terms = [w * error for w, error in zip(weights, errors, strict=True)]
    return torch.stack(terms).sum() / sum(weights)


# The authors check only the height, and would pool (5, 3) and (6, 1) to 4.
@pytest.mark.parametrize('size', [(8, 8), (9, 6), (5, 3), (6, 1), (1, 8)])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_naive_loops(dtype: torch.dtype, size: tuple[int, int]) -> None:
    shape = (2, 2, *size)
    student = waves(shape, 0.37, 0.11).to(dtype, copy=True).requires_grad_()
    teacher = waves(shape, 0.23, 0.17, 0.4).to(dtype)
    reference = student.detach().double().requires_grad_()
    expected = naive(reference, teacher.double())
    expected.backward()
    value = hierarchical_context_loss(student, teacher)
    value.backward()
    rtol = 1e-9 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=0)
    atol = rtol * float(reference.grad.abs().max())
    torch.testing.assert_close(student.grad.double(), reference.grad, rtol=0, atol=atol)


def test_pooling_keeps_a_constant_difference_and_removes_a_checkerboard() -> None:
    zeros = torch.zeros(1, 1, 8, 8)
    assert float(hierarchical_context_loss(zeros + 3, zeros)) == pytest.approx(9)
    signs = 1 - 2 * (torch.arange(8) % 2)
    board = (signs[:, None] * signs).expand(1, 1, 8, 8).float()
    assert float(hierarchical_context_loss(board, zeros)) == pytest.approx(1 / 1.875)


def test_contract() -> None:
    check_loss(HCLLoss(loss_weight=1.5), STUDENT, TEACHER)


def test_different_shapes_raise() -> None:
    with pytest.raises(ValueError, match=r'\(2, 3, 6, 5\).*\(2, 2, 6, 5\).*connectors'):
        hierarchical_context_loss(STUDENT, TEACHER[:, :2])
