import inspect

import pytest
import torch
from torch import Tensor

from kdtoolbox.losses.precision import full_precision


@full_precision
def received(
    student: Tensor, teacher: Tensor | list[Tensor], labels: Tensor, tau: float = 1.0
) -> tuple:
    """Return the arguments that the decorated body receives.

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
def test_tensors_are_cast_to_the_widest_dtype_of_at_least_float32(
    student: torch.dtype, teacher: torch.dtype, expected: torch.dtype
) -> None:
    ones, labels = torch.ones(2, dtype=student), torch.tensor([1])
    with torch.autocast('cpu', torch.bfloat16):
        result = received(ones, teacher=[ones.to(teacher)] * 2, labels=labels, tau=2.0)
    assert result[0].dtype == expected
    assert [x.dtype for x in result[1]] == [expected] * 2
    assert result[2] is labels
    assert result[3:] == (2.0, False)


def test_only_the_student_gets_a_gradient_in_its_own_dtype() -> None:
    student, teacher = (torch.ones(2).half().requires_grad_() for _ in range(2))
    result = received(student, teacher, torch.tensor([1]))
    assert not result[1].requires_grad
    result[0].sum().backward()
    assert student.grad.dtype == torch.float16
    assert not any(x.requires_grad for x in received(student, [teacher], student)[1])


def test_signature_and_docstring_are_kept() -> None:
    assert list(inspect.signature(received).parameters) == [
        'student',
        'teacher',
        'labels',
        'tau',
    ]
    assert '>>> 1 + 1' in received.__doc__


ONES = torch.ones(2)


@pytest.mark.parametrize(
    ('args', 'kwargs', 'message'),
    [
        ((), {}, "missing 3 required positional arguments: 'student', 'teacher'"),
        ((ONES, ONES), {}, "missing 1 required positional argument: 'labels'"),
        ((ONES,) * 3, dict(tua=1.0), "got an unexpected keyword argument 'tua'"),
        ((ONES, ONES, ONES, 1.0, ONES), {}, '3 to 4 positional arguments but 5 were'),
        ((ONES,) * 3, dict(student=ONES), "got multiple values for argument 'student'"),
    ],
)
def test_wrong_arguments_raise_the_type_error_of_the_function(
    args: tuple, kwargs: dict, message: str
) -> None:
    with pytest.raises(TypeError, match=r'^received\(\) ') as caught:
        received(*args, **kwargs)
    assert message in str(caught.value)


def test_keyword_only_arguments_stay_keyword_only() -> None:
    @full_precision
    def scaled(student: Tensor, *, tau: float) -> Tensor:
        return student * tau

    assert scaled(ONES, tau=2.0).tolist() == [2.0, 2.0]
    with pytest.raises(TypeError, match='1 positional argument but 2 were'):
        scaled(ONES, 2.0)


def test_without_tensors_the_function_runs_unchanged() -> None:
    assert received([], teacher=[], labels=())[:4] == ([], [], (), 1.0)
