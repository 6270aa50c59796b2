import pytest
import torch
from golden import assert_golden, load_golden, waves
from torch import Tensor

from kdtoolbox.losses.relations.sp import SPLoss, similarity_distance
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)
ROWS = waves((6, 4), 0.31, 0.13), waves((6, 3), 0.19, 0.29, 0.7)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('case', ['n4', 'two_layers'])
def test_matches_golden_values(case: str, dtype: torch.dtype) -> None:
    golden = load_golden('sp', case, dtype)
    students = [level.requires_grad_() for level in golden.inputs['student']]
    loss = MODELS.build(dict(type='kdtoolbox.SPLoss', grid=None, loss_weight=1.0))
    levels = list(map(loss, students, golden.inputs['teacher']))
    assert_golden(torch.stack(levels).sum(), students, golden)


def test_value_for_closed_form_inputs() -> None:
    value = float(similarity_distance(STUDENT.double(), TEACHER.double()))
    assert value == pytest.approx(0.7313864, rel=1e-6)


def naive_similarities(rows: Tensor) -> list[Tensor]:
    similar = [[sum(a * b) for b in rows] for a in rows]
    norms = [sum(value**2 for value in line) ** 0.5 for line in similar]
    return [v / n for line, n in zip(similar, norms, strict=True) for v in line]


def test_matches_naive_loops() -> None:
    student, teacher = ROWS[0].double().requires_grad_(), ROWS[1].double()
    reference = student.detach().clone().requires_grad_()
    pairs = zip(*map(naive_similarities, (reference, teacher)), strict=True)
    expected = torch.stack([(a - b) ** 2 for a, b in pairs]).sum() / len(student) ** 2
    value = similarity_distance(student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_rotation_and_common_scale_do_not_change_the_loss() -> None:
    student, teacher = (rows.double() for rows in ROWS)
    rotation, _ = torch.linalg.qr(waves((4, 4), 0.7, 0.3).double())
    value = similarity_distance(3 * student @ rotation, teacher)
    expected = similarity_distance(student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize('count', [0, 1])
def test_too_few_rows_give_zero(count: int) -> None:
    student = ROWS[0][:count].clone().requires_grad_()
    value = similarity_distance(student, ROWS[1][:count].abs())
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert not student.grad.abs().gt(1e-6).any()


@pytest.mark.parametrize('pair', [ROWS, (STUDENT[..., :3], TEACHER[..., :3])])
def test_keeps_the_loss_contract(pair: tuple) -> None:
    check_loss(SPLoss(grid=2), *pair)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match='different numbers of samples'):
        similarity_distance(STUDENT, TEACHER[:1])
