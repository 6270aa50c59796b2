"""Curriculum temperature for knowledge distillation (CTKD, arXiv:2211.16231)."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.examples import CLASS_LOGITS
from kdtoolbox.losses.logits.class_logits import read_logits
from kdtoolbox.losses.logits.kd import kd_divergence
from kdtoolbox.registry import MODELS


@MODELS.register_module()
class CTKDLoss(nn.Module):
    r"""KD at a temperature that learns to make the task harder, step by step.

    .. math:: \frac{\tau^2}{R} \sum_r KL(softmax(T_r / \tau) \,\|\, softmax(S_r / \tau))
        \qquad \tau = 1 + 20 \, \sigma(\theta)

    The optimizer of the student lowers the loss; the gradient that reaches the one
    parameter theta is multiplied by :math:`\lambda_i = -(1 - \cos(\pi \, \min(i / I,
    1))) / 2`, so that theta goes the other way, at step i of the first I with a growing
    share of its gradient. The factor tau^2 is part of what theta learns from. A row is
    an RoI or a pixel that is not ignored, and R is their number.

    The steps are counted in training mode and kept in checkpoints. Steps in which the
    distillation rests (`loss_weight=0`) do not count.

    Deviation: the authors raise the share from epoch to epoch, here it is from step to
    step.

    Args:
        ramp_iterations: The steps I until the gradient is reversed in full. The authors
            take 10 epochs.
        use_sigmoid: As `read_logits` takes it.
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `ramp_iterations` is not an integer above 0.

    Example:
        >>> loss = CTKDLoss(ramp_iterations=3720)
        >>> loss(torch.zeros(2, 19, 8, 8), torch.zeros(2, 19, 8, 8)).item()
        0.0
        >>> int(loss.iterations), round(loss.temperature().item(), 2)
        (1, 15.62)
    """

    iterations: Tensor

    reads_classes = True

    examples = tuple(
        replace(example, arguments=lambda s: dict(ramp_iterations=100))
        for example in CLASS_LOGITS
    )

    def __init__(
        self,
        ramp_iterations: int,
        use_sigmoid: bool = False,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_at_least('CTKDLoss', 0, loss_weight=loss_weight)
        if not (isinstance(ramp_iterations, int) and ramp_iterations > 0):
            raise ValueError(
                'CTKDLoss: ramp_iterations must be an integer above 0, got '
                f'{ramp_iterations!r}; write the iterations of 10 epochs, such as '
                'ramp_iterations=3720 for 2975 images in batches of 8, in the entry of '
                'this loss under `losses`'
            )
        self.ramp_iterations = ramp_iterations
        self.use_sigmoid = use_sigmoid
        self.loss_weight = loss_weight
        self.theta = nn.Parameter(torch.ones(()))
        self.register_buffer('iterations', torch.zeros((), dtype=torch.long))

    def temperature(self) -> Tensor:
        """Return the temperature, a scalar between 1 and 21."""
        return 1 + 20 * self.theta.sigmoid()

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        data_samples: Sequence[Any] = (),
        level: int = 0,
    ) -> Tensor:
        """Return the weighted loss of logits (R, K) or (N, K, H, W) as a scalar.

        Raises:
            ValueError: If the logits are neither rows nor maps, their shapes differ, or
                there are too few classes.
        """
        # One step, whatever the number of levels.
        if self.training and level == 0:
            self.iterations += 1
        with torch.autocast(student.device.type, enabled=False):
            logits = read_logits(
                student, teacher, data_samples, use_sigmoid=self.use_sigmoid
            )
            tau = self._reverse(self.temperature())
            # The division is here because theta learns from it, on both sides.
            rows = kd_divergence(logits.student / tau, logits.teacher / tau)
            return self.loss_weight * tau**2 * logits.mean(rows)

    def _reverse(self, value: Tensor) -> Tensor:
        """Return the same value, with a gradient times that of the schedule."""
        progress = (self.iterations / self.ramp_iterations).clamp(max=1)
        factor = -(1 - (math.pi * progress).cos()) / 2
        constant = value.detach()
        return constant + factor * (value - constant)
