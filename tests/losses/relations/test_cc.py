import math
from typing import Any

import pytest
import torch
from golden import assert_golden, load_golden, waves
from torch import Tensor

from kdtoolbox.losses.relations.cc import correlation_distance, correlations
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

ROWS = waves((6, 4), 0.31, 0.13), waves((6, 3), 0.19, 0.29, 0.7)
MAPS = waves((2, 4, 6, 3), 0.37, 0.11), 1.3 * waves((2, 4, 6, 3), 0.23, 0.17, 0.4)


def build(**changes: Any) -> Any:
    return MODELS.build(dict(type='kdtoolbox.CCLoss') | changes)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_matches_golden_values(dtype: torch.dtype) -> None:
    golden = load_golden('cc', 'bilinear', dtype)
    student = golden.inputs['student'].requires_grad_()
    loss = build(kernel='bilinear', legacy_norm=True)
    assert_golden(loss(student, golden.inputs['teacher']), [student], golden)


def naive_correlation(a: Tensor, b: Tensor, kernel: str) -> Tensor:
    product = sum(a * b)
    if kernel == 'bilinear':
        return product
    cosine = product / (sum(a * a) * sum(b * b)) ** 0.5
    # The first terms of the series of exp(0.8 x), multiplied by exp(-0.8).
    return math.exp(-0.8) * (1 + 0.8 * cosine + (0.8 * cosine) ** 2 / 2)


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('kernel', ['gaussian', 'bilinear'])
def test_matches_naive_loops(kernel: Any, legacy: bool) -> None:
    student, teacher = ROWS[0].double().requires_grad_(), ROWS[1].double()
    reference = student.detach().clone().requires_grad_()
    value = correlation_distance(student, teacher, None, kernel, legacy)
    expected = torch.zeros((), dtype=torch.float64)
    for i in range(6):
        for j in range(6):
            pair = (x[[i, j]] for x in (reference, teacher))
            s, t = (naive_correlation(*rows, kernel) for rows in pair)
            expected = expected + (s - t) ** 2
    expected = (expected.sqrt() if legacy else expected) / 36
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_series_approximates_the_gaussian_kernel() -> None:
    rows = torch.nn.functional.normalize(ROWS[0].abs())
    expected = (-0.4 * torch.cdist(rows, rows) ** 2).exp()
    # The truncation error of the series is largest for equal rows.
    truncation = 1 - math.exp(-0.8) * (1 + 0.8 + 0.8**2 / 2)
    atol = truncation + 64 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(correlations(rows), expected, rtol=0, atol=atol)


def test_scales_of_rows_only_matter_for_the_bilinear_kernel() -> None:
    student, teacher = (rows.double() for rows in ROWS)
    scaled = student * torch.arange(1.0, 7.0)[:, None]
    expected = correlation_distance(student, teacher)
    value = correlation_distance(scaled, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    pairs = ((x, teacher, None, 'bilinear') for x in (student, scaled))
    values = [float(correlation_distance(*pair)) for pair in pairs]
    assert values[1] > 2 * values[0]


@pytest.mark.parametrize('legacy', [False, True])
def test_no_rows_and_equal_rows_give_zero_without_gradient(legacy: bool) -> None:
    for rows in (ROWS[0], ROWS[0][:0]):
        student = rows.clone().requires_grad_()
        value = correlation_distance(student, rows, legacy_norm=legacy)
        value.backward()
        assert value == 0
        assert not student.grad.any()


@pytest.mark.parametrize('pair', [ROWS, MAPS])
def test_keeps_the_loss_contract(pair: tuple) -> None:
    check_loss(build(grid=2, loss_weight=3.0), *pair)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match='different numbers of samples'):
        correlation_distance(ROWS[0], ROWS[1][:3])
    with pytest.raises(ValueError, match="kernel='rbf'; set kernel='gaussian'"):
        build(kernel='rbf')
