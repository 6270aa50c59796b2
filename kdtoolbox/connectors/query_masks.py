"""Compute the masks of Mask2Former's queries (arXiv:2112.01527)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_counts
from kdtoolbox.registry import MODELS


@MODELS.register_module()
class QueryMaskConnector(nn.Module):
    """Multiply the mask embeddings of queries with the map of mask features.

    Mask2Former computes its mask logits inside a method of its head, so they cannot be
    recorded, but both factors can. The embeddings of each decoder layer give one level
    of the new wire. There are no parameters.

    The features are average-pooled before the product. The product is linear, so this
    equals pooling the mask logits, but needs less time and memory.

    Args:
        pool_size: Height and width of the cells that are averaged. The features of
            Mask2Former have stride 4; 2 gives masks of stride 8.

    Raises:
        ValueError: If `pool_size` is not at least 1.

    Example:
        >>> layers, features = [torch.ones(2, 100, 16)] * 3, torch.ones(2, 16, 8, 10)
        >>> masks = QueryMaskConnector(pool_size=2)(layers, [features])
        >>> [tuple(level.shape) for level in masks]
        [(2, 100, 4, 5), (2, 100, 4, 5), (2, 100, 4, 5)]
    """

    def __init__(self, pool_size: int = 1) -> None:
        super().__init__()
        check_counts('QueryMaskConnector', pool_size=pool_size)
        self.pool_size = pool_size

    def forward(self, embeddings: list[Tensor], features: list[Tensor]) -> list[Tensor]:
        """Return mask logits (N, Q, H / pool_size, W / pool_size), one per layer.

        Args:
            embeddings: Mask embeddings (N, Q, C) of each decoder layer.
            features: A list with one map of mask features (N, C, H, W).

        Raises:
            ValueError: If a shape is wrong, or N or C differ.
        """
        _check_factors(embeddings, features)
        # With ceil_mode the cells at the border average only positions inside the map.
        pooled = functional.avg_pool2d(features[0], self.pool_size, ceil_mode=True)
        return [torch.einsum('nqc,nchw->nqhw', x, pooled) for x in embeddings]


def _check_factors(embeddings: list[Tensor], features: list[Tensor]) -> None:
    shapes = [tuple(level.shape) for level in features]
    if len(features) != 1 or features[0].dim() != 4:
        raise ValueError(
            f'expected one map of mask features (N, C, H, W), got {shapes}; record '
            "'decode_head.pixel_decoder.mask_feature' and name it as `features`"
        )
    for level in embeddings:
        if level.dim() != 3 or level.shape[::2] != features[0].shape[:2]:
            raise ValueError(
                f'expected mask embeddings (N, Q, C) for features {shapes[0]}, got '
                f"{tuple(level.shape)}; record 'decode_head.mask_embed' of the same "
                'model as `features` and name it as `input`'
            )
