"""Read single images out of a training step of a distillation."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.model import ImgDataPreprocessor
from torch import Tensor, nn

from kdtoolbox.distillers.observing import Step
from kdtoolbox.teachers.normalization import Renormalization


class Scene(NamedTuple):
    """One image of a batch.

    Attributes:
        number: Its place in the batch.
        image: RGB image (H, W, 3) of bytes, as the student got it, without padding.
        sample: Its data sample, with ground truth in pixels of this image.
        padded: Height and width of the batch's images, which the maps cover.
    """

    number: int
    image: np.ndarray
    sample: Any
    padded: tuple[int, int]


def scenes_of(step: Step, preprocessor: nn.Module, most: int) -> list[Scene]:
    """Return the first images of a step.

    Args:
        step: A step of a distiller.
        preprocessor: The student's data preprocessor; its normalisation is undone.
        most: Number of images at most.
    """
    inputs = step.inputs.detach()[:most]
    padded = inputs.shape[-2], inputs.shape[-1]
    to_bytes = Renormalization(preprocessor, ImgDataPreprocessor(bgr_to_rgb=True))
    images = to_bytes(inputs.float(), []).round().clamp(0, 255).to(torch.uint8).cpu()
    pairs = zip(images, step.data_samples, strict=False)
    return [
        Scene(number, _picture(image, sample), sample, padded)
        for number, (image, sample) in enumerate(pairs)
    ]


def _picture(image: Tensor, sample: Any) -> np.ndarray:
    height, width = sample.img_shape[:2]
    if image.shape[0] != 3:
        # Bands other than red, green and blue: show their mean in grey.
        image = image.float().mean(0, keepdim=True).to(torch.uint8).expand(3, -1, -1)
    return image.permute(1, 2, 0)[:height, :width].contiguous().numpy()


def strides_of(cells: tuple[int, int], pixels: tuple[int, int]) -> tuple[float, float]:
    """Return the height and width in pixels of one cell of a map.

    The last cells of a map often reach beyond the image, so that the strides are powers
    of two; in other cases the map covers exactly the image.

    Args:
        cells: Height and width of the map.
        pixels: Height and width of the batch's images.

    Example:
        >>> strides_of((7, 9), (832, 1088)), strides_of((6, 6), (64, 64))
        ((128.0, 128.0), (10.666666666666666, 10.666666666666666))
    """
    exact = [side / count for count, side in zip(cells, pixels, strict=True)]
    powers = [2.0 ** round(math.log2(stride)) for stride in exact]
    reached = [
        math.ceil(side / stride) for stride, side in zip(powers, pixels, strict=True)
    ]
    height, width = powers if tuple(reached) == tuple(cells) else exact
    return height, width


def covered_by(cells: tuple[int, int], scene: Scene) -> tuple[int, int]:
    """Return the height and width in pixels that a map with these sides covers."""
    strides = strides_of(cells, scene.padded)
    height, width = (
        round(count * stride) for count, stride in zip(cells, strides, strict=True)
    )
    return height, width


def map_of(wire: Tensor, scene: Scene, batch: int) -> Tensor | None:
    """Return the map (C, h, w) of one image, or None if the wire has no such map.

    Tokens (N, L, C) are a map if L is the number of cells of a grid with the shape of
    the image; a class token before them is left out.

    Args:
        wire: One level of a wire.
        scene: The image.
        batch: Number of images of the batch. RoIs are no images, for example.

    Example:
        >>> scene = Scene(0, None, None, (32, 64))
        >>> tuple(map_of(torch.zeros(1, 1 + 8, 5), scene, batch=1).shape)
        (5, 2, 4)
    """
    if len(wire) != batch or wire.dim() not in (3, 4):
        return None
    found = wire[scene.number].detach().float().cpu()
    if wire.dim() == 4:
        return found
    height, width = scene.padded
    for extra in (0, 1):
        cells = len(found) - extra
        rows = round((cells * height / width) ** 0.5)
        if rows and cells % rows == 0 and abs(cells / rows**2 - width / height) < 0.02:
            return found[extra:].T.unflatten(1, (rows, cells // rows))
    return None
