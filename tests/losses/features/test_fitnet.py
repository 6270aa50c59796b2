import pytest
import torch
from golden import assert_golden, load_golden, waves
from torch import Tensor

from kdtoolbox.connectors import ConvConnector
from kdtoolbox.losses.features.fitnet import FitNetLoss, mean_squared_error
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('case', ['cirkd_conv1x1', 'l2_plain_mean'])
def test_golden(case: str, dtype: torch.dtype) -> None:
    golden = load_golden('fitnet', case, dtype)
    student, teacher = golden.inputs['student'], golden.inputs['teacher']
    level = student.requires_grad_()
    if case == 'cirkd_conv1x1':
        widths = golden.hyper['student_channels'], golden.hyper['teacher_channels']
        connector = ConvConnector(*widths, bias=False).to(dtype)
        connector.convs[0].conv.weight.data.copy_(golden.params['conv.weight'])
        [level] = connector([level])
    loss = MODELS.build(dict(type='kdtoolbox.FitNetLoss', loss_weight=1.0))
    assert_golden(loss(level, teacher), [student], golden)


def test_closed_form_inputs() -> None:
    value = float(mean_squared_error(STUDENT.double(), TEACHER.double()))
    assert value == pytest.approx(1.6501155, rel=1e-6)


def naive(student: Tensor, teacher: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for x, y in zip(student.flatten(), teacher.double().flatten(), strict=True):
        total = total + (x - y) ** 2
    return total / student.numel()


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_naive_loops(dtype: torch.dtype) -> None:
    student = STUDENT.to(dtype, copy=True).requires_grad_()
    reference = STUDENT.double().requires_grad_()
    expected = naive(reference, TEACHER)
    expected.backward()
    value = mean_squared_error(student, TEACHER.to(dtype))
    value.backward()
    rtol = 1e-9 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=0)
    torch.testing.assert_close(student.grad.double(), reference.grad, rtol=rtol, atol=0)


def test_repeating_the_maps_does_not_change_the_loss() -> None:
    value = mean_squared_error(STUDENT, TEACHER)
    tiled = (maps.repeat(3, 2, 1, 4) for maps in (STUDENT, TEACHER))
    torch.testing.assert_close(mean_squared_error(*tiled), value, rtol=1e-6, atol=0)


def test_contract() -> None:
    check_loss(FitNetLoss(loss_weight=10.0), STUDENT, TEACHER)


def test_different_shapes_raise() -> None:
    with pytest.raises(ValueError, match=r'\(2, 4, 6, 5\).*\(2, 3, 6, 5\).*connectors'):
        FitNetLoss()(STUDENT, TEACHER[:, :3])
