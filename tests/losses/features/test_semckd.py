import pytest
import torch
from golden import assert_golden, load_golden, waves
from torch import Tensor
from torch.nn import functional

from kdtoolbox.losses.features.semckd import SemCKDLoss, calibrated_error, image_errors
from kdtoolbox.testing import check_loss

STUDENT = [waves((2, 4, 6, 5), 0.37, 0.11), waves((2, 3, 3, 4), 0.31, 0.13)]
TEACHER = [waves((2, 5, 3, 3), 0.23, 0.17, 0.4), waves((2, 2, 6, 4), 0.19, 0.29, 0.7)]


def build(**arguments: float) -> SemCKDLoss:
    torch.manual_seed(0)
    return SemCKDLoss([4, 3], [5, 2], width=6, **arguments)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden(dtype: torch.dtype) -> None:
    golden = load_golden('semckd', 'basic', dtype)
    students = [level.requires_grad_() for level in golden.inputs['student']]
    errors = torch.stack(list(map(image_errors, students, golden.inputs['teacher'])), 1)
    attention = golden.inputs['attention']
    loss = calibrated_error(errors.reshape(attention.shape), attention)
    assert_golden(loss, students, golden)


def naive(loss: SemCKDLoss, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Compute the loss per image and pair of layers, without pooling."""
    total = torch.zeros((), dtype=torch.float64)
    for n in range(2):
        for i, student_layer in enumerate(student):
            query = loss.queries[i](student_layer[n].flatten(1).mean(1))
            scores, errors = [], []
            for j, teacher_layer in enumerate(teacher):
                key = loss.keys[j](teacher_layer[n].flatten(1).mean(1))
                scores.append(query @ key / (query @ query * (key @ key)) ** 0.5)
                size = [
                    min(student_layer.shape[d], teacher_layer.shape[d]) for d in (2, 3)
                ]
                s, t = (
                    functional.adaptive_avg_pool2d(x[n], size)
                    for x in (student_layer, teacher_layer)
                )
                layer = loss.projections[2 * i + j]
                projected = torch.einsum('chw,dc->dhw', s, layer.weight[..., 0, 0])
                projected = projected + layer.bias[:, None, None]
                errors.append(((projected - t) ** 2).mean())
            weights = torch.stack(scores).exp()
            for weight, error in zip(weights / weights.sum(), errors, strict=True):
                total = total + weight * error / 4
    return total


def test_naive_loops() -> None:
    loss = build().double()
    students = [
        [level.double().requires_grad_() for level in STUDENT] for _ in range(2)
    ]
    teacher = [level.double() for level in TEACHER]
    value, expected = loss(students[0], teacher), naive(loss, students[1], teacher)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    for level, reference in zip(*students, strict=True):
        torch.testing.assert_close(level.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_all_parameters_get_a_gradient_and_the_teacher_none() -> None:
    loss = build()
    teacher = [level.clone().requires_grad_() for level in TEACHER]
    loss(STUDENT, teacher).backward()
    assert all(weight.grad.any() for weight in loss.parameters())
    assert all(level.grad is None for level in teacher)


def test_student_and_teacher_may_differ_in_the_number_of_layers() -> None:
    torch.manual_seed(0)
    loss = SemCKDLoss([4, 3], [2], width=6)
    student = [waves((2, c, 6, 4), 0.37, 0.1) for c in (4, 3)]
    teacher = waves((2, 2, 6, 4), 0.23, 0.17)
    # The only teacher layer has an attention of 1.
    errors = [
        image_errors(project(level), teacher).mean()
        for project, level in zip(loss.projections, student, strict=True)
    ]
    torch.testing.assert_close(loss(student, [teacher]), sum(errors) / 2)


def test_pool_size_gives_the_loss_of_pooled_maps() -> None:
    student = [waves((2, c, 6, 4), 0.37, 0.1) for c in (4, 3)]
    teacher = [waves((2, c, 6, 4), 0.23, 0.17) for c in (5, 2)]
    halves = [
        [functional.avg_pool2d(x, 2) for x in side] for side in (student, teacher)
    ]
    torch.testing.assert_close(build(pool_size=2)(student, teacher), build()(*halves))


class _Levels(SemCKDLoss):
    """Derives two levels from the single map that `check_loss` passes."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:  # type: ignore[override]
        sides = ([x, x[:, :2, ::2, ::2]] for x in (student, teacher))
        return super().forward(*sides)


@pytest.mark.parametrize('pool_size', [1, 2])
def test_contract(pool_size: int) -> None:
    torch.manual_seed(0)
    loss = _Levels([4, 2], [4, 2], pool_size=pool_size, width=6)
    teacher = 1.3 * waves((2, 4, 4, 3), 0.23, 0.17, 0.4)
    check_loss(loss, STUDENT[0][..., :4, :3], teacher, zero_at_equality=False)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r'student_channels=\[4, 3\].*set .*=\[4\]'):
        build()(STUDENT[:1], TEACHER)
    with pytest.raises(ValueError, match=r'teacher_channels=\[5, 2\].*set .*=\[2, 5\]'):
        build()(STUDENT, TEACHER[::-1])
