import pytest
import torch
from golden import assert_golden, load_golden, waves
from torch import Tensor

from kdtoolbox.losses.features.nst import NSTLoss, channel_discrepancy
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('case', ['one_stage', 'two_stages_diffc'])
def test_golden(case: str, dtype: torch.dtype) -> None:
    golden = load_golden('nst', case, dtype)
    students = [level.requires_grad_() for level in golden.inputs['student']]
    loss = MODELS.build(dict(type='kdtoolbox.NSTLoss', loss_weight=1.0))
    levels = list(map(loss, students, golden.inputs['teacher']))
    assert_golden(torch.stack(levels).sum(), students, golden)


def test_closed_form_inputs() -> None:
    value = float(channel_discrepancy(STUDENT.double(), TEACHER.double()))
    assert value == pytest.approx(0.6409292, rel=1e-6)


def naive_kernel(a: Tensor, b: Tensor) -> Tensor:
    values = []
    for first, second in zip(a.flatten(2), b.flatten(2), strict=True):
        for x in first:
            for y in second:
                cosine = sum(x * y) / (sum(x * x) * sum(y * y)) ** 0.5
                values.append(cosine**2)
    return torch.stack(values).sum() / len(values)


def test_naive_loops() -> None:
    # The teacher may have another number of channels.
    student, teacher = STUDENT.double().requires_grad_(), TEACHER[:, :3].double()
    reference = student.detach().clone().requires_grad_()
    value = channel_discrepancy(student, teacher)
    expected = naive_kernel(teacher, teacher) + naive_kernel(reference, reference)
    expected = expected - 2 * naive_kernel(reference, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_scale_sign_and_order_of_channels_do_not_change_the_loss() -> None:
    student, teacher = STUDENT.double(), TEACHER.double()
    factors = torch.tensor([-3.0, 1.0, 0.2, 20.0]).reshape(4, 1, 1)
    value = channel_discrepancy((factors * student).flip(1), teacher)
    expected = channel_discrepancy(student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)


def test_channel_of_zeros_gives_a_finite_gradient() -> None:
    student = STUDENT.clone()
    student[:, 0] = 0
    student.requires_grad_()
    channel_discrepancy(student, TEACHER).backward()
    assert student.grad.isfinite().all()
    assert student.grad[:, 1:].any()


def test_contract() -> None:
    check_loss(NSTLoss(), STUDENT[..., :3], TEACHER[..., :3])


def test_different_sizes_raise() -> None:
    with pytest.raises(ValueError, match=r'\(2, 4, 6, 5\).*6, 4\).*a ResizeConnector'):
        channel_discrepancy(STUDENT, TEACHER[..., :4])
    with pytest.raises(ValueError, match=r'expected maps of shape \(N, C, H, W\)'):
        channel_discrepancy(STUDENT[0], TEACHER[0])
