"""Feature-augmented knowledge distillation (FAKD, arXiv:2208.14143)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least, check_counts
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.logits.class_logits import check_tau, read_logits, require_labels
from kdtoolbox.losses.logits.kd import kd_divergence
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


def surrogate_logits(
    logits: Tensor, labels: Tensor, weights: Tensor, variances: Tensor, strength: Tensor
) -> Tensor:
    r"""Compute the logits that stand for infinitely many augmented features.

    .. math:: z_j + \frac{\lambda}{2} \sum_c (w_{jc} - w_{yc})^2 \sigma^2_{yc}

    Their cross entropy with class y is an upper bound of the mean cross entropy over
    features with added noise N(0, lambda * sigma_y^2). The added part depends only on y
    and j: it is looked up in a table of K x K.

    Args:
        logits: Logits (N, K, H, W), float32 or wider.
        labels: Classes y (N, H, W), long.
        weights: Weights (K, C) of the linear classifier that made the logits.
        variances: Variances (K, C) of the features of each class.
        strength: Lambda, a scalar.

    Returns:
        The logits (N, K, H, W).

    Example:
        >>> weights = torch.tensor([[1.0], [0.0]])
        >>> labels = torch.zeros(1, 1, 1, dtype=torch.long)
        >>> strength, variances = torch.tensor(1.0), torch.full((2, 1), 4.0)
        >>> logits = torch.zeros(1, 2, 1, 1)
        >>> surrogate_logits(logits, labels, weights, variances, strength).flatten()
        tensor([0., 2.])
    """
    squares = (weights - weights[:, None]).square()
    table = strength / 2 * (squares * variances[:, None]).sum(2)
    return logits + functional.embedding(labels, table).movedim(3, 1)


@MODELS.register_module()
class FAKDLoss(nn.Module):
    r"""KD on the logits of augmented features, with pixel labels. Unverified.

    .. math:: mean_p \, \tau^2 \, KL(softmax(z^T / \tau) \,\|\,
        softmax(\tilde{z}^S / \tau))

    over the pixels with a class, with the `surrogate_logits` of the student. The
    variances per class and channel cover all pixels of the student's features that this
    process has seen in training.

    The weights of the classifier come from a wire of the source `ClassifierWeights`.

    Unverified: no code is public. The paper augments several losses; this is KD, with
    diagonal covariances.

    Args:
        num_classes: Number of classes K.
        student_channels: Channels C of the input of the student's classifier.
        ramp_iterations: Number of iterations in which lambda grows from 0 to
            `strength`. The paper uses the whole training.
        strength: Lambda at the end.
        tau: Temperature of both softmaxes.
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `tau` is not a finite number above 0, or `ramp_iterations` is
            below 1.

    Example:
        >>> from types import SimpleNamespace
        >>> pixels = SimpleNamespace(data=torch.zeros(1, 4, 4, dtype=torch.long))
        >>> samples = [SimpleNamespace(gt_sem_seg=pixels)]
        >>> loss = FAKDLoss(num_classes=2, student_channels=3, ramp_iterations=80000)
        >>> maps, features = torch.ones(1, 2, 4, 4), torch.ones(1, 3, 4, 4)
        >>> loss(maps, maps, features, torch.ones(2, 3, 1, 1), samples)
        tensor(0.)
    """

    counts: Tensor
    means: Tensor
    variances: Tensor
    steps: Tensor

    reads_classes = True

    examples = (
        Example(
            'class logits map',
            wires=dict(features='map', classifier='classifier weights'),
            arguments=lambda s: dict(
                num_classes=s.classes, student_channels=s.channels, ramp_iterations=1
            ),
            pixel_labels=True,
        ),
    )

    def __init__(
        self,
        num_classes: int,
        student_channels: int,
        ramp_iterations: int,
        strength: float = 0.5,
        tau: float = 1.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_counts('FAKDLoss', student_channels=student_channels)
        check_counts('FAKDLoss', least=2, num_classes=num_classes)
        check_at_least('FAKDLoss', 0, strength=strength, loss_weight=loss_weight)
        if not (isinstance(ramp_iterations, int) and ramp_iterations > 0):
            raise ValueError(
                f'FAKDLoss: ramp_iterations must be an integer of at least 1, got '
                f'{ramp_iterations!r}; write the iterations of the training, such as '
                'ramp_iterations=80000'
            )
        self.ramp_iterations = ramp_iterations
        self.strength = strength
        self.tau = check_tau('FAKDLoss', tau)
        self.loss_weight = loss_weight
        # Integers, because float32 cannot count single pixels beyond 2^24.
        self.register_buffer('counts', torch.zeros(num_classes, 1, dtype=torch.long))
        shape = num_classes, student_channels
        self.register_buffer('means', torch.zeros(shape))
        self.register_buffer('variances', torch.zeros(shape))
        self.register_buffer('steps', torch.zeros((), dtype=torch.long))

    @full_precision
    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        features: Tensor,
        classifier: Tensor,
        data_samples: Sequence[Any],
    ) -> Tensor:
        """Return the weighted divergence of logits.

        Args:
            student: Logits (N, K, H, W).
            teacher: The same shape; receives no gradient.
            features: Input (N, C, H, W) of the student's classifier. It receives a
                gradient only through the logits.
            classifier: Weights (K, C, 1, 1) or (K, C) of the student's classifier.
            data_samples: The batch's samples with ``gt_sem_seg``.

        Raises:
            ValueError: If the shapes do not fit or the batch has no pixel labels.
        """
        self._check(student, features, classifier)
        logits = read_logits(student, teacher, data_samples)
        labels = require_labels('FAKDLoss', logits)
        dtype = logits.student.dtype
        progress = (self.steps.to(dtype) / self.ramp_iterations).clamp(max=1)
        if self.training:
            index = labels.where(logits.valid, len(self.means))
            self._observe(features.detach(), index.flatten())
        augmented = surrogate_logits(
            logits.student,
            labels,
            classifier.flatten(1),
            self.variances.to(dtype),
            self.strength * progress,
        )
        divergence = kd_divergence(augmented, logits.teacher, self.tau)
        return self.loss_weight * logits.mean(divergence)

    def _check(self, student: Tensor, features: Tensor, classifier: Tensor) -> None:
        classes, channels = self.means.shape
        size = len(student), *student.shape[2:]
        expected = (size[0], classes, *size[1:]), (size[0], channels, *size[1:])
        found = tuple(student.shape), tuple(features.shape)
        weights = tuple(classifier.shape)
        if found != expected or weights[:2] != (classes, channels):
            raise ValueError(
                f'expected logits, features and classifier of {expected[0]}, '
                f'{expected[1]} and {(classes, channels, 1, 1)}, got {found[0]}, '
                f'{found[1]} and {weights}; set num_classes and student_channels to '
                'those of the classifier and record its input as `features`'
            )

    @torch.no_grad()
    def _observe(self, features: Tensor, index: Tensor) -> None:
        """Update the means and variances of the classes with the features of a batch.

        The buffers are replaced instead of modified, because an autograd graph may
        still use the old ones.

        Args:
            features: Features (N, C, H, W).
            index: Classes (N * H * W,), K for pixels without a class.
        """
        rows = features.movedim(1, -1).flatten(0, 2).to(self.means.dtype)
        zeros = rows.new_zeros(len(self.means) + 1, rows.shape[1])
        counts = self.counts.new_zeros(len(zeros))
        counts = counts.index_add(0, index, torch.ones_like(index))[:, None]
        means = zeros.index_add(0, index, rows) / counts.clamp(min=1)
        squares = zeros.index_add(0, index, (rows - means[index]).square())
        counts, means, squares = counts[:-1], means[:-1], squares[:-1]
        total = self.counts + counts
        share = counts.to(rows.dtype) / total.clamp(min=1)
        gap = means - self.means
        self.variances = (
            (1 - share) * self.variances
            + squares / total.clamp(min=1)
            + share * (1 - share) * gap.square()
        )
        self.means = self.means + share * gap
        self.counts = total
        self.steps = self.steps + 1
