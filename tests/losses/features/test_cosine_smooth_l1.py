import pytest
import torch
from golden import waves
from torch import Tensor

from kdtoolbox.losses.features.cosine_smooth_l1 import cosine_smooth_l1_loss
from kdtoolbox.losses.features.nfd import angular_loss
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
# With differences on both sides of 1, where the smooth L1 becomes linear.
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)


def build(**changes: float) -> torch.nn.Module:
    return MODELS.build(dict(type='kdtoolbox.CosineSmoothL1Loss', **changes))


def naive(student: Tensor, teacher: Tensor) -> Tensor:
    """Loop over positions, and over values, with the weights of AM-RADIO."""
    cosines, smooth = [], []
    for s, t in zip(
        student.movedim(1, -1).flatten(0, 2),
        teacher.movedim(1, -1).flatten(0, 2),
        strict=True,
    ):
        cosines.append(1 - (s @ t) / (s.norm() * t.norm()))
        for difference in (s - t).abs():
            near = difference < 1
            smooth.append(0.5 * difference**2 if near else difference - 0.5)
    return 0.9 * torch.stack(cosines).mean() + 0.1 * torch.stack(smooth).mean()


def test_matches_naive_loops() -> None:
    assert 0.1 < ((STUDENT - TEACHER).abs() < 1).float().mean() < 0.9
    student, teacher = STUDENT.double().requires_grad_(), TEACHER.double()
    reference = student.detach().clone().requires_grad_()
    expected = naive(reference, teacher)
    value = build()(student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-8, atol=1e-12)


def test_without_smooth_l1_it_is_the_mean_cosine_distance() -> None:
    value = cosine_smooth_l1_loss(STUDENT, TEACHER, smooth_l1_weight=0.0)
    cosines = torch.cosine_similarity(STUDENT, TEACHER, dim=1)
    torch.testing.assert_close(value, (1 - cosines).mean())
    assert value == angular_loss(STUDENT, TEACHER)
    torch.testing.assert_close(cosine_smooth_l1_loss(3 * STUDENT, TEACHER, 0.0), value)
    assert cosine_smooth_l1_loss(3 * STUDENT, TEACHER) > value


def test_a_dead_position_learns_by_the_smooth_l1_alone() -> None:
    student = STUDENT.clone()
    student[0, :, 2, 3] = 0
    for weight, reached in ((0.1, True), (0.0, False)):
        student = student.detach().requires_grad_()
        build(smooth_l1_weight=weight)(student, TEACHER).backward()
        assert student.grad.abs().max() < 1
        assert bool(student.grad[0, :, 2, 3].any()) == reached


@pytest.mark.parametrize('weight', [0.1, 0.0])
def test_keeps_the_loss_contract(weight: float) -> None:
    maps = STUDENT[..., :3], TEACHER[..., :3]
    check_loss(build(smooth_l1_weight=weight, loss_weight=2.0), *maps)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r'differ in shape; put a ResizeConnector'):
        build()(STUDENT, TEACHER[..., :4])
    with pytest.raises(
        ValueError, match='smooth_l1_weight must be .* at most 1, got 2'
    ):
        build(smooth_l1_weight=2)
    with pytest.raises(ValueError, match='loss_weight must be a finite number'):
        build(loss_weight=-1.0)
