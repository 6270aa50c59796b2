"""Similarities of an image to earlier images (SEED, arXiv:2101.04731)."""

import torch
from mmengine.dist import all_gather
from torch import Tensor, nn

from kdtoolbox.losses.arguments import check_at_least, check_counts
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.logits.class_logits import check_tau
from kdtoolbox.losses.logits.kd import kd_divergence
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.losses.segmentation.class_queue import ClassQueue
from kdtoolbox.losses.unit_vectors import unit_vectors
from kdtoolbox.registry import MODELS


@full_precision
def queue_divergence(
    student: Tensor, teacher: Tensor, keys: Tensor, tau: float = 0.07
) -> Tensor:
    r"""Compute the divergence of the similarities of images to stored embeddings.

    .. math:: mean_n \, KL(softmax_k(\langle t_n, d_k \rangle / \tau)
        \,\|\, softmax_k(\langle s_n, d_k \rangle / \tau))

    where the d are the keys and :math:`t_n`, the teacher's embedding of the image
    itself. The paper minimises the cross-entropy, which has the same gradient.

    Args:
        student: Embeddings (N, C) of length 1.
        teacher: The same shape; receives no gradient.
        keys: Stored embeddings (K, C) of length 1.
        tau: Temperature of both softmaxes, above 0.

    Returns:
        A scalar, float32 or wider.

    Example:
        >>> rows = torch.eye(2)
        >>> queue_divergence(rows, rows.flip(0), keys=torch.eye(2), tau=1.0)
        tensor(0.3787)
    """
    student, teacher = (
        torch.cat([rows @ keys.T, (rows * teacher).sum(1, keepdim=True)], 1) / tau
        for rows in (student, teacher)
    )
    return kd_divergence(student, teacher).mean()


@MODELS.register_module()
class QueueRelationLoss(nn.Module):
    """SEED on the mean features of each image; see `queue_divergence`.

    The queue contains the teacher's embeddings of earlier images; the oldest are
    overwritten. In training, each step adds the images of all processes after the loss
    is computed, so the queues of all processes stay equal. They need batches of one
    size on all processes. A new queue contains random directions. It is part of the
    checkpoint, so that a resumed run continues with it, and takes
    2 * num_levels * slots * channels bytes.

    Unverified: the paper's temperatures, 0.01 for the teacher and 0.2 for the student,
    and its 65536 embeddings are recalled.
    Deviation: an embedding is the mean over a map, without the paper's projection head.
    Deviation: one temperature of 0.07 for both sides, and 8192 embeddings.

    Args:
        channels: Channels C of the maps of both sides. A ConvConnector aligns them.
        num_levels: Number of levels; each has its own queue.
        slots: Number of embeddings in a queue.
        tau: Temperature.
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If a number is too small or not finite.

    Example:
        >>> loss = QueueRelationLoss(channels=8, slots=100)
        >>> loss(torch.ones(2, 8, 4, 4), torch.ones(2, 8, 5, 5))
        tensor(0.)
        >>> loss.queues[0].ends
        tensor([2])
    """

    examples = (
        Example(
            'map',
            'map of other size',
            arguments=lambda s: dict(
                channels=s.channels, num_levels=s.num_levels, slots=64
            ),
        ),
    )

    def __init__(
        self,
        channels: int,
        num_levels: int = 1,
        slots: int = 8192,
        tau: float = 0.07,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_counts(
            'QueueRelationLoss', channels=channels, num_levels=num_levels, slots=slots
        )
        check_at_least('QueueRelationLoss', 0, loss_weight=loss_weight)
        self.channels = channels
        self.queues = nn.ModuleList(
            ClassQueue(1, slots, channels) for _ in range(num_levels)
        )
        self.tau = check_tau('QueueRelationLoss', tau)
        self.loss_weight = loss_weight

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, level: int = 0) -> Tensor:
        """Return the weighted divergence of maps (N, C, H, W) of any two sizes.

        Raises:
            ValueError: If a map is not 4-D, the numbers of images or the channels
                differ, or there are more levels than queues.
        """
        self._check(student, teacher, level)
        student, teacher = (
            unit_vectors(maps.mean((2, 3))) for maps in (student, teacher)
        )
        queue: ClassQueue = self.queues[level]  # type: ignore[assignment]
        # A copy, because the queue changes before the backward pass.
        keys = queue.keys[0].to(student.dtype, copy=True)
        loss = self.loss_weight * queue_divergence(student, teacher, keys, self.tau)
        if self.training and torch.is_grad_enabled():
            rows = torch.cat(all_gather(teacher))
            queue.push(rows[None], torch.ones_like(rows[None, :, 0], dtype=torch.bool))
        return loss

    def _check(self, student: Tensor, teacher: Tensor, level: int) -> None:
        shapes = f'student {tuple(student.shape)} and teacher {tuple(teacher.shape)}'
        if student.dim() != 4 or teacher.dim() != 4 or len(student) != len(teacher):
            raise ValueError(
                f'expected maps (N, C, H, W) of the same images, got {shapes}'
            )
        wanted = self.channels
        if student.shape[1] != wanted or teacher.shape[1] != wanted:
            raise ValueError(
                f'expected maps with channels={wanted}, got {shapes}; set channels='
                f'{teacher.shape[1]}, and with a student of other channels put a '
                f'ConvConnector with out_channels={teacher.shape[1]} under '
                '`connectors` and name it as the input of this loss'
            )
        if level >= len(self.queues):
            raise ValueError(
                f'there are queues for num_levels={len(self.queues)}, got level '
                f'{level} (counted from 0); set num_levels to the number of levels'
            )
