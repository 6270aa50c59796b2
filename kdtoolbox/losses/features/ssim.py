"""Structural similarity of features (SSIM, arXiv:2211.13133)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from kdtoolbox.losses.arguments import check_above, check_at_least, check_counts
from kdtoolbox.losses.inputs import check_maps
from kdtoolbox.registry import MODELS

SIGMA = 1.5
CHUNK = 2**19
"""Values of a map worked on at once; some fifteen tensors of this size are held."""


def structural_dissimilarity(
    student: Tensor, teacher: Tensor, window: int = 11, max_val: float = 1.0
) -> Tensor:
    r"""Compare mean, spread and pattern of two maps in a window around each position.

    .. math:: mean\left(\frac{1 - SSIM}{2}\right), \quad SSIM =
        \frac{(2 \mu_s \mu_t + c_1)(2 \sigma_{st} + c_2)}
        {(\mu_s^2 + \mu_t^2 + c_1)(\sigma_s^2 + \sigma_t^2 + c_2)}

    with Gaussian windows of deviation 1.5, mirrored borders, :math:`c_1 = (0.01 L)^2`
    and :math:`c_2 = (0.03 L)^2` for values of the size L. Each channel is on its own.

    Deviation: on maps smaller than the window it is the largest odd one that fits.

    Deviation: kornia, whose formula this is, adds 1e-12 to the denominator. Without it
    equal maps give exactly 0.

    Unverified: the paper is said to scale the features to [0, 1] level by level, which
    is not done here; no code of the authors is known.

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.
        window: Side of the window, odd.
        max_val: The size L of the values, above 0. Multiplying both maps and L by one
            number changes nothing.

    Returns:
        A scalar from 0 to 1, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D or the shapes differ.

    Example:
        >>> maps = torch.eye(6).reshape(1, 1, 6, 6)
        >>> structural_dissimilarity(maps, maps)
        tensor(0.)
    """
    check_maps(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        return _MeanDissimilarity.apply(student, teacher.detach(), window, max_val)


class _MeanDissimilarity(torch.autograd.Function):
    """The loss of some channels after the other, with the gradient made on the way.

    All at once would hold a dozen maps until the backward pass; this holds one.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, window: int, max_val: float
    ) -> Tensor:
        dtype = torch.promote_types(student.dtype, teacher.dtype)
        dtype = torch.promote_types(dtype, torch.float32)
        height, width = student.shape[2:]
        side = min(window, (min(height, width) - 1) // 2 * 2 + 1)
        planes = [maps.reshape(-1, height, width) for maps in (student, teacher)]
        # Not in half precision, which has no numbers as small as before loss scaling.
        step = torch.empty_like(planes[0], dtype=dtype)
        blurs = [_blur(length, side, step) for length in (height, width)]
        total = step.new_zeros(())
        count = max(CHUNK // (height * width), 1)
        chunks = [maps.split(count) for maps in (*planes, step)]
        for student_part, teacher_part, piece in zip(*chunks, strict=True):
            with torch.enable_grad():
                leaf = student_part.detach().to(dtype).requires_grad_()
                other = teacher_part.to(dtype)
                loss = _dissimilarity(leaf, other, blurs, max_val).sum()
                loss = loss / student.numel()
            piece.copy_(torch.autograd.grad(loss, leaf)[0])
            total += loss.detach()
        ctx.save_for_backward(step.reshape(student.shape))
        ctx.dtype = student.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (step,) = ctx.saved_tensors
        return (grad * step).to(ctx.dtype), None, None, None


def _dissimilarity(
    student: Tensor, teacher: Tensor, blurs: list[Tensor], max_val: float
) -> Tensor:
    """Return (1 - SSIM) / 2 at each position of planes (P, H, W).

    The two factors of the SSIM are 1 - level and 1 - pattern; written with what they
    lack of 1, close maps keep their digits and equal ones give exactly 0.
    """
    c1, c2 = (0.01 * max_val) ** 2, (0.03 * max_val) ** 2
    # A spread is the difference of two squares: far from 0 it would be all rounding.
    s_shift, t_shift = (
        x.detach().mean((1, 2), keepdim=True) for x in (student, teacher)
    )
    s, t = student - s_shift, teacher - t_shift
    s_mean, t_mean, apart, spread = (
        blurs[0].T @ (x @ blurs[1])
        for x in (s, t, (s - t).square(), s.square() + t.square())
    )
    apart = apart - (s_mean - t_mean).square()
    spread = spread - (s_mean.square() + t_mean.square())
    s_mean, t_mean = s_mean + s_shift, t_mean + t_shift
    level = (s_mean - t_mean).square() / (s_mean.square() + t_mean.square() + c1)
    pattern = apart / (spread + c2)
    return ((level + pattern - level * pattern) / 2).clamp(0, 1)


def _blur(length: int, side: int, like: Tensor) -> Tensor:
    """Return what a line of a map is multiplied with, (length, length).

    A matrix, because a convolution of single channels is a dozen times slower.
    """
    steps = torch.arange(side, dtype=like.dtype, device=like.device) - side // 2
    kernel = (-steps.square() / (2 * SIGMA**2)).softmax(0)
    line = torch.eye(length, dtype=like.dtype, device=like.device)
    mirrored = functional.pad(line, [side // 2] * 2, mode='reflect')
    return mirrored.unfold(1, side, 1) @ kernel


@MODELS.register_module()
class SSIMLoss(nn.Module):
    """SSIM on one level; see `structural_dissimilarity`, also for what is unverified.

    Args:
        window: Side of the window, odd.
        max_val: The size of the features' values.
        loss_weight: Factor on the loss. Unverified: 2 to 4 is where to start.

    Raises:
        ValueError: If `window` is not odd or `max_val` not above 0.

    Example:
        >>> SSIMLoss(loss_weight=4.0).window
        11
    """

    def __init__(
        self, window: int = 11, max_val: float = 1.0, loss_weight: float = 2.0
    ) -> None:
        super().__init__()
        check_counts('SSIMLoss', odd=True, window=window)
        check_above('SSIMLoss', 0, max_val=max_val)
        check_at_least('SSIMLoss', 0, loss_weight=loss_weight)
        self.window = window
        self.max_val = max_val
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted dissimilarity of two maps (N, C, H, W) as a scalar."""
        return self.loss_weight * structural_dissimilarity(
            student, teacher, self.window, self.max_val
        )
