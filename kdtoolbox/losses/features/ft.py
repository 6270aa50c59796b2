"""Factor transfer (FT, arXiv:1802.04977): its loss and the paraphraser.

The student's translator is `kdtoolbox.connectors.TranslatorConnector`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least, check_counts
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import at_least_float32, check_maps
from kdtoolbox.registry import MODELS

SLOPE = 0.1
"""Of the leaky ReLU below zero."""


def factor_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compare factors as directions, whatever their size.

    .. math:: mean_{n,c,h,w} \left|
        \frac{S_n}{\lVert S_n \rVert_2} - \frac{T_n}{\lVert T_n \rVert_2} \right|

    with the norms over all values of an image.

    Deviation: the paper takes the norm of the difference for each image; here, as in
    the published codes, it is the mean over all values, which shrinks as they grow in
    number.

    Args:
        student: Factors (N, K, H, W).
        teacher: The same shape; receives no gradient.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D or the shapes differ.

    Example:
        >>> student = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)
        >>> factor_distance(student, student.flip(1))
        tensor(0.2000)
    """
    check_maps(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = (
            functional.normalize(maps.flatten(1))
            for maps in at_least_float32(student, teacher)
        )
        return functional.l1_loss(student, teacher)


class _BatchNorm(nn.BatchNorm2d):
    """A batch norm that falls back on its running statistics for a single value."""

    def forward(self, maps: Tensor) -> Tensor:
        if maps.numel() > maps.shape[1]:
            return super().forward(maps)
        mean, variance = self.running_mean, self.running_var
        return functional.batch_norm(
            maps, mean, variance, self.weight, self.bias, eps=self.eps
        )


def factor_layers(widths: list[int]) -> nn.Sequential:
    """Return 3x3 convolutions between these widths, with norm and leaky ReLU each.

    Example:
        >>> len(factor_layers([8, 8, 4, 4]))
        9
    """
    layers: list[nn.Module] = []
    for width, out in zip(widths[:-1], widths[1:], strict=True):
        layers += [
            nn.Conv2d(width, out, 3, padding=1),
            _BatchNorm(out),
            nn.LeakyReLU(SLOPE),
        ]
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """An autoencoder whose code, the factor, stands for the teacher's features.

    Args:
        channels: Channels of the teacher.
        factor_channels: Channels of the factors.

    Example:
        >>> factor, again = Paraphraser(8, 4)(torch.zeros(2, 8, 5, 6))
        >>> tuple(factor.shape), tuple(again.shape)
        ((2, 4, 5, 6), (2, 8, 5, 6))
    """

    def __init__(self, channels: int, factor_channels: int) -> None:
        super().__init__()
        widths = [channels, channels, factor_channels, factor_channels]
        self.encoder = factor_layers(widths)
        self.decoder = factor_layers(widths[::-1])

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors (N, K, H, W) and the maps (N, C, H, W) they stand for."""
        factor = self.encoder(maps)
        return factor, self.decoder(factor)


@MODELS.register_module()
class FTLoss(nn.Module):
    """FT on one level: `factor_distance`, and what trains the `Paraphraser`.

    The term ``factor`` trains the student and its translator, ``reconstruction``, the
    mean squared error of the paraphrased teacher, the paraphraser alone.

    Deviation: the paper trains the paraphraser before the student; here it learns along
    with it, on the teacher's features of the same batches, so that its factors move in
    the beginning.

    Args:
        channels: Channels of the teacher.
        factor_channels: Channels of the factors; the paper uses half of ``channels``.
        reconstruction_weight: Factor on the reconstruction, beside ``loss_weight``.
        loss_weight: Factor on both. Published codes use 200.

    Raises:
        ValueError: If a number is not in the range of its argument.

    Example:
        >>> FTLoss(channels=8, factor_channels=4).loss_weight
        200.0
    """

    examples = (
        Example(
            'map',
            'map of other channels',
            arguments=lambda s: dict(
                channels=s.teacher_channels, factor_channels=s.channels
            ),
        ),
    )

    def __init__(
        self,
        channels: int,
        factor_channels: int,
        reconstruction_weight: float = 0.005,
        loss_weight: float = 200.0,
    ) -> None:
        super().__init__()
        check_counts('FTLoss', channels=channels, factor_channels=factor_channels)
        check_at_least(
            'FTLoss',
            0,
            reconstruction_weight=reconstruction_weight,
            loss_weight=loss_weight,
        )
        self.paraphraser = Paraphraser(channels, factor_channels)
        self.channels = channels
        self.factor_channels = factor_channels
        self.reconstruction_weight = reconstruction_weight
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Compare a student's factors (N, K, H, W) with a teacher's map (N, C, H, W).

        Raises:
            ValueError: If either has other channels than the config says.
        """
        found = student.shape[1], teacher.shape[1]
        if found != (self.factor_channels, self.channels):
            raise ValueError(
                f'expected factors of {self.factor_channels} channels and a teacher of '
                f'{self.channels}, got {found[0]} and {found[1]}; set factor_channels='
                f'{found[0]}, channels={found[1]}, or put a TranslatorConnector with '
                f'out_channels={self.factor_channels} before this loss'
            )
        with torch.autocast(student.device.type, enabled=False):
            _, teacher = at_least_float32(student, teacher)
            factor, again = self.paraphraser(teacher)
            reconstruction = functional.mse_loss(again, teacher)
        return dict(
            factor=self.loss_weight * factor_distance(student, factor),
            reconstruction=(
                self.loss_weight * self.reconstruction_weight * reconstruction
            ),
        )
