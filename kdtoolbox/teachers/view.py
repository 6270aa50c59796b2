"""Show a teacher the images of a batch at another scale."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import interpolate


class View:
    """Scale the images of a batch, and the sizes that its samples contain.

    The maps of the teacher have other sizes then: bring them back to those of the
    student with a ``ResizeConnector``.

    Args:
        scale: Factor for height and width.
        divisor: The scaled sizes are rounded to multiples of this number of pixels.
        where: Config path, for errors.

    Raises:
        ValueError: If the scale is not a positive number.

    Example:
        >>> import torch
        >>> images, _ = View(1.5, divisor=32)(torch.zeros(1, 3, 64, 96), [])
        >>> tuple(images.shape)
        (1, 3, 96, 160)
    """

    def __init__(
        self, scale: float, divisor: int = 1, where: str = 'model.teacher.view'
    ) -> None:
        is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
        if not is_number or not 0 < scale < math.inf:
            raise ValueError(
                f'{where}.scale: expected a factor above 0, got {scale!r}; write '
                'view=dict(scale=1.5)'
            )
        self.scale = scale
        self.divisor = max(divisor, 1)

    def __call__(self, inputs: Tensor, data_samples: Sequence) -> tuple[Tensor, list]:
        """Return the scaled images (N, C, h, w) and samples without annotations.

        Args:
            inputs: Images (N, C, H, W).
            data_samples: The batch's samples, which are not changed.
        """
        size = tuple(self._scaled(side) for side in inputs.shape[-2:])
        ratio = tuple(
            new / old for new, old in zip(size, inputs.shape[-2:], strict=True)
        )
        images = interpolate(
            inputs, size, mode='bilinear', align_corners=False, antialias=True
        )
        return images, [_scaled_sample(sample, ratio) for sample in data_samples]

    def _scaled(self, side: int) -> int:
        # Halves round up: with round() the sizes would jump between even multiples.
        return max(int(side * self.scale / self.divisor + 0.5), 1) * self.divisor


_SIZES = ('img_shape', 'pad_shape', 'batch_input_shape')


def _scaled_sample(sample: Any, ratio: Sequence[float]) -> Any:
    # A pipeline without such a step leaves None.
    meta = dict(sample.metainfo)
    for key in _SIZES:
        if meta.get(key) is not None:
            sides = zip(meta[key][:2], ratio, strict=True)
            meta[key] = tuple(round(side * factor) for side, factor in sides)
    if meta.get('scale_factor') is not None:
        # It is (width, height).
        pairs = zip(meta['scale_factor'], reversed(ratio), strict=True)
        meta['scale_factor'] = tuple(old * factor for old, factor in pairs)
    return type(sample)(metainfo=meta)
