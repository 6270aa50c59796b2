import pytest
import torch
from golden import waves

from kdtoolbox.connectors import ConvConnector
from kdtoolbox.losses.features.norm import NORMLoss, many_to_one_error
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 6, 4, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 2, 4, 5), 0.23, 0.17, 0.4)


def test_naive_copies() -> None:
    student = STUDENT.double().requires_grad_()
    reference = STUDENT.double().requires_grad_()
    teacher, total = TEACHER.double(), torch.zeros(()).double()
    for n in range(2):
        for channel in range(6):
            error = reference[n, channel] - teacher[n, channel % 2]
            total = total + (error**2).sum()
    expected = 3 * total / STUDENT.numel()
    value = many_to_one_error(student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_equals_the_mean_squared_error_to_copies_of_the_teacher() -> None:
    error = 3 * torch.nn.functional.mse_loss(STUDENT, TEACHER.repeat(1, 3, 1, 1))
    torch.testing.assert_close(many_to_one_error(STUDENT, TEACHER), error)


def test_expanding_connector_gets_a_gradient() -> None:
    connector = ConvConnector(5, 6, norm_cfg=dict(type='BN'))
    level = waves((2, 5, 4, 5), 0.31, 0.13).requires_grad_()
    [expanded] = connector([level])
    MODELS.build(dict(type='kdtoolbox.NORMLoss'))(expanded, TEACHER).backward()
    assert connector.convs[0].conv.weight.grad.any()
    assert level.grad.any()


@pytest.mark.parametrize('copies', [1, 3])
def test_zero_at_equality(copies: int) -> None:
    assert many_to_one_error(TEACHER.repeat(1, copies, 1, 1), TEACHER) == 0


def test_contract() -> None:
    check_loss(NORMLoss(2.0), STUDENT, waves((2, 6, 4, 5), 0.23, 0.17, 0.4))
    check_loss(NORMLoss(2.0), STUDENT, TEACHER, zero_at_equality=False)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r'\(2, 5, 4, 5\).*multiple.*out_channels=8'):
        many_to_one_error(STUDENT[:, :5], TEACHER)
    with pytest.raises(ValueError, match=r'\(2, 2, 4, 4\) differ.*ResizeConnector'):
        many_to_one_error(STUDENT, TEACHER[..., :4])
    with pytest.raises(ValueError, match=r'expected maps of shape \(N, C, H, W\)'):
        many_to_one_error(STUDENT[0], TEACHER[0])
