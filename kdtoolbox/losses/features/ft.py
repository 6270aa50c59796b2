"""Factor transfer (FT, arXiv:1802.04977): its loss.

The student's translator is `kdtoolbox.connectors.TranslatorConnector`.
"""

from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least, check_counts
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.features.paraphraser import Paraphraser
from kdtoolbox.losses.inputs import check_maps
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def factor_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compute the mean absolute difference of factors normalised per image.

    .. math:: mean_{n,c,h,w} \left|
        \frac{S_n}{\lVert S_n \rVert_2} - \frac{T_n}{\lVert T_n \rVert_2} \right|

    The norms are over all values of an image.

    Deviation: the paper takes the norm of the difference of each image. Here, as in the
    published codes, the absolute difference is averaged over all values, so the loss
    shrinks as their number grows.

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
    student, teacher = (
        functional.normalize(maps.flatten(1)) for maps in (student, teacher)
    )
    return functional.l1_loss(student, teacher)


@MODELS.register_module()
class FTLoss(nn.Module):
    """FT on one level: `factor_distance` and the loss of the `Paraphraser`.

    The term ``factor`` trains the student and its translator. The term
    ``reconstruction``, the mean squared error of the decoded teacher features, trains
    only the paraphraser.

    Deviation: the paper trains the paraphraser before the student. Here both are
    trained together, so the factors change early in training.

    Args:
        teacher_channels: Channels of the teacher.
        factor_channels: Channels of the factors; the paper uses half of
            ``teacher_channels``.
        reconstruction_weight: Factor on the reconstruction term.
        loss_weight: Factor on both terms. Published codes use 200.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> FTLoss(teacher_channels=8, factor_channels=4).loss_weight
        200.0
    """

    examples = (
        Example(
            'map',
            'map of other channels',
            arguments=lambda s: dict(
                teacher_channels=s.teacher_channels, factor_channels=s.channels
            ),
        ),
    )

    def __init__(
        self,
        teacher_channels: int,
        factor_channels: int,
        reconstruction_weight: float = 0.005,
        loss_weight: float = 200.0,
    ) -> None:
        super().__init__()
        check_counts(
            'FTLoss',
            teacher_channels=teacher_channels,
            factor_channels=factor_channels,
        )
        check_at_least(
            'FTLoss',
            0,
            reconstruction_weight=reconstruction_weight,
            loss_weight=loss_weight,
        )
        self.paraphraser = Paraphraser(teacher_channels, factor_channels)
        self.teacher_channels = teacher_channels
        self.factor_channels = factor_channels
        self.reconstruction_weight = reconstruction_weight
        self.loss_weight = loss_weight

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms of factors (N, K, H, W) and maps (N, C, H, W).

        Raises:
            ValueError: If the channels of either do not match the config.
        """
        found = student.shape[1], teacher.shape[1]
        if found != (self.factor_channels, self.teacher_channels):
            raise ValueError(
                f'expected factors of {self.factor_channels} channels and a teacher of '
                f'{self.teacher_channels}, got {found[0]} and {found[1]}; set '
                f'factor_channels={found[0]}, teacher_channels={found[1]}, or put a '
                f'TranslatorConnector with out_channels={self.factor_channels} before '
                'this loss'
            )
        factor, decoded = self.paraphraser(teacher)
        reconstruction = functional.mse_loss(decoded, teacher)
        return dict(
            factor=self.loss_weight * factor_distance(student, factor),
            reconstruction=(
                self.loss_weight * self.reconstruction_weight * reconstruction
            ),
        )
