"""What a library tells about a backbone that it has built."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

Read = Callable[[nn.Module, Tensor, list[int]], list[Tensor]]
"""Runs a backbone on images (N, 3, H, W) and returns its outputs of some layers."""

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
"""Mean and std of ImageNet in pixel units, RGB: those of most backbones."""


@dataclass
class Backbone:
    """A backbone of any library, and how to use it.

    Attributes:
        module: The backbone.
        read: How to get its outputs.
        depth: Number of its layers, or None if only its output shows it.
        patch_size: The sides of its images have to be multiples of this number of
            pixels, which is also the stride of its tokens; None for any size.
        image_size: Height and width of its images, if it takes no others.
        mean: Mean of its images in pixel units, or None if it is unknown.
        std: Their standard deviation, as ``mean``.
        licence: The licence of its published weights.
    """

    module: nn.Module
    read: Read
    depth: int | None = None
    patch_size: int | None = None
    image_size: tuple[int, int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    licence: str = 'unknown: look at its model card'
