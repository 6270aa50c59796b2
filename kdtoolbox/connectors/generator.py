"""Mask positions of a map and regenerate the map (MGD, arXiv:2205.01529)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from kdtoolbox.losses.arguments import check_counts, check_share
from kdtoolbox.registry import MODELS


@MODELS.register_module()
class MGDConnector(nn.Module):
    r"""Mask random positions of each level and regenerate the level.

    .. math:: G(M X), \quad M = [u \le 1 - ratio], \quad
        G = conv_{3 \times 3} \circ ReLU \circ conv_{3 \times 3}

    with u uniform in [0, 1) and one generator G per level. u is drawn anew in every
    call for each position of each image; all channels share it.

    The number of channels does not change. If the student and the teacher differ in
    channels, put a `ConvConnector` before.

    Args:
        channels: Channels of the wire.
        num_levels: Number of levels of the wire.
        mask_ratio: Share of the positions that are masked, at least 0 and below 1. The
            paper uses 0.65 for one-stage detectors, 0.45 for two-stage detectors and
            0.75 for segmentation.

    Raises:
        ValueError: If `mask_ratio` is out of range.

    Example:
        >>> connector = MGDConnector(channels=8, num_levels=1, mask_ratio=0.65)
        >>> [level] = connector([torch.zeros(2, 8, 4, 5)])
        >>> tuple(level.shape)
        (2, 8, 4, 5)
    """

    def __init__(self, channels: int, num_levels: int, mask_ratio: float) -> None:
        super().__init__()
        check_counts('MGDConnector', channels=channels, num_levels=num_levels)
        check_share('MGDConnector', one=False, mask_ratio=mask_ratio)
        self.channels = channels
        self.mask_ratio = mask_ratio
        self.generators = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=1),
            )
            for _ in range(num_levels)
        )

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Return the regenerated levels (N, channels, H, W).

        Raises:
            ValueError: If the levels or channels of the wire do not match the config.
        """
        found = [level.shape[1] for level in levels]
        expected = [self.channels] * len(self.generators)
        if found != expected:
            raise ValueError(
                f'expected levels of {expected} channels, the wire has {found}; set '
                f'num_levels={len(found)} and channels to those of the teacher, and '
                'put a ConvConnector before if the student has other channels'
            )
        return [
            _Generate.apply(level, self._visible(level), *generator.parameters())
            for generator, level in zip(self.generators, levels, strict=True)
        ]

    def _visible(self, level: Tensor) -> Tensor:
        count, _, *size = level.shape
        noise = torch.rand(count, 1, *size, device=level.device)
        return (noise <= 1 - self.mask_ratio).to(level.dtype)


class _Generate(torch.autograd.Function):
    """A generator applied to the visible positions of a map.

    The backward passes of the ReLU and of the mask work in place on the gradients of
    the convolutions. Plain autograd allocates a map for each.
    """

    @staticmethod
    def forward(
        ctx: Any,
        level: Tensor,
        visible: Tensor,
        first: Tensor,
        first_bias: Tensor,
        last: Tensor,
        last_bias: Tensor,
    ) -> Tensor:
        masked = level * visible
        hidden = functional.conv2d(masked, first, first_bias, padding=1).relu_()
        # Under autocast the convolutions run in lower precision, and their backward
        # pass needs its tensors in the same precision.
        kept = (tensor.to(hidden.dtype) for tensor in (masked, first, last))
        ctx.save_for_backward(hidden, visible, *kept)
        return functional.conv2d(hidden, last, last_bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, visible, masked, first, last = ctx.saved_tensors
        step, *last_grads = _convolution_backward(grad, hidden, last)
        torch.ops.aten.threshold_backward.grad_input(step, hidden, 0, grad_input=step)
        step, *first_grads = _convolution_backward(step, masked, first)
        return step.mul_(visible), None, *first_grads, *last_grads


def _convolution_backward(
    grad: Tensor, maps: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of a 3 x 3 convolution for its input, weight and bias."""
    pair = [1, 1]
    return torch.ops.aten.convolution_backward(
        grad,
        maps,
        weight,
        [len(weight)],
        pair,
        pair,
        pair,
        False,
        [0, 0],
        1,
        [True] * 3,
    )
