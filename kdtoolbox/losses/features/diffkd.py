"""Distil features through a diffusion model (DiffKD, arXiv:2305.15712).

A `kdtoolbox.connectors.ConvConnector` aligns the student's channels with the teacher's.
"""

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least, check_counts
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.features.denoiser import TIMES, BatchNorm, Denoiser, NoiseAdapter
from kdtoolbox.losses.inputs import check_maps
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@MODELS.register_module()
class DiffKDLoss(nn.Module):
    r"""Denoise the student's features and compare them with the teacher's.

    A small network, the denoiser, learns to predict the noise :math:`\epsilon` in the
    teacher's features at a time t drawn for each image,

    .. math:: L_{noise} = mean((\hat\epsilon(\sqrt{a_t} T + \sqrt{1 - a_t} \epsilon, t)
        - \epsilon)^2), \quad a_t = \prod_{u \le t} (1 - \beta_u)

    with 1000 :math:`\beta` from 1e-4 to 0.02. The student's features are treated as
    noisy features of the teacher. They are mixed with noise,
    :math:`\gamma S + (1 - \gamma) \epsilon` with a learned :math:`\gamma`, denoised by
    DDIM in `steps` equal steps from the middle of the schedule, and projected by a 1x1
    convolution with a norm to R:

    .. math:: L_{feature} = mean((R - T)^2)

    The gradient of both terms trains the denoiser. The denoiser runs once per step and
    once for the noise term; each run keeps its activations until the backward pass.

    Deviation: the authors compress wide features of classifiers by an auto-encoder.
    Here the teacher's features are compared directly.

    Args:
        channels: Channels of both maps.
        steps: Denoising steps on the student's features, from 1 to 500.
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
        _check_steps(steps)
        self.channels = channels
        self.steps = steps
        self.updates = _updates(steps)
        self.noise_weight = noise_weight
        self.loss_weight = loss_weight
        self.adapter = NoiseAdapter(channels)
        self.denoiser = Denoiser(channels)
        self.projection = nn.Sequential(
            nn.Conv2d(channels, channels, 1), BatchNorm(channels)
        )
        self.register_buffer('kept', _kept_shares(), persistent=False)

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms of two maps (N, C, H, W).

        Raises:
            ValueError: If the shapes differ or the channels do not match the config.
        """
        check_maps(student, teacher)
        if student.shape[1] != self.channels:
            raise ValueError(
                f'DiffKDLoss has channels={self.channels}, the maps have '
                f'{student.shape[1]}; set channels={student.shape[1]}'
            )
        refined = self.refine(student, _noise(student))
        times = torch.randint(TIMES, (len(teacher),), device=teacher.device)
        noise = self.noise_error(teacher, _noise(teacher), times)
        feature = functional.mse_loss(refined, teacher)
        return dict(
            feature=self.loss_weight * feature,
            noise=self.loss_weight * self.noise_weight * noise,
        )

    def refine(self, student: Tensor, noise: Tensor) -> Tensor:
        """Denoise and project the student's maps.

        Args:
            student: Features (N, C, H, W).
            noise: Standard normal noise of the same shape.

        Returns:
            Maps (N, C, H, W).
        """
        share = self.adapter(student)
        maps = share * student + (1 - share) * noise
        for time, of_maps, of_noise in self.updates:
            times = torch.full((len(maps),), time, device=maps.device)
            predicted = self.denoiser(maps, times)
            maps = (of_maps * maps).add_(predicted, alpha=of_noise)
        return self.projection(maps)

    def noise_error(self, teacher: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Compute the mean squared error of the predicted noise in the teacher's maps.

        Args:
            teacher: Features (N, C, H, W).
            noise: Standard normal noise of the same shape.
            times: Time step of each image (N,), long, below 1000.

        Returns:
            A scalar.
        """
        kept = self.kept[times].reshape(-1, 1, 1, 1)
        noisy = kept.sqrt() * teacher + (1 - kept).sqrt() * noise
        return functional.mse_loss(self.denoiser(noisy, times), noise)


def _check_steps(steps: int) -> None:
    if not (isinstance(steps, int) and 1 <= steps <= TIMES // 2):
        raise ValueError(
            f'DiffKDLoss: steps must be an integer from 1 to {TIMES // 2}, got '
            f'{steps!r}; write for instance steps=5 in the entry of this loss under '
            '`losses`'
        )


def _kept_shares() -> Tensor:
    """Return the share a_t of the features that each time step keeps."""
    betas = torch.linspace(1e-4, 0.02, TIMES, dtype=torch.float64)
    return (1 - betas).cumprod(0).float()


def _updates(steps: int) -> list[tuple[int, float, float]]:
    r"""Return the times of DDIM and the factors on the maps and on their noise.

    With the noise e in the maps x at time t, the maps at the next time u are
    :math:`\sqrt{a_u} (x - \sqrt{1 - a_t} e) / \sqrt{a_t} + \sqrt{1 - a_u} e`.
    """
    kept, stride = _kept_shares().tolist(), TIMES // (2 * steps)
    updates = []
    for time in reversed(range(0, steps * stride, stride)):
        before = kept[time - stride] if time else 1.0
        of_maps = sqrt(before / kept[time])
        of_noise = sqrt(1 - before) - of_maps * sqrt(1 - kept[time])
        updates.append((time, of_maps, of_noise))
    return updates


def _noise(maps: Tensor) -> Tensor:
    # `randn_like` draws in memory order, so channels_last would change the numbers.
    return torch.randn(maps.shape, dtype=maps.dtype, device=maps.device)
