"""Generation of hidden tokens of a vision transformer (ViTKD, arXiv:2209.02432).

The other half of the method, the mimicry of the first blocks, is `MGDLoss`: a squared
error summed over tokens and channels. A `kdtoolbox.connectors.TokenConnector` reshapes
tokens into maps, a `kdtoolbox.connectors.ConvConnector` aligns their channels.
"""

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least, check_counts, check_share
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import check_maps
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


def hide_positions(maps: Tensor, ratio: float) -> Tensor:
    """Draw the hidden positions of each image at random.

    Args:
        maps: Features (N, C, H, W).
        ratio: Share of the positions to hide; the number of visible positions is
            rounded down.

    Returns:
        A boolean mask (N, 1, H, W), True at the same number of hidden positions in each
        image.

    Example:
        >>> int(hide_positions(torch.zeros(1, 8, 3, 3), ratio=0.5).sum())
        5
    """
    count, _, *size = maps.shape
    noise = torch.rand(count, size[0] * size[1], device=maps.device)
    visible = int(noise.shape[1] * (1 - ratio))
    ranks = noise.argsort(1).argsort(1)
    return (ranks >= visible).unflatten(1, (1, *size))


@MODELS.register_module()
class ViTKDLoss(nn.Module):
    r"""Generate the hidden positions and compare them with the teacher.

    .. math:: \frac{1}{\lambda N} \sum_{hidden} (G(X) - T)^2

    X is the student's map with a learned token at the hidden positions, and G is two
    3x3 convolutions with a ReLU between them. A share :math:`\lambda` of the positions
    is hidden, drawn anew for each image and iteration. Unlike in MGD, the error covers
    only hidden positions. The cost is two convolutions at the teacher's width.

    Args:
        channels: Channels of both maps.
        mask_ratio: Share of the positions that are hidden, above 0 and below 1.
        loss_weight: Factor on the loss. The authors use 3e-6, and 3e-5 for the mimicry
            of the first two blocks.

    Raises:
        ValueError: If `mask_ratio` is out of range.

    Example:
        >>> loss = ViTKDLoss(channels=8)
        >>> loss(torch.ones(2, 8, 4, 4), torch.ones(2, 8, 4, 4)).shape
        torch.Size([])
    """

    examples = (Example(arguments=lambda s: dict(channels=s.channels)),)

    def __init__(
        self, channels: int, mask_ratio: float = 0.5, loss_weight: float = 3e-6
    ) -> None:
        super().__init__()
        check_counts('ViTKDLoss', channels=channels)
        check_share('ViTKDLoss', zero=False, one=False, mask_ratio=mask_ratio)
        check_at_least('ViTKDLoss', 0, loss_weight=loss_weight)
        self.channels = channels
        self.mask_ratio = mask_ratio
        self.loss_weight = loss_weight
        self.token = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.generator = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted error of two maps (N, C, H, W) as a scalar.

        Raises:
            ValueError: If the shapes differ or the channels do not match the config.
        """
        check_maps(student, teacher)
        if student.shape[1] != self.channels:
            raise ValueError(
                f'ViTKDLoss has channels={self.channels}, the maps have '
                f'{student.shape[1]}; set channels={student.shape[1]}'
            )
        hidden = hide_positions(student, self.mask_ratio)
        generated = self.generator(torch.where(hidden, self.token, student))
        error = (generated - teacher).square().sum(1, keepdim=True)
        error = error.where(hidden, 0).sum() / (self.mask_ratio * len(student))
        return self.loss_weight * error
