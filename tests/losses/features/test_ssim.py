from math import exp

import pytest
import torch
from golden import TOLERANCES, assert_golden, load_golden, waves
from torch import Tensor

from kdtoolbox.losses.features import ssim
from kdtoolbox.losses.features.ssim import SSIMLoss, structural_dissimilarity
from kdtoolbox.registry import MODELS
from kdtoolbox.testing import check_loss

STUDENT = waves((2, 4, 6, 5), 0.37, 0.11)
TEACHER = 1.3 * waves((2, 4, 6, 5), 0.23, 0.17, 0.4)


@pytest.mark.parametrize('chunk', [ssim.CHUNK, 700, 1])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden(
    dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Chunks of all 10 planes, of 3 planes with 1 left over, and of 1 plane.
    monkeypatch.setattr(ssim, 'CHUNK', chunk)
    golden = load_golden('ssim', 'win11', dtype)
    student = golden.inputs['student'].requires_grad_()
    hyper = golden.hyper
    config = dict(window=hyper['window_size'], max_val=hyper['max_val'])
    loss = MODELS.build(dict(type='kdtoolbox.SSIMLoss', loss_weight=1.0, **config))
    assert_golden(loss(student, golden.inputs['teacher']), [student], golden)


def mirrored(index: int, length: int) -> int:
    index = abs(index)
    return min(index, 2 * (length - 1) - index)


def naive(student: Tensor, teacher: Tensor, side: int, max_val: float) -> Tensor:
    height, width = student.shape[2:]
    radius = side // 2
    steps = range(-radius, radius + 1)
    gauss = {step: exp(-(step**2) / 4.5) for step in steps}
    c1, c2 = (0.01 * max_val) ** 2, (0.03 * max_val) ** 2
    losses = []
    planes = zip(student.flatten(0, 1), teacher.flatten(0, 1), strict=True)
    for student_plane, teacher_plane in planes:
        for y in range(height):
            for x in range(width):
                window = [
                    (
                        gauss[i] * gauss[j],
                        mirrored(y + i, height),
                        mirrored(x + j, width),
                    )
                    for i in steps
                    for j in steps
                ]
                weights = torch.tensor([w for w, _, _ in window], dtype=torch.float64)
                weights = weights / weights.sum()
                s, t = (
                    torch.stack([maps[row, column] for _, row, column in window])
                    for maps in (student_plane, teacher_plane)
                )
                s_mean, t_mean = (weights * s).sum(), (weights * t).sum()
                s, t = s - s_mean, t - t_mean
                both = (weights * s * t).sum()
                apart = (weights * s**2).sum() + (weights * t**2).sum()
                similar = (2 * s_mean * t_mean + c1) * (2 * both + c2)
                similar = similar / ((s_mean**2 + t_mean**2 + c1) * (apart + c2))
                losses.append((1 - similar) / 2)
    return torch.stack(losses).mean()


# With a mean of 100 in float32, E[x^2] - E[x]^2 would be rounding noise.
@pytest.mark.parametrize(
    ('mean', 'window', 'size', 'side'),
    [
        (0.0, 3, (6, 5), 3),
        (0.0, 11, (6, 5), 5),
        (100.0, 11, (6, 5), 5),
        (0.0, 11, (4, 2), 1),
    ],
)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_naive_loops(
    dtype: torch.dtype, mean: float, window: int, size: tuple[int, int], side: int
) -> None:
    rows, columns = size
    student = (STUDENT[:, :2, :rows, :columns] + mean).to(dtype).requires_grad_()
    teacher = (TEACHER[:, :2, :rows, :columns] + mean).to(dtype)
    reference = student.detach().double().requires_grad_()
    expected = naive(reference, teacher.double(), side, 2.0)
    expected.backward()
    value = structural_dissimilarity(student, teacher, window, max_val=2.0)
    value.backward()
    rtol, atol, share = TOLERANCES[dtype]
    torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=atol)
    # The rounding errors of a window sum are divided by c2 = 0.06 ** 2.
    noise = 2 * side**2 * torch.finfo(dtype).eps / 0.06**2 / student.numel()
    atol = 2 * share * float(reference.grad.abs().max()) + noise
    torch.testing.assert_close(student.grad.double(), reference.grad, rtol=0, atol=atol)


def test_inverted_pattern_gives_almost_1_and_equal_constant_maps_give_0() -> None:
    stripes = torch.zeros(1, 1, 8, 8)
    stripes[..., ::2] = 1.0
    assert structural_dissimilarity(4 + stripes, 5 - stripes) > 0.98
    flat = torch.full((1, 2, 8, 8), 0.1).requires_grad_()
    value = structural_dissimilarity(flat, flat.detach())
    value.backward()
    assert value == 0
    assert not flat.grad.any()


def test_scaling_maps_and_max_val_does_not_change_the_loss() -> None:
    expected = structural_dissimilarity(STUDENT, TEACHER)
    value = structural_dissimilarity(7 * STUDENT, 7 * TEACHER, max_val=7.0)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)


def test_second_backward_pass_gives_the_same_gradient() -> None:
    student = STUDENT.clone().requires_grad_()
    value = SSIMLoss()(student, TEACHER)
    first, second = (
        torch.autograd.grad(value, student, retain_graph=True)[0] for _ in range(2)
    )
    assert first.any()
    assert torch.equal(first, second)


def test_loss_scaling_recovers_gradients_below_the_half_precision_range() -> None:
    student = STUDENT.half().repeat(4, 4, 16, 16).requires_grad_()
    teacher = TEACHER.half().repeat(4, 4, 16, 16)
    (2**16 * structural_dissimilarity(student, teacher)).backward()
    reference = student.detach().float().requires_grad_()
    (2**16 * structural_dissimilarity(reference, teacher.float())).backward()
    # The gradient is rounded once, to half precision.
    atol = torch.finfo(torch.float16).eps * float(reference.grad.abs().max())
    torch.testing.assert_close(student.grad.float(), reference.grad, rtol=0, atol=atol)


def test_contract() -> None:
    check_loss(SSIMLoss(window=5), STUDENT, TEACHER)


def test_different_shapes_raise() -> None:
    with pytest.raises(ValueError, match=r'\(2, 4, 6, 5\).*\(2, 4, 6, 4\).*connectors'):
        structural_dissimilarity(STUDENT, TEACHER[..., :4])
