import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from golden import assert_golden, load_golden, waves
from torch import Tensor

from kdtoolbox.losses.features.affinity import (
    AdaptationLoss,
    AffinityLoss,
    adaptation_loss,
    affinity_loss,
    channel_affinity_loss,
)
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 3, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 3, 5), 0.23, 0.17, 0.4)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden_legacy_channels(dtype: torch.dtype) -> None:
    golden = load_golden('affinity', 'basic', dtype)
    student = golden.inputs['student'].requires_grad_()
    loss = MODELS.build(dict(type='kdtoolbox.AffinityLoss', legacy_channels=True))
    assert_golden(loss(student, golden.inputs['teacher']), [student], golden)


def cosine(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second) / ((first @ first) ** 0.5 * (second @ second) ** 0.5)


def naive_affinity(student: Tensor, teacher: Tensor) -> Tensor:
    total = student.new_zeros(())
    for student_map, teacher_map in zip(
        student.flatten(2), teacher.flatten(2), strict=True
    ):
        positions = range(student_map.shape[1])
        for p, q in product(positions, positions):
            s, t = (cosine(x[:, p], x[:, q]) for x in (student_map, teacher_map))
            total = total + (s - t) ** 2 / len(positions) ** 2
    return total / len(student)


def naive_channels(student: Tensor, teacher: Tensor) -> Tensor:
    total = student.new_zeros(())
    for n, c in product(range(student.shape[0]), range(student.shape[1])):
        s, t = (x[n, c].flatten() / x[n, c].norm() for x in (student, teacher))
        difference = s[:, None] * s - t[:, None] * t
        total = total + sum(x**2 for x in difference.flatten()) ** 0.5 / len(s)
    return total / len(student)


def naive_adaptation(student: Tensor, teacher: Tensor) -> Tensor:
    total = student.new_zeros(())
    for student_map, teacher_map in zip(student, teacher, strict=True):
        s_norm, t_norm = (
            sum(x.flatten() ** 2) ** 0.5 for x in (student_map, teacher_map)
        )
        for s, t in zip(student_map.flatten(), teacher_map.flatten(), strict=True):
            total = total + abs(s / s_norm - t / t_norm)
    return total / student.numel()


FEW_POSITIONS = (slice(None), slice(None), slice(1), slice(3))
CASES = {
    'affinity': (affinity_loss, naive_affinity, TEACHER[:, :3], ...),
    # More channels than positions takes the other branch.
    'few positions': (affinity_loss, naive_affinity, TEACHER, FEW_POSITIONS),
    'channels': (channel_affinity_loss, naive_channels, TEACHER, ...),
    'adaptation': (adaptation_loss, naive_adaptation, TEACHER, ...),
}


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('case', CASES)
def test_naive_loops(case: str, dtype: torch.dtype) -> None:
    loss, naive, teacher, cut = CASES[case]
    student = STUDENT[cut].to(dtype, copy=True).requires_grad_()
    reference = STUDENT[cut].double().requires_grad_()
    expected = naive(reference, teacher[cut].double())
    expected.backward()
    value = loss(student, teacher[cut].to(dtype))
    value.backward()
    rtol = 1e-9 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=0)
    atol = rtol * float(reference.grad.abs().max())
    torch.testing.assert_close(student.grad.double(), reference.grad, rtol=0, atol=atol)


def test_affinity_ignores_vector_norms_and_rotations_of_the_features() -> None:
    student, teacher = STUDENT.double(), TEACHER.double()
    lengths = 0.1 + waves((2, 1, 3, 5), 0.3, 0.2).double().abs()
    turn = torch.linalg.qr(waves((4, 4), 0.7, 0.4).double()).Q
    turned = torch.einsum('oc,nchw->nohw', turn, lengths * student)
    expected = affinity_loss(student, teacher)
    torch.testing.assert_close(affinity_loss(turned, teacher), expected)


def test_channel_affinity_ignores_scale_and_sign_of_a_channel() -> None:
    student, teacher = STUDENT.double(), TEACHER.double()
    scaled = student * torch.tensor([-1.0, 3.0, 0.1, -20.0]).reshape(4, 1, 1)
    expected = channel_affinity_loss(student, teacher)
    torch.testing.assert_close(channel_affinity_loss(scaled, teacher), expected)


@pytest.mark.parametrize(
    ('loss', 'expected'),
    # 4 channels of zeros, each at distance 1; 15 positions.
    [(channel_affinity_loss, 4 / 15), (affinity_loss, None), (adaptation_loss, None)],
)
def test_zero_maps_get_no_gradient(loss: Callable, expected: float | None) -> None:
    student = torch.zeros_like(STUDENT).requires_grad_()
    value = loss(student, TEACHER)
    value.backward()
    assert 0 < value < math.inf
    assert expected is None or value.item() == pytest.approx(expected)
    assert not student.grad.any()


def test_contract() -> None:
    maps = STUDENT[..., :3], TEACHER[..., :3]
    check_loss(AffinityLoss(), *maps)
    check_loss(AffinityLoss(legacy_channels=True), *maps)
    check_loss(AdaptationLoss(), *maps)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r'\(2, 4, 3, 4\) differ in size'):
        AffinityLoss()(STUDENT, TEACHER[..., :4])
    for loss in (AffinityLoss(legacy_channels=True), AdaptationLoss()):
        with pytest.raises(ValueError, match=r'\(2, 3, 3, 5\).*a ConvConnector'):
            loss(STUDENT, TEACHER[:, :3])
