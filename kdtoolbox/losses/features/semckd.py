"""Cross-layer distillation with semantic calibration (SemCKD, arXiv:2012.03236)."""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least, check_counts
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import check_maps
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@full_precision
def image_errors(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean squared error of each image.

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.

    Returns:
        The errors (N,), float32 or wider.

    Raises:
        ValueError: If a map is not 4-D or the shapes differ.

    Example:
        >>> image_errors(torch.ones(2, 8, 4, 4), torch.zeros(2, 8, 4, 4))
        tensor([1., 1.])
    """
    check_maps(student, teacher)
    return (student - teacher).square().mean((1, 2, 3))


def calibrated_error(errors: Tensor, attention: Tensor) -> Tensor:
    r"""Average the errors of all pairs of layers, weighted by attention.

    .. math:: \frac{1}{N I} \sum_{n,i,j} a_{n,i,j} \, e_{n,i,j}

    Args:
        errors: Errors (N, I, J) of each image, student layer and teacher layer.
        attention: Weights (N, I, J), which sum to 1 over the J teacher layers.

    Returns:
        A scalar.

    Example:
        >>> errors = torch.tensor([[[1.0, 5.0], [3.0, 1.0]]])
        >>> calibrated_error(errors, torch.full((1, 2, 2), 0.5))
        tensor(2.5000)
    """
    return (attention * errors).sum() / max(attention.shape[:2].numel(), 1)


@MODELS.register_module()
class SemCKDLoss(nn.Module):
    r"""Distil every teacher layer into every student layer, weighted by attention.

    .. math:: a_{n,i,j} = softmax_j(\langle q_i(mean_{h,w} S_i), k_j(mean_{h,w} T_j)
        \rangle), \quad e_{n,i,j} = mean_{c,h,w}((P_{ij} S_i - T_j)^2)

    These are combined by `calibrated_error`. q and k are two linear layers with a ReLU
    between them, their output normalised to length 1, and P is a 1x1 convolution for
    each pair of layers. Both maps of a pair are average-pooled to the smaller of the
    two sizes, divided by `pool_size`. The cost is I * J projections, each at one of
    `pool_size` * `pool_size` positions.

    Deviation: the authors compute queries and keys from the image's row in the
    similarity matrix of the batch. This ties their width to the batch size and carries
    no information with two images. Here they are computed from the spatial means of the
    channels. The authors' P has three convolutions and a batch norm.

    Args:
        student_channels: Channels of the student's layers, in order.
        teacher_channels: Channels of the teacher's layers, in order.
        pool_size: Height and width of the cells that are averaged.
        width: Width of queries and keys.
        loss_weight: Factor on the loss. The authors use 400 and 50 for classification.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> loss = SemCKDLoss([4, 8], [8, 8])
        >>> shallow, deep = torch.ones(2, 4, 6, 6), torch.ones(2, 8, 3, 3)
        >>> loss([shallow, deep], [torch.ones(2, 8, 6, 6), deep]).shape
        torch.Size([])
    """

    per_level = False

    examples = (
        Example(
            'map',
            'map of other channels',
            arguments=lambda s: dict(
                student_channels=[s.channels] * s.num_levels,
                teacher_channels=[s.teacher_channels] * s.num_levels,
                pool_size=4,
            ),
        ),
    )

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        pool_size: int = 1,
        width: int = 128,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_counts(
            'SemCKDLoss',
            student_channels=student_channels,
            teacher_channels=teacher_channels,
            pool_size=pool_size,
            width=width,
        )
        check_at_least('SemCKDLoss', 0, loss_weight=loss_weight)
        self.channels = dict(
            student=list(student_channels), teacher=list(teacher_channels)
        )
        self.pool_size = pool_size
        self.loss_weight = loss_weight
        self.queries, self.keys = (
            nn.ModuleList(_embedding(channels, width) for channels in side)
            for side in self.channels.values()
        )
        self.projections = nn.ModuleList(
            nn.Conv2d(width_in, width_out, 1)
            for width_in, width_out in product(student_channels, teacher_channels)
        )

    @full_precision
    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """Return the weighted loss of two lists of maps (N, C, H, W) as a scalar.

        Raises:
            ValueError: If the layers or channels do not match the config.
        """
        self._check('student', student)
        self._check('teacher', teacher)
        errors = [
            self._error(project, *pair)
            for project, pair in zip(
                self.projections, product(student, teacher), strict=True
            )
        ]
        attention = self._attend(student, teacher)
        table = torch.stack(errors, 1).reshape(attention.shape)
        return self.loss_weight * calibrated_error(table, attention)

    def _error(self, project: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
        height, width = map(min, student.shape[2:], teacher.shape[2:])
        size = -(-height // self.pool_size), -(-width // self.pool_size)
        # Averaging commutes with the projection; pooling first is cheaper.
        student, teacher = (
            functional.adaptive_avg_pool2d(maps, size) for maps in (student, teacher)
        )
        return image_errors(project(student), teacher)

    def _attend(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        queries, keys = (
            torch.stack(
                [
                    functional.normalize(embed(maps.mean((2, 3))), dim=1)
                    for embed, maps in zip(embeddings, side, strict=True)
                ],
                dim=1,
            )
            for embeddings, side in ((self.queries, student), (self.keys, teacher))
        )
        return (queries @ keys.mT).softmax(2)

    def _check(self, side: str, levels: list[Tensor]) -> None:
        found = [level.shape[1] for level in levels]
        if found != self.channels[side]:
            raise ValueError(
                f'SemCKDLoss has {side}_channels={self.channels[side]}, the wire has '
                f'levels of {found}; set {side}_channels={found}'
            )


def _embedding(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, width))
