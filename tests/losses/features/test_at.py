import pytest
import torch
from golden import assert_golden, load_golden, waves
from torch import Tensor

from kdtoolbox.losses import ATLoss, attention_transfer
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('case', ['single', 'two_stages_diffc'])
def test_golden(case: str, dtype: torch.dtype) -> None:
    golden = load_golden('at', case, dtype)
    students = [level.requires_grad_() for level in golden.inputs['student']]
    weight = golden.hyper['loss_weight']
    loss = MODELS.build(dict(type='kdtoolbox.ATLoss', loss_weight=weight))
    levels = list(map(loss, students, golden.inputs['teacher']))
    assert_golden(torch.stack(levels).sum(), students, golden)


def test_closed_form_inputs() -> None:
    value = float(attention_transfer(STUDENT.double(), TEACHER.double()))
    assert value == pytest.approx(0.004197785, rel=1e-6)


def naive_attention(maps: Tensor) -> list[Tensor]:
    """Compute the attention of one image (C, H, W), position by position."""
    _, height, width = maps.shape
    energy = [
        sum(value**2 for value in maps[:, y, x]) / len(maps)
        for y in range(height)
        for x in range(width)
    ]
    norm = sum(value**2 for value in energy) ** 0.5
    return [value / norm for value in energy]


def naive(student: Tensor, teacher: Tensor) -> Tensor:
    squares = [
        (q - p) ** 2
        for student_map, teacher_map in zip(student, teacher, strict=True)
        for q, p in zip(
            naive_attention(student_map), naive_attention(teacher_map), strict=True
        )
    ]
    return torch.stack(squares).sum() / len(squares)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_naive_loops(dtype: torch.dtype) -> None:
    student = STUDENT.to(dtype, copy=True).requires_grad_()
    reference = STUDENT.double().requires_grad_()
    # The teacher may have another number of channels.
    teacher = TEACHER[:, :3]
    expected = naive(reference, teacher.double())
    expected.backward()
    value = attention_transfer(student, teacher.to(dtype))
    value.backward()
    rtol = 1e-9 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=0)
    atol = rtol * float(reference.grad.abs().max())
    torch.testing.assert_close(student.grad.double(), reference.grad, rtol=0, atol=atol)


def test_scale_sign_and_order_of_channels_do_not_change_the_loss() -> None:
    student, teacher = STUDENT.double(), TEACHER.double()
    expected = attention_transfer(student, teacher)
    changed = torch.tensor([-3.0, 20.0]).reshape(2, 1, 1, 1) * student.flip(1)
    value = attention_transfer(changed, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)


def test_a_map_of_zeros_has_no_attention() -> None:
    student = torch.zeros_like(STUDENT).requires_grad_()
    value = attention_transfer(student, TEACHER)
    value.backward()
    # The teacher's attention is a unit vector over 30 positions, the student's is 0.
    assert value.item() == pytest.approx(1 / 30)
    assert not student.grad.any()


def test_contract() -> None:
    check_loss(ATLoss(), STUDENT, TEACHER)


def test_different_sizes_raise() -> None:
    with pytest.raises(ValueError, match=r'\(2, 4, 6, 5\).*6, 4\).*a ResizeConnector'):
        attention_transfer(STUDENT, TEACHER[..., :4])
    with pytest.raises(ValueError, match=r'\(1, 4, 6, 5\) differ in size'):
        attention_transfer(STUDENT, TEACHER[:1])
    with pytest.raises(ValueError, match=r'expected maps of shape \(N, C, H, W\)'):
        attention_transfer(STUDENT[0], TEACHER[0])
