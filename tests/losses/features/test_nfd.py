from collections.abc import Callable
from itertools import product

import pytest
import torch
from golden import waves
from torch import Tensor

from kdtoolbox.losses.features.nfd import AngularLoss, NFDLoss, angular_loss, nfd_loss
from kdtoolbox.losses.features.pkd import pkd_loss
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)


def groups(axes: str) -> list[tuple]:
    """Return an index for each group of values that share mean and variance."""
    images, channels, rows, columns = map(range, STUDENT.shape)
    if axes == 'spatial':
        return [(n, c) for n, c in product(images, channels)]
    if axes == 'channel':
        return [(n, slice(None), y, x) for n, y, x in product(images, rows, columns)]
    return [(n,) for n in images]


def naive_nfd(axes: str) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        total = student.new_zeros(())
        for index in groups(axes):
            parts = []
            for maps in (student, teacher):
                values = maps[index].flatten()
                mean = sum(values) / len(values)
                variance = sum((v - mean) ** 2 for v in values) / len(values)
                parts.append([(v - mean) / (variance + 1e-5) ** 0.5 for v in values])
            total = total + sum((s - t) ** 2 for s, t in zip(*parts, strict=True))
        return total / student.numel()

    return loss


def naive_angular(student: Tensor, teacher: Tensor) -> Tensor:
    total = student.new_zeros(())
    for n, y, x in product(*(range(STUDENT.shape[dim]) for dim in (0, 2, 3))):
        s, t = student[n, :, y, x], teacher[n, :, y, x]
        total = total + 1 - (s @ t) / ((s @ s) ** 0.5 * (t @ t) ** 0.5)
    return total / (STUDENT.numel() / STUDENT.shape[1])


CASES = {'angular': (angular_loss, naive_angular)} | {
    axes: (lambda s, t, axes=axes: nfd_loss(s, t, axes), naive_nfd(axes))
    for axes in ('spatial', 'channel', 'both')
}


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('case', CASES)
def test_naive_loops(case: str, dtype: torch.dtype) -> None:
    loss, naive = CASES[case]
    student = STUDENT.to(dtype, copy=True).requires_grad_()
    reference = STUDENT.double().requires_grad_()
    expected = naive(reference, TEACHER.double())
    expected.backward()
    value = loss(student, TEACHER.to(dtype))
    value.backward()
    rtol = 1e-9 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=0)
    atol = rtol * float(reference.grad.abs().max())
    torch.testing.assert_close(student.grad.double(), reference.grad, rtol=0, atol=atol)


def test_spatial_nfd_of_one_image_is_twice_pkd() -> None:
    student, teacher = (100 * x[:1].double() for x in (STUDENT, TEACHER))
    # PKD uses the unbiased standard deviation of 30 values.
    expected = 2 * pkd_loss(student, teacher) * 30 / 29
    torch.testing.assert_close(nfd_loss(student, teacher), expected, rtol=1e-6, atol=0)


def test_norm_of_a_vector_does_not_change_the_angular_loss() -> None:
    student, teacher = STUDENT.double(), TEACHER.double()
    lengths = 0.1 + waves((2, 1, 6, 5), 0.3, 0.2).double().abs()
    expected = angular_loss(student, teacher)
    torch.testing.assert_close(angular_loss(lengths * student, teacher), expected)


def test_zero_vectors_get_no_gradient() -> None:
    student = torch.zeros_like(STUDENT).requires_grad_()
    value = angular_loss(student, TEACHER)
    value.backward()
    assert value.item() == pytest.approx(0.5)
    assert not student.grad.any()


def test_constant_channel_gives_a_finite_gradient() -> None:
    student = torch.full_like(STUDENT, 0.1).requires_grad_()
    value = nfd_loss(student, TEACHER)
    value.backward()
    assert value.item() == pytest.approx(1, abs=1e-3)
    assert student.grad.isfinite().all()


def test_contract() -> None:
    maps = STUDENT[..., :3, :2], TEACHER[..., :3, :2]
    check_loss(AngularLoss(10.0), *maps)
    for axes in ('spatial', 'channel', 'both'):
        check_loss(NFDLoss(axes), *maps)


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r"got 'batch'; write .*axes='spatial'"):
        NFDLoss('batch')
    for loss in (nfd_loss, angular_loss):
        with pytest.raises(ValueError, match=r'\(2, 4, 6, 5\).*a ConvConnector'):
            loss(STUDENT, TEACHER[:, :3])
