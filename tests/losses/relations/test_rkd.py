from typing import Any

import pytest
import torch
from golden import TOLERANCES, assert_golden, load_golden, waves
from torch import Tensor

from kdtoolbox.losses.relations.rkd import rkd_terms
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

ROWS = waves((5, 4), 0.31, 0.13), waves((5, 3), 0.19, 0.29, 0.7)
MAPS = waves((2, 4, 6, 3), 0.37, 0.11), 1.3 * waves((2, 4, 6, 3), 0.23, 0.17, 0.4)


def build(**changes: Any) -> Any:
    return MODELS.build(dict(type='kdtoolbox.RKDLoss') | changes)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('case', ['embeddings_2d', 'mmrazor_l2norm'])
def test_matches_golden_values(case: str, dtype: torch.dtype) -> None:
    golden = load_golden('rkd', case, dtype)
    student, hyper = golden.inputs['student'].requires_grad_(), golden.hyper
    weights = dict(distance_weight=hyper['w_dist'], angle_weight=hyper['w_angle'])
    loss = build(normalize=hyper['with_l2_norm'], **weights)
    terms = loss(student, golden.inputs['teacher'])
    for name, term in terms.items():
        expected = float(golden.outputs[name])
        assert term.item() == pytest.approx(expected, TOLERANCES[dtype][0])
    assert_golden(sum(terms.values()), [student], golden)


@pytest.mark.parametrize(
    ('normalize', 'distance', 'angle'),
    [(True, 0.1266744, 0.1434894), (False, 0.0973613, 0.1606215)],
)
def test_value_for_closed_form_inputs(
    normalize: bool, distance: float, angle: float
) -> None:
    pair = waves((6, 8), 0.31, 0.13).double(), waves((6, 8), 0.19, 0.29, 0.7).double()
    weights = dict(distance_weight=1.0, angle_weight=1.0)
    terms = build(normalize=normalize, **weights)(*pair)
    found = [term.item() for term in terms.values()]
    assert found == pytest.approx([distance, angle], rel=1e-6)


def smooth(a: Tensor, b: Tensor) -> Tensor:
    error = (a - b).abs()
    return error - 0.5 if error > 1 else error**2 / 2


def naive(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    count, pair = range(len(student)), (student, teacher)
    norms = [
        {(i, j): sum((x[i] - x[j]) ** 2) ** 0.5 for i in count for j in count if i != j}
        for x in pair
    ]
    means = [sum(norm.values()) / len(norm) for norm in norms]
    scaled = [
        {key: value / mean for key, value in norm.items()}
        for norm, mean in zip(norms, means, strict=True)
    ]
    distance = sum(smooth(scaled[0][key], scaled[1][key]) for key in norms[0])
    angle = torch.zeros((), dtype=torch.float64)
    for j in count:
        for i in count:
            for k in count:
                if j not in (i, k):
                    cosines = [
                        sum((x[i] - x[j]) * (x[k] - x[j])) / norm[i, j] / norm[k, j]
                        for x, norm in zip(pair, norms, strict=True)
                    ]
                    angle = angle + smooth(*cosines)
    size = len(student)
    return dict(distance=distance / size**2, angle=angle / size**3)


def test_matches_naive_loops() -> None:
    results = []
    for compute in (rkd_terms, naive):
        student = ROWS[0].double().requires_grad_()
        terms = compute(student, ROWS[1].double())
        # Both terms in one gradient, with different weights.
        (terms['distance'] + 3 * terms['angle']).backward()
        results.append(terms | dict(gradient=student.grad))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


def test_rotation_shift_and_common_scale_do_not_change_the_loss() -> None:
    student, teacher = (rows.double() for rows in ROWS)
    rotation, _ = torch.linalg.qr(waves((4, 4), 0.7, 0.3).double())
    moved = 3 * student @ rotation + waves((4,), 0.9, 0.1)
    expected = rkd_terms(student, teacher)
    torch.testing.assert_close(rkd_terms(moved, teacher), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize('rows', [ROWS[0][:0], ROWS[0][:1], ROWS[0][:1].expand(5, -1)])
def test_fewer_than_two_different_rows_give_no_gradient(
    rows: Tensor,
) -> None:
    student = rows.clone().requires_grad_()
    sum(build()(student, ROWS[1][: len(rows)]).values()).backward()
    assert not student.grad.any()


def test_only_max_rows_evenly_spaced_rows_count() -> None:
    many = waves((9, 4), 0.31, 0.13), waves((9, 3), 0.19, 0.29, 0.7)
    terms = build(max_rows=3)(*many)
    expected = build()(*(rows[[0, 4, 8]] for rows in many))
    assert terms == expected
    assert build(max_rows=9)(*many) == build()(*many)


@pytest.mark.parametrize('pair', [ROWS, MAPS])
def test_keeps_the_loss_contract(pair: tuple) -> None:
    check_loss(build(grid=2), *pair)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match='different numbers of samples'):
        build()(ROWS[0], ROWS[1][:3])
