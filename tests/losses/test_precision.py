import inspect

import pytest
import torch
from torch import Tensor

from kdtoolbox.losses.precision import full_precision


@full_precision
def seen(
    student: Tensor, teacher: Tensor | list[Tensor], labels: Tensor, tau: float = 1.0
) -> tuple:
    """Return what the body of a decorated function is given.

    Example:
        >>> 1 + 1
        2
    """
    return student, teacher, labels, tau, torch.is_autocast_enabled('cpu')


@pytest.mark.parametrize(
    ('student', 'teacher', 'expected'),
    [
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float16, torch.float64),
    ],
)
def test_tensors_have_the_widest_dtype_and_float32_at_least(
    student: torch.dtype, teacher: torch.dtype, expected: torch.dtype
) -> None:
    ones, labels = torch.ones(2, dtype=student), torch.tensor([1])
    with torch.autocast('cpu', torch.bfloat16):
        result = seen(ones, teacher=[ones.to(teacher)] * 2, labels=labels, tau=2.0)
    assert result[0].dtype == expected
    assert [x.dtype for x in result[1]] == [expected] * 2
    assert result[2] is labels
    assert result[3:] == (2.0, False)


def test_gradient_reaches_the_student_alone_in_its_own_dtype() -> None:
    student, teacher = (torch.ones(2).half().requires_grad_() for _ in range(2))
    result = seen(student, teacher, torch.tensor([1]))
    assert not result[1].requires_grad
    result[0].sum().backward()
    assert student.grad.dtype == torch.float16
    assert not any(x.requires_grad for x in seen(student, [teacher], student)[1])


def test_signature_and_examples_stay() -> None:
    assert list(inspect.signature(seen).parameters) == [
        'student',
        'teacher',
        'labels',
        'tau',
    ]
    assert '>>> 1 + 1' in seen.__doc__
