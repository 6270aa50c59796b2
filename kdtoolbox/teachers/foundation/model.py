"""The module that turns a backbone of any library into one that returns maps."""

from collections.abc import Sequence

import torch
from mmengine.model import ImgDataPreprocessor
from torch import Tensor, nn

from kdtoolbox.teachers.foundation.backbone import Backbone
from kdtoolbox.teachers.foundation.grids import to_map
from kdtoolbox.teachers.foundation.image_sizes import fit_images
from kdtoolbox.teachers.foundation.layers import resolve_layers


class FoundationModel(nn.Module):
    """A backbone whose layers are maps (N, C, h, w), whatever library it is of.

    Record ``maps`` for all of them. Modules of the backbone itself, such as
    ``backbone.blocks.3``, give what the library computes, tokens for example.

    Args:
        backbone: The backbone.
        data_preprocessor: Normalisation of its images.
        layers: Numbers of its layers.
        where: Config path of the teacher, for errors.

    Attributes:
        patch_size: Images are resized to multiples of this number of pixels, which is
            also the stride of maps of tokens; None for nets that take any size.

    Raises:
        ValueError: If there is no such layer.

    Example:
        >>> from kdtoolbox.teachers.foundation.own_models import read_outputs
        >>> patches = Backbone(nn.Conv2d(3, 8, 14, 14), read_outputs, patch_size=14)
        >>> model = FoundationModel(patches, ImgDataPreprocessor())
        >>> import torch
        >>> [tuple(level.shape) for level in model(torch.zeros(2, 3, 40, 72))]
        [(2, 8, 3, 5)]
    """

    def __init__(
        self,
        backbone: Backbone,
        data_preprocessor: ImgDataPreprocessor,
        layers: Sequence[int] = (-1,),
        where: str = 'model.teacher',
    ) -> None:
        super().__init__()
        self.backbone = backbone.module
        self.maps = nn.Identity()
        self.data_preprocessor = data_preprocessor
        self.patch_size = backbone.patch_size
        self.image_size = backbone.image_size
        self.layers = list(layers)
        if backbone.depth is not None:
            self.layers = resolve_layers(layers, backbone.depth, f'{where}.layers')
        self.read = backbone.read
        self.where = where

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Return one map (N, C, h, w) for each layer.

        Args:
            inputs: Images (N, 3, H, W), normalised by ``data_preprocessor``.
        """
        images = fit_images(inputs, self.patch_size, self.image_size)
        height, width = images.shape[2:]
        outputs = self._read(images)
        return self.maps(
            [
                to_map(output, (height, width), self.patch_size, self.where)
                for output in outputs
            ]
        )

    def _read(self, images: Tensor) -> list[Tensor]:
        try:
            return self.read(self.backbone, images, self.layers)
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError, TypeError) as error:
            height, width = images.shape[2:]
            raise ValueError(
                f'{self.where}: {type(self.backbone).__name__} fails on images of '
                f'{height} x {width} pixels: {error}; choose a model that takes images '
                'of any size and nothing else, such as DINOv2, or `arguments` that fit '
                'each other'
            ) from error
