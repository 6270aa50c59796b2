"""Structured knowledge distillation (SKD, arXiv:1903.04197): its holistic term.

A critic learns to distinguish the logits of teacher and student, as in a WGAN with
gradient penalty (arXiv:1704.00028). The student learns to get high scores.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.linalg import vector_norm

from kdtoolbox.losses.arguments import check_at_least, check_counts
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.logits.class_logits import check_logits, read_logits
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.losses.segmentation.logit_critic import LogitCritic
from kdtoolbox.registry import MODELS


def adversarial_terms(
    critic: nn.Module, student: Tensor, teacher: Tensor, valid: Tensor
) -> dict[str, Tensor]:
    r"""Compute the adversarial terms of the student and of the critic.

    .. math:: generator = -mean_n D(S_n), \quad
        separation = mean_n(D(S_n) - D(T_n)), \quad
        penalty = mean_n((\lVert \nabla D(X_n) \rVert_2 - 1)^2)

    with X a random interpolation of S and T per image. The first term gives a gradient
    to the student only, the other two to the parameters of the critic only.

    Args:
        critic: A module that scores maps (N, K, H, W) as (N,).
        student: Logits (N, K, H, W).
        teacher: The same shape, without gradient.
        valid: Mask (N, H, W) of the pixels that count. The critic sees 0 elsewhere.
            Images without valid pixels are left out of the means.

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
    student_scores = functional_call(critic, frozen, student)

    student = student.detach()
    share = torch.rand_like(student[:, :1, :1, :1])
    between = torch.lerp(teacher, student, share).requires_grad_()
    # The penalty needs a gradient even under torch.no_grad.
    with torch.enable_grad():
        # One batch, so that all three use the same estimate of the spectral norm.
        scores = critic(torch.cat([student, teacher, between]))
        low, high, middle = scores.chunk(3)
        [slopes] = torch.autograd.grad(middle.sum(), between, create_graph=True)
    steepness = vector_norm(slopes.where(valid, 0).flatten(1), dim=1)
    terms = dict(
        generator=-student_scores,
        separation=low - high,
        penalty=(steepness - 1).square(),
    )
    return {name: term.where(exist, 0).sum() / count for name, term in terms.items()}


@MODELS.register_module()
class SKDHolisticLoss(nn.Module):
    """The holistic term of SKD on one map of logits; see `adversarial_terms`.

    The critic is part of the loss and is trained with the student by one optimizer. It
    is saved in checkpoints, but not exported with the student. For 19 classes on
    64 x 128 cells it takes about 0.1 GMAC per image in each of four forward passes,
    plus their backward passes.

    Deviation: the critic sees only the logits, as in the authors' code; in the paper it
    also sees the image. It has fewer layers than in the authors' code.
    Deviation: ignored pixels do not count; the authors' code counts them.

    Args:
        num_classes: Channels of the logits.
        generator_weight: Factor on the term of the student. The authors use 0.1.
        critic_weight: Factor on the term of the critic. The authors use 0.1 with a
            separate optimizer and a learning rate of 4e-4. With SGD at 0.01,
            critic_weight=0.004 gives the same step size.
        penalty_weight: Factor on the gradient penalty in the term of the critic.
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

    @full_precision
    def forward(
        self, student: Tensor, teacher: Tensor, data_samples: Sequence[Any] = ()
    ) -> dict[str, Tensor]:
        """Return the weighted terms ``generator`` and ``critic``.

        ``generator`` gives a gradient to the student, ``critic`` to the critic.

        Args:
            student: Logits (N, K, H, W).
            teacher: The same shape; receives no gradient.
            data_samples: The batch's samples; see `read_logits`.

        Raises:
            ValueError: If the logits are not maps, their shapes differ, or the number
                of classes differs from the config.
        """
        check_logits(student, teacher, (4,))
        if student.shape[1] != self.num_classes:
            raise ValueError(
                f'SKDHolisticLoss has num_classes={self.num_classes}, but the logits '
                f'have {student.shape[1]} classes; set num_classes={student.shape[1]}'
            )
        logits = read_logits(student, teacher, data_samples)
        terms = adversarial_terms(
            self.critic, logits.student, logits.teacher, logits.valid
        )
        critic = terms['separation'] + self.penalty_weight * terms['penalty']
        return dict(
            generator=self.loss_weight * self.generator_weight * terms['generator'],
            critic=self.loss_weight * self.critic_weight * critic,
        )
