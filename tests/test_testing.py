from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from kdtoolbox.testing import check_loss

STUDENT = torch.arange(48.0).sin().reshape(2, 3, 4, 2)
TEACHER = STUDENT.cos()
HALF = (torch.float16, torch.bfloat16)


class Weighted(nn.Module):
    """A loss module that multiplies a function by `loss_weight`."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.loss_weight = 2.0

    def forward(self, student: Tensor, teacher: Tensor, **inputs: list) -> Tensor:
        return self.loss_weight * self.function(student, teacher, **inputs)


def squares(student: Tensor, teacher: Tensor) -> Tensor:
    dtype = torch.promote_types(student.dtype, torch.float32)
    return (student.to(dtype) - teacher.detach().to(dtype)).square()


def per_image(student: Tensor, teacher: Tensor, data_samples: list[float]) -> Tensor:
    factors = student.new_tensor(data_samples).reshape(-1, 1, 1, 1)
    return (factors * squares(student, teacher)).mean()


def scribble(student: Tensor, teacher: Tensor) -> Tensor:
    student.data.add_(1)
    return squares(student, teacher).mean()


def half_gradient(student: Tensor, teacher: Tensor) -> Tensor:
    value = squares(student, teacher).mean()
    return (value + value.detach()) / 2


def layout(student: Tensor, teacher: Tensor) -> Tensor:
    return squares(student, teacher).mean() * (1 + student.is_contiguous())


def undefined_at(one: int, student: Tensor, teacher: Tensor) -> Tensor:
    spare = student.new_tensor(one - 1.0)
    return squares(student, teacher).mean() + 0 * student.mean() / spare


BROKEN = {
    'not a scalar': squares,
    'is not finite': lambda s, t: squares(s, t).mean() / 0,
    'is negative': lambda s, t: -squares(s, t).mean(),
    'float64 in, torch.float32 out': lambda s, t: squares(s, t).mean().float(),
    'modified in place': scribble,
    'teacher gets a gradient': lambda s, t: (s - t).square().mean(),
    'gradient is wrong': half_gradient,
    'float16 maps, autocast': lambda s, t: (
        (1 + (s.dtype in HALF)) * squares(s, t).sum()
    ),
    'strided maps': layout,
    'one image is not finite': lambda s, t: undefined_at(len(s), s, t),
    'a 1x1 map is not finite': lambda s, t: undefined_at(s.shape[2], s, t),
    'equal maps give': lambda s, t: squares(s, t).mean() + 1,
}


def test_correct_loss_passes() -> None:
    check_loss(Weighted(per_image), STUDENT, TEACHER, data_samples=[1.0, 3.0])


def per_box(student: Tensor, teacher: Tensor, data_samples: list) -> Tensor:
    boxes = torch.cat([sample.gt_instances.bboxes for sample in data_samples])
    areas = (boxes[:, 2:] - boxes[:, :2]).floor().prod(1)
    return squares(student, teacher).mean() / areas.mean()


@pytest.mark.parametrize('message', ['no ground truth', 'boxes below a pixel'])
def test_loss_that_fails_without_boxes_or_with_tiny_boxes_raises(message: str) -> None:
    instances = SimpleNamespace(
        bboxes=torch.tensor([[0.0, 0.0, 4.0, 4.0]]), labels=torch.tensor([0])
    )
    samples = [SimpleNamespace(gt_instances=instances)] * 2

    def fails_on_one(student: Tensor, teacher: Tensor, data_samples: list) -> Tensor:
        empty = len(data_samples[0].gt_instances.bboxes) == 0
        if empty == (message == 'no ground truth'):
            return per_box(student, teacher, data_samples)
        return squares(student, teacher).mean()

    with pytest.raises(AssertionError, match=message):
        check_loss(Weighted(fails_on_one), STUDENT, TEACHER, data_samples=samples)


@pytest.mark.parametrize('message', BROKEN)
def test_broken_contract_raises_with_the_broken_part(message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_loss(Weighted(BROKEN[message]), STUDENT, TEACHER)


def test_loss_that_ignores_its_weight_raises() -> None:
    class Unweighted(Weighted):
        def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
            return squares(student, teacher).mean()

    with pytest.raises(AssertionError, match='loss_weight=0 gives'):
        check_loss(Unweighted(squares), STUDENT, TEACHER)
