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
"""Standard deviation of the Gaussian window, in pixels."""

CHUNK = 2**19
"""Values processed at once; about fifteen tensors of this size are allocated."""


def structural_dissimilarity(
    student: Tensor, teacher: Tensor, window: int = 11, max_val: float = 1.0
) -> Tensor:
    r"""Compute the mean structural dissimilarity of two maps.

    .. math:: mean\left(\frac{1 - SSIM}{2}\right), \quad SSIM =
        \frac{(2 \mu_s \mu_t + c_1)(2 \sigma_{st} + c_2)}
        {(\mu_s^2 + \mu_t^2 + c_1)(\sigma_s^2 + \sigma_t^2 + c_2)}

    Means, variances and covariances are taken per channel in a Gaussian window of
    standard deviation 1.5 around each position, with mirrored borders.
    :math:`c_1 = (0.01 L)^2` and :math:`c_2 = (0.03 L)^2` for values in the range L.

    Deviation: on maps smaller than the window, the largest odd window that fits is
    used.

    Deviation: kornia, which has the same formula, adds 1e-12 to the denominator.
    Without it equal maps give exactly 0.

    Unverified: we know of no code by the authors. The paper is said to scale the
    features of each level to [0, 1]; this is not done here.

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.
        window: Side of the window, odd.
        max_val: Range L of the values, above 0. Scaling both maps and L by the same
            factor does not change the loss.

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
    # Without `full_precision`: the chunks are cast one by one, which needs less memory.
    with torch.autocast(student.device.type, enabled=False):
        return _MeanDissimilarity.apply(student, teacher.detach(), window, max_val)


class _MeanDissimilarity(torch.autograd.Function):
    """The loss, computed in chunks of channels together with its gradient.

    Plain autograd would store a dozen maps until the backward pass; this stores one.
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
        # In half precision the gradient would underflow before loss scaling.
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

    The two factors of the SSIM are 1 - level and 1 - pattern. Computing level and
    pattern avoids cancellation for close maps and gives exactly 0 for equal maps.
    """
    c1, c2 = (0.01 * max_val) ** 2, (0.03 * max_val) ** 2
    # A variance is a difference of squares, which cancels for values far from 0.
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
    """Return the matrix (length, length) that blurs a line of a map.

    A matrix product is a dozen times faster than a depthwise convolution.
    """
    steps = torch.arange(side, dtype=like.dtype, device=like.device) - side // 2
    kernel = (-steps.square() / (2 * SIGMA**2)).softmax(0)
    line = torch.eye(length, dtype=like.dtype, device=like.device)
    mirrored = functional.pad(line, [side // 2] * 2, mode='reflect')
    return mirrored.unfold(1, side, 1) @ kernel


@MODELS.register_module()
class SSIMLoss(nn.Module):
    """SSIM on one level; see `structural_dissimilarity`. Unverified.

    Args:
        window: Side of the window, odd.
        max_val: Range of the features' values, above 0.
        loss_weight: Factor on the loss. Unverified: start with 2 to 4.

    Raises:
        ValueError: If `window` is not odd, or `max_val` is not above 0.

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
