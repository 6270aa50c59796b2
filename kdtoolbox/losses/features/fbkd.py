"""Attention-guided and non-local feature distillation (FBKD, ICLR 2021).

The paper has no arXiv id: https://openreview.net/forum?id=uKhGRvM8QNH
"""

from torch import Tensor, nn
from torch.linalg import vector_norm

from kdtoolbox.losses.arguments import check_at_least, check_counts
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.features.non_local import NonLocal
from kdtoolbox.losses.inputs import check_maps
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@MODELS.register_module()
class FBKDLoss(nn.Module):
    r"""Sum four L2 norms of differences per level, each over the whole batch.

    - feature: :math:`\lVert \sqrt{M} (T - \phi(S)) \rVert`, where M is the mean
      of the student's and the teacher's spatial attention
      :math:`H W \, softmax(mean_c |X| / 0.5)`, detached;
    - channel: of the means over positions, the student's after a linear layer;
    - spatial: of the means over channels, the student's after a 3x3 convolution;
    - nonlocal: of the outputs of one non-local block per side.

    The terms are norms, not mean squared errors. Their values grow with the square root
    of the batch size, and their gradients do not shrink as the difference approaches 0.

    Unverified: the authors published no code; this follows mmrazor, which computes a
    channel mask and does not use it.

    Args:
        channels: Channels of both maps.
        num_levels: Number of levels of the wires.
        feature_weight: Factor on the feature term.
        channel_weight: Factor on the channel term.
        spatial_weight: Factor on the spatial term.
        nonlocal_weight: Factor on the nonlocal term.
        loss_weight: Factor on all terms.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> loss = FBKDLoss(channels=8, num_levels=1)
        >>> sorted(loss(torch.ones(1, 8, 4, 4), torch.zeros(1, 8, 4, 4), level=0))
        ['channel', 'feature', 'nonlocal', 'spatial']
    """

    examples = (
        Example(arguments=lambda s: dict(channels=s.channels, num_levels=s.num_levels)),
    )

    def __init__(
        self,
        channels: int,
        num_levels: int,
        feature_weight: float = 7e-5,
        channel_weight: float = 4e-3,
        spatial_weight: float = 4e-3,
        nonlocal_weight: float = 7e-5,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_counts('FBKDLoss', num_levels=num_levels)
        check_counts('FBKDLoss', least=2, channels=channels)
        check_at_least(
            'FBKDLoss',
            0,
            feature_weight=feature_weight,
            channel_weight=channel_weight,
            spatial_weight=spatial_weight,
            nonlocal_weight=nonlocal_weight,
            loss_weight=loss_weight,
        )
        self.weights = {
            'feature': feature_weight,
            'channel': channel_weight,
            'spatial': spatial_weight,
            'nonlocal': nonlocal_weight,
        }
        self.channels = channels
        self.loss_weight = loss_weight
        self.levels = nn.ModuleList(_adapters(channels) for _ in range(num_levels))

    @full_precision
    def forward(
        self, student: Tensor, teacher: Tensor, level: int
    ) -> dict[str, Tensor]:
        """Return the weighted terms of two maps (N, C, H, W).

        Raises:
            ValueError: If the maps differ in shape, or their channels or level do not
                match the config.
        """
        check_maps(student, teacher)
        if student.shape[1] != self.channels or level >= len(self.levels):
            raise ValueError(
                f'FBKDLoss has channels={self.channels} and '
                f'num_levels={len(self.levels)}, level {level} has '
                f'{student.shape[1]} channels; set channels={student.shape[1]} and '
                'num_levels to the number of levels of its wires'
            )
        terms = _distances(self.levels[level], student, teacher)
        return {
            name: self.loss_weight * weight * terms[name]
            for name, weight in self.weights.items()
        }


def _adapters(channels: int) -> nn.ModuleDict:
    return nn.ModuleDict(
        dict(
            feature=nn.Conv2d(channels, channels, 1),
            channel=nn.Linear(channels, channels),
            spatial=nn.Conv2d(1, 1, 3, padding=1),
            relation=nn.Conv2d(channels, channels, 1),
            student=NonLocal(channels),
            teacher=NonLocal(channels),
        )
    )


def _distances(adapt: nn.Module, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    layers = dict(adapt.named_children())
    mask = (_attention(student.detach()) + _attention(teacher)) / 2
    channel = layers['channel'](student.mean((2, 3)))
    spatial = layers['spatial'](student.mean(1, keepdim=True))
    relation = layers['relation'](layers['student'](student))
    return {
        'feature': _norm((teacher - layers['feature'](student)) * mask.sqrt()),
        'channel': _norm(teacher.mean((2, 3)) - channel),
        'spatial': _norm(teacher.mean(1, keepdim=True) - spatial),
        'nonlocal': _norm(layers['teacher'](teacher) - relation),
    }


def _attention(maps: Tensor) -> Tensor:
    energy = maps.abs().mean(1, keepdim=True)
    weights = (energy.flatten(1) / 0.5).softmax(1) * energy[0].numel()
    return weights.reshape(energy.shape)


def _norm(difference: Tensor) -> Tensor:
    # Axis by axis: one float32 norm over millions of values is off by a percent.
    while difference.dim():
        difference = vector_norm(difference, dim=-1)
    return difference
