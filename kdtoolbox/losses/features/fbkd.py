"""Attention-guided and non-local feature distillation (FBKD, ICLR 2021).

The paper has no arXiv id: https://openreview.net/forum?id=uKhGRvM8QNH
"""

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from kdtoolbox.losses.arguments import check_at_least, check_counts
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import at_least_float32, check_maps
from kdtoolbox.registry import MODELS


class NonLocal(nn.Module):
    """A non-local block by dot products, without a map of all pairs of positions.

    Without a softmax the product with the values can be taken first: the same sum,
    with C / 2 x C / 2 numbers in the place of (H W)^2. The block starts as the
    identity, and its layers as those of mmcv's ``NonLocal2d``.

    Deviation: keys and values are not pooled, as mmrazor does to bear the map of all
    pairs. Each position sees all others.

    Args:
        channels: Channels C of the map, even.

    Example:
        >>> maps = torch.ones(2, 8, 4, 5)
        >>> torch.equal(NonLocal(8)(maps), maps)
        True
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (
            nn.Conv2d(channels, channels // 2, 1) for _ in range(3)
        )
        self.out = nn.Conv2d(channels // 2, channels, 1, bias=False)
        # Nothing reads running statistics of a loss.
        self.norm = nn.BatchNorm2d(channels, track_running_stats=False)
        for layer in (self.query, self.key, self.value):
            weight, bias = layer.parameters()
            nn.init.normal_(weight, std=0.01)
            nn.init.zeros_(bias)
        nn.init.kaiming_normal_(self.out.weight, mode='fan_out')
        nn.init.zeros_(self.norm.weight)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (N, C, H, W) with what all positions add to each."""
        query, key, value = (
            layer(maps).flatten(2) for layer in (self.query, self.key, self.value)
        )
        mixed = value @ key.mT / key.shape[2] @ query
        return maps + self._normalize(self.out(mixed.unflatten(2, maps.shape[2:])))

    def _normalize(self, added: Tensor) -> Tensor:
        if added.numel() > added.shape[1]:
            return self.norm(added)
        # PyTorch refuses the norm of one value per channel: 0 before scale and bias.
        scale, bias = (x[:, None, None] for x in (self.norm.weight, self.norm.bias))
        return 0 * added * scale + bias


@MODELS.register_module()
class FBKDLoss(nn.Module):
    r"""Four norms of differences on each level, all over the whole batch.

    - feature: :math:`\lVert \sqrt{M} (T - \phi(S)) \rVert`, with M the mean of both
      sides' spatial attention :math:`H W \, softmax(mean_c |X| / 0.5)`, detached;
    - channel: of the means over the positions, the student's through a linear layer;
    - spatial: of the means over the channels, the student's through a 3x3 convolution;
    - nonlocal: of the outputs of a non-local block for each side.

    A norm is no mean of squares: its value grows with the root of the batch and its
    gradient does not shrink towards equality, where it is 0.

    Unverified: read from mmrazor, as the authors published no code. There the mask of
    the channels is computed and not used.

    Args:
        channels: Channels of both maps.
        num_levels: Levels of the wires.
        feature_weight: Factor on the features.
        channel_weight: Factor on the channels.
        spatial_weight: Factor on the positions.
        nonlocal_weight: Factor on the non-local relations.
        loss_weight: Factor on all terms.

    Raises:
        ValueError: If a number is not in the range of its argument.

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

    def forward(
        self, student: Tensor, teacher: Tensor, level: int
    ) -> dict[str, Tensor]:
        """Return the weighted terms of two maps (N, C, H, W).

        Raises:
            ValueError: If the maps differ in shape, or have other channels or more
                levels than the config says.
        """
        check_maps(student, teacher)
        if student.shape[1] != self.channels or level >= len(self.levels):
            raise ValueError(
                f'FBKDLoss has channels={self.channels} and '
                f'num_levels={len(self.levels)}, level {level} has '
                f'{student.shape[1]} channels; set channels={student.shape[1]} and '
                'num_levels to the levels of its wires'
            )
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = at_least_float32(student, teacher)
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
    # One norm over the millions of values of a P2 in float32 is wrong by a percent.
    while difference.dim():
        difference = vector_norm(difference, dim=-1)
    return difference
