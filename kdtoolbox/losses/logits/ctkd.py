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
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


@MODELS.register_module()
class CTKDLoss(nn.Module):
    r"""KD with a learned temperature that makes the task harder step by step.

    .. math:: \frac{\tau^2}{R} \sum_r KL(softmax(T_r / \tau) \,\|\, softmax(S_r / \tau))
        \qquad \tau = 1 + 20 \, \sigma(\theta)

    theta is the only parameter. Its gradient is multiplied by :math:`\lambda_i = -(1 -
    \cos(\pi \, \min(i / I, 1))) / 2` at step i: the optimizer lowers the loss for the
    student and raises it for theta, with a factor that grows over the first I steps.
    theta also gets a gradient through the factor tau^2. A row is an RoI or a pixel that
    is not ignored; R is the number of rows.

    Steps are counted in training mode and saved in checkpoints. Steps in which the
    distillation is off (`loss_weight=0`) do not count.

    Deviation: the factor grows with each step; the authors raise it once per epoch.

    Args:
        ramp_iterations: Number of steps I until the gradient is fully reversed. The
            authors use 10 epochs.
        use_sigmoid: Whether each class has its own sigmoid; see `read_logits`.
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

    @full_precision
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
        # Each level calls the loss, but one iteration is one step.
        if self.training and level == 0:
            self.iterations += 1
        logits = read_logits(
            student, teacher, data_samples, use_sigmoid=self.use_sigmoid
        )
        tau = self._reverse(self.temperature())
        # kd_divergence takes tau as a number; theta needs a gradient through it.
        rows = kd_divergence(logits.student / tau, logits.teacher / tau)
        return self.loss_weight * tau**2 * logits.mean(rows)

    def _reverse(self, value: Tensor) -> Tensor:
        """Return the value unchanged; multiply its gradient by the scheduled factor."""
        progress = (self.iterations / self.ramp_iterations).clamp(max=1)
        factor = -(1 - (math.pi * progress).cos()) / 2
        constant = value.detach()
        return constant + factor * (value - constant)
