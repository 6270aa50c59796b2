from functools import partial
from typing import Any

import pytest
import torch
from golden import waves
from torch import Tensor

from kdtoolbox.losses.detection.pfi import PFILoss, guided_feature_error
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)
STUDENT_CLS = 2 * waves((2, 3, 6, 5), 0.31, 0.13) - 1
TEACHER_CLS = 3 * waves((2, 3, 6, 5), 0.29, 0.19, 0.7) - 1


def naive(maps: list[Tensor], legacy: bool) -> Tensor:
    """One position at a time."""
    student, teacher, mine, theirs = maps
    if not legacy:
        mine, theirs = (1 / (1 + (-x).exp()) for x in (mine, theirs))
    total = torch.zeros((), dtype=torch.float64)
    count, channels, height, width = student.shape
    for n in range(count):
        for y in range(height):
            for x in range(width):
                guide = error = torch.zeros((), dtype=torch.float64)
                for k in range(mine.shape[1]):
                    guide = guide + (mine[n, k, y, x] - theirs[n, k, y, x]) ** 2
                for c in range(channels):
                    error = error + (student[n, c, y, x] - teacher[n, c, y, x]) ** 2
                total = total + guide / mine.shape[1] * error / channels
    return total / (count * height * width)


@pytest.mark.parametrize('legacy', [False, True])
def test_naive_loops(legacy: bool) -> None:
    results = []
    for compute in (lambda *maps: guided_feature_error(*maps, legacy), naive):
        mine, logits = (x.double().requires_grad_() for x in (STUDENT, STUDENT_CLS))
        maps = [mine, TEACHER.double(), logits, TEACHER_CLS.double()]
        value = compute(maps, legacy) if compute is naive else compute(*maps)
        value.backward()
        # Nothing stops the gradient of the guide, as in the former code of mmrazor.
        assert logits.grad.any()
        results.append([value.detach(), mine.grad, logits.grad])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14)


def test_the_levels_are_averaged() -> None:
    small = [x[..., :2, :3] for x in (STUDENT, TEACHER, STUDENT_CLS, TEACHER_CLS)]
    large = [STUDENT, TEACHER, STUDENT_CLS, TEACHER_CLS]
    loss: Any = MODELS.build(dict(type='kdtoolbox.PFILoss', loss_weight=3.0))
    found = loss(*map(list, zip(large, small, strict=True)))
    expected = 1.5 * (guided_feature_error(*large) + guided_feature_error(*small))
    torch.testing.assert_close(found, expected)


def test_equal_predictions_hide_the_features() -> None:
    student = STUDENT.clone().requires_grad_()
    value = guided_feature_error(student, TEACHER, STUDENT_CLS, STUDENT_CLS)
    value.backward()
    assert value == 0
    assert not student.grad.any()


def test_the_teachers_logits_get_no_gradient() -> None:
    logits = TEACHER_CLS.clone().requires_grad_()
    assert not guided_feature_error(STUDENT, TEACHER, STUDENT_CLS, logits).requires_grad


class OnOneLevel(PFILoss):
    """Takes the logits of as many positions as the maps have, or the maps as both."""

    own: bool = False

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:  # type: ignore[override]
        if self.own:
            return super().forward([student], [teacher], [student], [teacher])
        cut = partial(self.cut, like=student)
        logits = [cut(STUDENT_CLS)], [cut(TEACHER_CLS)]
        return super().forward([student], [teacher], *logits)

    @staticmethod
    def cut(maps: Tensor, like: Tensor) -> Tensor:
        count, _, height, width = like.shape
        dtype = torch.promote_types(like.dtype, torch.float32)
        return maps[:count, :, :height, :width].to(dtype)


@pytest.mark.parametrize('own', [False, True])
def test_contract(own: bool) -> None:
    loss = OnOneLevel(loss_weight=2.0)
    loss.own = own
    check_loss(loss, STUDENT[..., :3, :2], TEACHER[..., :3, :2])


def test_refuses_shapes() -> None:
    with pytest.raises(ValueError, match=r'differ in shape.*connectors'):
        guided_feature_error(STUDENT, TEACHER[:, :3], STUDENT_CLS, TEACHER_CLS)
    with pytest.raises(ValueError, match=r'differ in shape'):
        guided_feature_error(STUDENT, TEACHER, STUDENT_CLS, TEACHER_CLS[:, :2])
    logits = STUDENT_CLS[..., :1], TEACHER_CLS[..., :1]
    with pytest.raises(ValueError, match=r'differ in size; record the same levels'):
        guided_feature_error(STUDENT, TEACHER, *logits)
