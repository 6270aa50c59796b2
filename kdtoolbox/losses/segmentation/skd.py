"""Structured knowledge distillation (SKD, arXiv:1903.04197): its pair-wise term.

The holistic term is in `kdtoolbox.losses.segmentation.skd_holistic`, the pixel-wise
term in `kdtoolbox.losses.logits.kd`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least, check_counts, check_share
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import check_positions
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


def patch_similarity(
    maps: Tensor, patch: tuple[int, int], legacy_detached_norm: bool = False
) -> Tensor:
    """Compute the cosine similarity of each pair of patches of an image.

    A patch is represented by the maximum of each channel. Patches at the border may be
    smaller.

    Args:
        maps: Features (N, C, H, W), float32 or wider.
        patch: Height and width of a patch.
        legacy_detached_norm: Whether to detach the norms; see `skd_pairwise`.

    Returns:
        The cosines (N, P, P) of P patches.

    Example:
        >>> maps = torch.tensor([[3.0, 0.0, 1.0], [0.0, 4.0, 0.0]])[None, :, None]
        >>> patch_similarity(maps, (1, 2))
        tensor([[[1.0000, 0.6000],
                 [0.6000, 1.0000]]])
    """
    pooled = functional.max_pool2d(maps, patch, stride=patch, ceil_mode=True).flatten(2)
    if legacy_detached_norm:
        norms = torch.linalg.vector_norm(pooled.detach(), dim=1, keepdim=True)
        nodes = pooled / (norms + 1e-8)
    else:
        nodes = functional.normalize(pooled)
    return nodes.mT @ nodes


@full_precision
def skd_pairwise(
    student: Tensor,
    teacher: Tensor,
    patch: tuple[int, int],
    legacy_detached_norm: bool = False,
) -> Tensor:
    r"""Compute the mean squared difference between the patch similarities.

    .. math:: mean_{n,i,j}((a_{ij}(S) - a_{ij}(T))^2)

    with `patch_similarity` a, over all pairs of the P patches of an image. Each map
    takes P^2 * C multiplications and P^2 values per image.

    Deviation: the gradient flows through the norms of the features. The authors' code
    detaches the norms and adds 1e-8 to them (`legacy_detached_norm`).

    Args:
        student: Features (N, C, H, W).
        teacher: Features (N, C', H, W); receives no gradient.
        patch: Height and width of a patch.
        legacy_detached_norm: Whether to detach the norms, as the authors' code does.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D, or N, H or W differ.

    Example:
        >>> student = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[None, :, None]
        >>> skd_pairwise(student, torch.ones(1, 3, 1, 2), (1, 1))
        tensor(0.5000)
    """
    check_positions(student, teacher)
    student_similarity, teacher_similarity = (
        patch_similarity(maps, patch, legacy_detached_norm)
        for maps in (student, teacher)
    )
    return functional.mse_loss(student_similarity, teacher_similarity)


@MODELS.register_module()
class SKDPairwiseLoss(nn.Module):
    """The pair-wise term of SKD on one map; see `skd_pairwise`.

    Args:
        scale: Sides of a patch as a share of the sides of the map. The authors use 0.5,
            which gives 2 x 2 patches for even sides and 3 x 3 for odd sides.
        cells: Side of a patch in cells; replaces `scale`. CIRKD's code uses 2: a map of
            64 x 128 cells has 2,048 patches and 4.2 million pairs per image.
        legacy_detached_norm: Whether to detach the norms; see `skd_pairwise`.
        loss_weight: Factor on the loss. The authors use 0.5, CIRKD's code 10.

    Raises:
        ValueError: If `scale` is not above 0 and at most 1, or `cells` is below 1.

    Example:
        >>> SKDPairwiseLoss(scale=0.25).patch_of(torch.zeros(2, 8, 64, 128))
        (16, 32)
    """

    examples = (Example('map', 'map of other channels'),)

    def __init__(
        self,
        scale: float = 0.5,
        cells: int | None = None,
        legacy_detached_norm: bool = False,
        loss_weight: float = 0.5,
    ) -> None:
        super().__init__()
        check_at_least('SKDPairwiseLoss', 0, loss_weight=loss_weight)
        check_share('SKDPairwiseLoss', zero=False, scale=scale)
        if cells is not None:
            check_counts('SKDPairwiseLoss', cells=cells)
        self.scale = scale
        self.cells = cells
        self.legacy_detached_norm = legacy_detached_norm
        self.loss_weight = loss_weight

    def patch_of(self, maps: Tensor) -> tuple[int, int]:
        """Return the height and width of the patches of maps (N, C, H, W)."""
        if self.cells is not None:
            return self.cells, self.cells
        height, width = (max(int(side * self.scale), 1) for side in maps.shape[2:])
        return height, width

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted loss of maps (N, C, H, W) and (N, C', H, W)."""
        check_positions(student, teacher)
        patch = self.patch_of(student)
        loss = skd_pairwise(student, teacher, patch, self.legacy_detached_norm)
        return self.loss_weight * loss
