"""Denoise the student's features before comparing them (DiffKD, arXiv:2305.15712).

The alignment of the student's channels is a `kdtoolbox.connectors.ConvConnector`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least, check_counts
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import at_least_float32, check_maps
from kdtoolbox.registry import MODELS

TIMES = 1000
"""Steps of the noise schedule that the denoiser is trained on."""


class _BatchNorm(nn.BatchNorm2d):
    """A norm by the batch alone that bears a single value per channel."""

    def __init__(self, channels: int) -> None:
        # Nothing reads running statistics of a loss.
        super().__init__(channels, track_running_stats=False)

    def forward(self, maps: Tensor) -> Tensor:
        if maps.numel() > maps.shape[1]:
            return super().forward(maps)
        scale, bias = (x[:, None, None] for x in (self.weight, self.bias))
        return 0 * maps * scale + bias


class _Bottleneck(nn.Module):
    """A residual block of three convolutions."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        width = max(channels // reduction, 1)
        self.block = nn.Sequential(
            nn.Conv2d(channels, width, 1),
            _BatchNorm(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            _BatchNorm(width),
            nn.ReLU(),
            nn.Conv2d(width, channels, 1),
            _BatchNorm(channels),
        )

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.block(maps)


class _Denoiser(nn.Module):
    """Predicts the noise in maps (N, C, H, W) at times (N,)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.times = nn.Embedding(TIMES, channels)
        self.blocks = nn.Sequential(
            _Bottleneck(channels, 4),
            _Bottleneck(channels, 4),
            nn.Conv2d(channels, channels, 1),
            _BatchNorm(channels),
        )

    def forward(self, noisy: Tensor, times: Tensor) -> Tensor:
        return self.blocks(noisy + self.times(times)[..., None, None])


class _NoiseAdapter(nn.Module):
    """Says for each image how much of the student's map is kept beside noise."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = _Bottleneck(channels, 8)
        self.scores = nn.Linear(channels, 2)

    def forward(self, maps: Tensor) -> Tensor:
        scores = self.scores(self.block(maps).mean((2, 3)))
        return scores.softmax(1)[:, :1, None, None]


@MODELS.register_module()
class DiffKDLoss(nn.Module):
    r"""Compare the student with the teacher as a denoiser of the teacher sees it.

    A small network learns to predict the noise :math:`\epsilon` in the teacher's
    features, at a time t drawn for each image,

    .. math:: L_{noise} = mean((\hat\epsilon(\sqrt{a_t} T + \sqrt{1 - a_t} \epsilon, t)
        - \epsilon)^2), \quad a_t = \prod_{u \le t} (1 - \beta_u)

    with 1000 :math:`\beta` from 1e-4 to 0.02. The student's features are taken for
    noisy ones of the teacher: mixed with noise by a learned share
    :math:`\gamma S + (1 - \gamma) \epsilon`, denoised by DDIM in a few equal steps from
    the middle of the schedule, and projected by a 1x1 convolution with a norm to R:

    .. math:: L_{feature} = mean((R - T)^2)

    Its gradient trains the denoiser, too. The denoiser runs once for each step and once
    for the noise; each run holds its inner maps until the backward pass.

    Deviation: the authors' auto-encoder, which narrows wide features of classifiers, is
    left out; the teacher's features are compared as they are.

    Args:
        channels: Channels of both maps.
        steps: Runs of the denoiser on the student's features.
        noise_weight: Factor on the noise term.
        loss_weight: Factor on both terms.

    Raises:
        ValueError: If `steps` is not from 1 to 500.

    Example:
        >>> loss = DiffKDLoss(channels=8)
        >>> sorted(loss(torch.ones(2, 8, 4, 4), torch.zeros(2, 8, 4, 4)))
        ['feature', 'noise']
    """

    kept: Tensor

    examples = (Example(arguments=lambda s: dict(channels=s.channels)),)

    def __init__(
        self,
        channels: int,
        steps: int = 5,
        noise_weight: float = 1.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_counts('DiffKDLoss', channels=channels)
        check_at_least(
            'DiffKDLoss', 0, noise_weight=noise_weight, loss_weight=loss_weight
        )
        if not (isinstance(steps, int) and 1 <= steps <= TIMES // 2):
            raise ValueError(
                f'DiffKDLoss: steps must be an integer from 1 to {TIMES // 2}, got '
                f'{steps!r}; write for instance steps=5 in the entry of this loss '
                'under `losses`'
            )
        self.channels = channels
        self.steps = steps
        self.noise_weight = noise_weight
        self.loss_weight = loss_weight
        self.adapter = _NoiseAdapter(channels)
        self.denoiser = _Denoiser(channels)
        self.projection = nn.Sequential(
            nn.Conv2d(channels, channels, 1), _BatchNorm(channels)
        )
        betas = torch.linspace(1e-4, 0.02, TIMES, dtype=torch.float64)
        kept = (1 - betas).cumprod(0).float()
        self.register_buffer('kept', kept, persistent=False)

    def forward(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms of two maps (N, C, H, W).

        Raises:
            ValueError: If the shapes differ or the channels are others than configured.
        """
        check_maps(student, teacher)
        if student.shape[1] != self.channels:
            raise ValueError(
                f'DiffKDLoss has channels={self.channels}, the maps have '
                f'{student.shape[1]}; set channels={student.shape[1]}'
            )
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = at_least_float32(student, teacher)
            refined = self.refine(student, _noise(student))
            times = torch.randint(TIMES, (len(teacher),), device=teacher.device)
            noise = self.noise_error(teacher, _noise(teacher), times)
            feature = functional.mse_loss(refined, teacher)
        return dict(
            feature=self.loss_weight * feature,
            noise=self.loss_weight * self.noise_weight * noise,
        )

    def refine(self, student: Tensor, noise: Tensor) -> Tensor:
        """Return the student's maps denoised and projected.

        Args:
            student: Features (N, C, H, W).
            noise: Standard normal, of the same shape.
        """
        share = self.adapter(student)
        maps = share * student + (1 - share) * noise
        stride = TIMES // (2 * self.steps)
        for time in reversed(range(0, self.steps * stride, stride)):
            times = torch.full((len(maps),), time, device=maps.device)
            predicted = self.denoiser(maps, times)
            kept = self.kept[time]
            clean = (maps - (1 - kept).sqrt() * predicted) / kept.sqrt()
            before = self.kept[time - stride] if time else torch.ones_like(kept)
            maps = before.sqrt() * clean + (1 - before).sqrt() * predicted
        return self.projection(maps)

    def noise_error(self, teacher: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return how badly the denoiser predicts the noise in the teacher's maps.

        Args:
            teacher: Features (N, C, H, W).
            noise: Standard normal, of the same shape.
            times: Of each image (N,), long, below 1000.
        """
        kept = self.kept[times].reshape(-1, 1, 1, 1)
        noisy = kept.sqrt() * teacher + (1 - kept).sqrt() * noise
        return functional.mse_loss(self.denoiser(noisy, times), noise)


def _noise(maps: Tensor) -> Tensor:
    # Not `randn_like`, which draws in the order of the memory.
    return torch.randn(maps.shape, dtype=maps.dtype, device=maps.device)
