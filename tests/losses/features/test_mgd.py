import pytest
import torch
from golden import assert_golden, load_golden, waves
from torch import Tensor
from torch.nn import functional

from kdtoolbox.connectors.generator import MGDConnector
from kdtoolbox.losses.features.mgd import MGDLoss, summed_squared_error
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('case', ['det_align', 'seg_same_channels'])
def test_golden(case: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = load_golden('mgd', case, dtype)
    [student], [teacher] = golden.inputs['student'], golden.inputs['teacher']
    [noise], [mask] = golden.inputs['rand'], golden.inputs['mask']
    ratio = golden.hyper['lambda_mgd']
    connector = MGDConnector(channels=8, num_levels=1, mask_ratio=ratio).to(dtype)
    prefix = 'level0.generation.'
    connector.generators[0].load_state_dict(
        {
            name.removeprefix(prefix): value
            for name, value in golden.params.items()
            if name.startswith(prefix)
        }
    )
    monkeypatch.setattr(torch, 'rand', lambda *_, device: noise)
    level = student.requires_grad_()
    if case == 'det_align':
        layer = (golden.params[f'level0.align.{name}'] for name in ('weight', 'bias'))
        level = functional.conv2d(level, *layer)
    assert torch.equal((noise <= 1 - ratio).to(dtype), mask)
    [generated] = connector([level])
    weight = golden.hyper['alpha_mgd']
    loss = MODELS.build(dict(type='kdtoolbox.MGDLoss', loss_weight=weight))
    assert_golden(loss(generated, teacher), [student], golden)


def test_closed_form_inputs() -> None:
    # 1.6501155 is the mean squared error in the FitNet test, C * H * W = 4 * 6 * 5.
    value = float(summed_squared_error(STUDENT.double(), TEACHER.double()))
    assert value == pytest.approx(1.6501155 * 4 * 6 * 5, rel=1e-6)


def naive(student: Tensor, teacher: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for x, y in zip(student.flatten(), teacher.double().flatten(), strict=True):
        total = total + (x - y) ** 2
    return total / len(student)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_naive_loops(dtype: torch.dtype) -> None:
    student = STUDENT.to(dtype, copy=True).requires_grad_()
    reference = STUDENT.double().requires_grad_()
    expected = naive(reference, TEACHER)
    expected.backward()
    value = summed_squared_error(student, TEACHER.to(dtype))
    value.backward()
    rtol = 1e-9 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=0)
    torch.testing.assert_close(student.grad.double(), reference.grad, rtol=rtol, atol=0)


def test_second_backward_pass_gives_the_same_gradient() -> None:
    student = STUDENT.clone().requires_grad_()
    value = MGDLoss(loss_weight=3.0)(student, TEACHER)
    first, second = (
        torch.autograd.grad(value, student, retain_graph=True)[0] for _ in range(2)
    )
    assert first.any()
    assert torch.equal(first, second)


def test_loss_of_a_large_map_is_accurate() -> None:
    student, teacher = torch.full((1, 8, 1024, 1024), 0.1), torch.zeros(())
    value = summed_squared_error(student, teacher.expand_as(student))
    assert float(value) == pytest.approx(0.01 * 8 * 1024**2, rel=1e-5)


def test_contract() -> None:
    check_loss(MGDLoss(loss_weight=2.0), STUDENT, TEACHER)


def test_different_shapes_raise() -> None:
    with pytest.raises(ValueError, match=r'\(2, 4, 6, 5\).*\(2, 3, 6, 5\).*connectors'):
        MGDLoss()(STUDENT, TEACHER[:, :3])
