"""Cross-layer distillation with semantic calibration (SemCKD, arXiv:2012.03236)."""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least, check_counts
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import at_least_float32, check_maps
from kdtoolbox.registry import MODELS


def image_errors(student: Tensor, teacher: Tensor) -> Tensor:
    """Average the squared errors of each image.

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
    student, teacher = at_least_float32(student, teacher)
    return (student - teacher).square().mean((1, 2, 3))


def calibrated_error(errors: Tensor, attention: Tensor) -> Tensor:
    r"""Weigh what each student layer owes to each teacher layer.

    .. math:: \frac{1}{N I} \sum_{n,i,j} a_{n,i,j} \, e_{n,i,j}

    Args:
        errors: Of each image and pair of layers (N, I, J).
        attention: Of the same shape, with a sum of 1 over the J teacher layers.

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
    r"""Let each student layer learn from which teacher layers it learns.

    .. math:: a_{n,i,j} = softmax_j(\langle q_i(mean_{h,w} S_i), k_j(mean_{h,w} T_j)
        \rangle), \quad e_{n,i,j} = mean_{c,h,w}((P_{ij} S_i - T_j)^2)

    summed by `calibrated_error`. q and k are two linear layers with a ReLU between
    them, normalised to length 1, and P a 1x1 convolution for each pair of layers. Both
    maps of a pair are averaged to the smaller size, and that divided by `pool`: the
    cost is I * J projections at 1 / pool^2 of the positions.

    Deviation: the authors' queries and keys read the row of an image in the similarity
    matrix of its batch, which ties their width to the batch size and says nothing with
    two images; here they read the mean of each channel. The authors' P has three
    convolutions and a batch norm.

    Args:
        student_channels: Channels of the student's layers, in order.
        teacher_channels: Channels of the teacher's, as many layers.
        pool: How many cells of the smaller map are averaged along each side.
        width: Width of queries and keys.
        loss_weight: Factor on the loss. The authors use 400 and 50 for classification.

    Raises:
        ValueError: If a number is not in the range of its argument.

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
                pool=4,
            ),
        ),
    )

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        pool: int = 1,
        width: int = 128,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_counts(
            'SemCKDLoss',
            student_channels=student_channels,
            teacher_channels=teacher_channels,
            pool=pool,
            width=width,
        )
        check_at_least('SemCKDLoss', 0, loss_weight=loss_weight)
        self.channels = dict(
            student=list(student_channels), teacher=list(teacher_channels)
        )
        self.pool = pool
        self.loss_weight = loss_weight
        self.queries, self.keys = (
            nn.ModuleList(_embedding(channels, width) for channels in side)
            for side in self.channels.values()
        )
        self.projections = nn.ModuleList(
            nn.Conv2d(mine, theirs, 1)
            for mine, theirs in product(student_channels, teacher_channels)
        )

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """Return the weighted loss of lists of maps (N, C, H, W) as a scalar.

        Raises:
            ValueError: If the layers or channels are others than configured.
        """
        self._check('student', student)
        self._check('teacher', teacher)
        # Each keeps its own channels; only the precision is shared.
        pairs = [at_least_float32(s, t) for s, t in zip(student, teacher, strict=True)]
        student, teacher = map(list, zip(*pairs, strict=True))
        with torch.autocast(student[0].device.type, enabled=False):
            errors = [
                self._error(project, *pair)
                for project, pair in zip(
                    self.projections, product(student, teacher), strict=True
                )
            ]
            attention = self._attend(student, teacher)
            table = torch.stack(errors, 1).reshape(attention.shape)
            return self.loss_weight * calibrated_error(table, attention)

    def _error(self, project: nn.Module, mine: Tensor, theirs: Tensor) -> Tensor:
        height, width = map(min, mine.shape[2:], theirs.shape[2:])
        size = -(-height // self.pool), -(-width // self.pool)
        # Before the projection, with which averages commute.
        mine, theirs = (functional.adaptive_avg_pool2d(x, size) for x in (mine, theirs))
        return image_errors(project(mine), theirs)

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
