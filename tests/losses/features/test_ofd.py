import math
from typing import Any

import pytest
import torch
from golden import assert_golden, load_golden, waves
from torch import Tensor

from kdtoolbox.connectors import ConvConnector
from kdtoolbox.losses.features.ofd import expected_negative, partial_squared_error
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 3, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 3, 5), 0.23, 0.17, 0.4)
MARGIN = torch.tensor([-0.2, -0.7, -1.2, -3.0])


def build(**changes: Any) -> Any:
    return MODELS.build(dict(type='kdtoolbox.OFDLoss') | changes)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden_function(dtype: torch.dtype) -> None:
    golden = load_golden('ofd', 'official_function', dtype)
    [student], [teacher], [margin] = (
        golden.inputs[name] for name in ('student', 'teacher', 'margin')
    )
    student.requires_grad_()
    # The official function does not divide by the batch size.
    loss = build(loss_weight=float(len(student)))(student, teacher, margin.flatten())
    assert_golden(loss, [student], golden)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden_stages(dtype: torch.dtype) -> None:
    golden = load_golden('ofd', 'mdistiller_two_stages', dtype)
    students, teachers, margins = (
        golden.inputs[name] for name in ('student', 'teacher', 'margin')
    )
    losses = []
    for stage, student in enumerate(students):
        student.requires_grad_()
        connector = ConvConnector(
            student.shape[1], teachers[stage].shape[1], norm_cfg=dict(type='BN')
        ).to(dtype)
        prefix = f'connectors.{stage}.'
        state = connector.state_dict()
        for name, stored in (
            ('conv.weight', '0.weight'),
            ('bn.weight', '1.weight'),
            ('bn.bias', '1.bias'),
        ):
            state[f'convs.0.{name}'] = golden.params[prefix + stored]
        connector.load_state_dict(state)
        loss = build(loss_weight=0.5 ** (1 - stage))
        [connected] = connector([student])
        losses.append(loss(connected, teachers[stage], margins[stage].flatten()))
    assert_golden(torch.stack(losses).sum(), students, golden)


def naive(student: Tensor, teacher: Tensor, margins: list[float]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for student_map, teacher_map in zip(student, teacher, strict=True):
        for s, t, margin in zip(student_map, teacher_map, margins, strict=True):
            for x, y in zip(s.flatten(), t.flatten(), strict=True):
                goal = max(float(y), margin)
                if goal > 0 or x > goal:
                    total = total + (x - goal) ** 2
    return total / len(student)


def naive_margin(values: Tensor) -> float:
    """Integrate the normal distribution below 0 numerically."""
    mean, std = float(values.mean()), float(values.std(correction=0))
    share = (1 - math.erf(mean / std / 2**0.5)) / 2
    x = torch.linspace(mean - 9 * std, 0, 400001, dtype=torch.float64)
    density = (-(((x - mean) / std) ** 2) / 2).exp() / std / math.sqrt(2 * math.pi)
    return float(torch.trapezoid(x * density, x)) / share


@pytest.mark.parametrize('given', [False, True])
def test_naive_loops(given: bool) -> None:
    student, teacher = STUDENT.double().requires_grad_(), TEACHER.double()
    reference = student.detach().clone().requires_grad_()
    margins = MARGIN.tolist()
    if not given:
        margins = [naive_margin(channel) for channel in teacher.unbind(1)]
    value = partial_squared_error(student, teacher, MARGIN if given else None)
    expected = naive(reference, teacher, margins)
    torch.testing.assert_close(value, expected, rtol=1e-7, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=0, atol=1e-7)


def test_margins_of_rarely_negative_or_constant_channels() -> None:
    mean = torch.tensor([5.0, -2.0, 2.0, 0.0, -50.0])
    std = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0])
    expected = torch.tensor([-3.0, -2.0, 0.0, 0.0, -50.0])
    torch.testing.assert_close(expected_negative(mean, std), expected)


def test_student_below_the_margin_gets_no_gradient() -> None:
    student = torch.full((2, 4, 3, 5), -4.0, requires_grad=True)
    teacher = torch.full((2, 4, 3, 5), -0.1)
    value = partial_squared_error(student, teacher, MARGIN)
    value.backward()
    assert value == 0
    assert not student.grad.any()


@pytest.mark.parametrize('inputs', [{}, dict(margin=MARGIN)])
def test_contract(inputs: dict) -> None:
    check_loss(build(), STUDENT, TEACHER, **inputs)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r'\(2, 4, 3, 5\).*\(2, 3, 3, 5\).*connectors'):
        partial_squared_error(STUDENT, TEACHER[:, :3])
    with pytest.raises(ValueError, match=r'3 margins for 4 channels.*`margin\.<name>`'):
        partial_squared_error(STUDENT, TEACHER, MARGIN[:3])
