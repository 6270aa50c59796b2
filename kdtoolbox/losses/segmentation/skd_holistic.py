"""Structured knowledge distillation (SKD, arXiv:1903.04197): its holistic term.

A critic learns to tell the teacher's logits from the student's, as in a WGAN with
gradient penalty (arXiv:1704.00028), and the student learns to please it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.linalg import vector_norm
from torch.nn.utils.parametrizations import spectral_norm

from kdtoolbox.losses.arguments import check_at_least, check_counts
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.logits.class_logits import check_logits, read_logits
from kdtoolbox.registry import MODELS


class SelfAttention(nn.Module):
    """Add to each position what others hold that it asks for (arXiv:1805.08318).

    The sum starts without them: their factor is learned from 0.

    Args:
        channels: Channels C of the map, 8 or more.

    Example:
        >>> maps = torch.ones(2, 16, 4, 5)
        >>> torch.equal(SelfAttention(16)(maps), maps)
        True
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (channels // 8, channels // 8, channels)
        self.query, self.key, self.value = (
            spectral_norm(nn.Conv2d(channels, width, 1, bias=False)) for width in widths
        )
        self.factor = nn.Parameter(torch.zeros(()))

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (N, C, H, W) of the same shape."""
        query, key, value = (
            project(maps).flatten(2) for project in (self.query, self.key, self.value)
        )
        found = value @ (query.mT @ key).softmax(-1).mT
        return maps + self.factor * found.unflatten(2, maps.shape[2:])


class LogitCritic(nn.Module):
    """Score maps of logits: a high score says that they look like the teacher's.

    Three convolutions of stride 2 with spectral norm, self-attention at an eighth of
    the map, and an average over its positions. 0.46 million parameters for 19 classes.
    Fresh ones score everything 0, so that nothing is asked of the student before the
    critic has learned to tell.

    Args:
        num_classes: Channels K of the logits.

    Example:
        >>> LogitCritic(19)(torch.ones(2, 19, 16, 32)).tolist()
        [0.0, 0.0]
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        widths = (num_classes, 64, 128, 256)
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            convolution = nn.Conv2d(before, after, 3, stride=2, padding=1)
            layers += [spectral_norm(convolution), nn.LeakyReLU(0.1)]
        self.layers = nn.Sequential(*layers, SelfAttention(widths[-1]))
        # No spectral norm, which 0 has none of, and no bias, which all scores share.
        self.score = nn.Conv2d(widths[-1], 1, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the scores (N,) of maps (N, K, H, W)."""
        return self.score(self.layers(logits)).mean((1, 2, 3))


def adversarial_terms(
    critic: nn.Module, student: Tensor, teacher: Tensor, valid: Tensor
) -> dict[str, Tensor]:
    r"""Let a critic compare two batches of maps, and both sides learn from it.

    .. math:: generator = -mean_n D(S_n), \quad
        separation = mean_n(D(S_n) - D(T_n)), \quad
        penalty = mean_n((\lVert \nabla D(X_n) \rVert_2 - 1)^2)

    with X between S and T, at a random share of the way for each image. The first
    term reaches the student alone, the other two the parameters of the critic alone.

    Args:
        critic: A module that scores maps (N, K, H, W) as (N,).
        student: Logits (N, K, H, W).
        teacher: The same shape, without gradient.
        valid: Which pixels (N, H, W) count; the critic sees 0 at the others. Images
            without any leave the means.

    Returns:
        The scalars ``generator``, ``separation`` and ``penalty``.

    Example:
        >>> logits, valid = torch.ones(1, 2, 4, 4), torch.ones(1, 4, 4) > 0
        >>> terms = adversarial_terms(LogitCritic(2), logits, 2 * logits, valid)
        >>> terms['penalty'].item()
        1.0
    """
    exist = valid.flatten(1).any(1)
    count = exist.sum().clamp(min=1)
    valid = valid[:, None]
    student, teacher = (maps.where(valid, 0) for maps in (student, teacher))
    frozen = {name: p.detach() for name, p in critic.named_parameters()}
    pleased = functional_call(critic, frozen, student)

    student = student.detach()
    share = torch.rand_like(student[:, :1, :1, :1])
    between = torch.lerp(teacher, student, share).requires_grad_()
    # The penalty is a gradient, also where none is asked for.
    with torch.enable_grad():
        # In one batch, so that all three meet the same estimate of the spectral norm.
        scores = critic(torch.cat([student, teacher, between]))
        mine, theirs, middle = scores.chunk(3)
        [slopes] = torch.autograd.grad(middle.sum(), between, create_graph=True)
    steepness = vector_norm(slopes.where(valid, 0).flatten(1), dim=1)
    terms = dict(
        generator=-pleased, separation=mine - theirs, penalty=(steepness - 1).square()
    )
    return {name: term.where(exist, 0).sum() / count for name, term in terms.items()}


@MODELS.register_module()
class SKDHolisticLoss(nn.Module):
    """The holistic term of SKD on one map of logits; see `adversarial_terms`.

    The critic is a part of the loss and trained with the student by one optimizer. The
    checkpoint holds it, the exported student does not. Per image and step it costs
    about 0.1 GMAC in each of four passes forward, and those back, for 19 classes on
    64 x 128 cells.

    Deviation: the paper's critic sees the image as well, that of the authors' code the
    logits alone, as here. It has fewer layers than theirs.

    Deviation: ignored pixels do not count, where the authors' code counts them.

    Args:
        num_classes: Channels of the logits.
        generator_weight: Factor on what the student learns, the authors' 0.1.
        critic_weight: Factor on what the critic learns. The authors' 0.1 is for an
            optimizer of its own with a learning rate of 4e-4; under SGD at 0.01,
            critic_weight=0.004 makes the same steps.
        penalty_weight: Factor on the gradient penalty within the critic's term.
        loss_weight: Factor on both terms.

    Raises:
        ValueError: If a number is not in the range of its argument.

    Example:
        >>> loss = SKDHolisticLoss(num_classes=19)
        >>> sorted(loss(torch.ones(2, 19, 8, 8), torch.zeros(2, 19, 8, 8)))
        ['critic', 'generator']
    """

    reads_classes = True

    examples = (
        Example('class logits map', arguments=lambda s: dict(num_classes=s.classes)),
    )

    def __init__(
        self,
        num_classes: int,
        generator_weight: float = 0.1,
        critic_weight: float = 0.1,
        penalty_weight: float = 10.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_counts('SKDHolisticLoss', least=2, num_classes=num_classes)
        check_at_least(
            'SKDHolisticLoss',
            0,
            generator_weight=generator_weight,
            critic_weight=critic_weight,
            penalty_weight=penalty_weight,
            loss_weight=loss_weight,
        )
        self.num_classes = num_classes
        self.generator_weight = generator_weight
        self.critic_weight = critic_weight
        self.penalty_weight = penalty_weight
        self.loss_weight = loss_weight
        self.critic = LogitCritic(num_classes)

    def forward(
        self, student: Tensor, teacher: Tensor, data_samples: Sequence[Any] = ()
    ) -> dict[str, Tensor]:
        """Return the weighted terms ``generator`` and ``critic``.

        The first gives a gradient to the student, the second to the critic.

        Args:
            student: Logits (N, K, H, W).
            teacher: The same shape; receives no gradient.
            data_samples: As `read_logits` takes them.

        Raises:
            ValueError: If the logits are no maps, their shapes differ, or their classes
                are not those of the config.
        """
        check_logits(student, teacher, (4,))
        if student.shape[1] != self.num_classes:
            raise ValueError(
                f'SKDHolisticLoss has num_classes={self.num_classes} and met logits of '
                f'{student.shape[1]}; set num_classes={student.shape[1]}'
            )
        with torch.autocast(student.device.type, enabled=False):
            logits = read_logits(student, teacher, data_samples)
            terms = adversarial_terms(
                self.critic, logits.student, logits.teacher, logits.valid
            )
        critic = terms['separation'] + self.penalty_weight * terms['penalty']
        return dict(
            generator=self.loss_weight * self.generator_weight * terms['generator'],
            critic=self.loss_weight * self.critic_weight * critic,
        )
