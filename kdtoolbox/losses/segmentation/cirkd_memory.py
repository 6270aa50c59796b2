"""Relations to pixels and regions of earlier images (CIRKD, arXiv:2204.06986)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least, check_counts
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import at_least_float32, check_positions
from kdtoolbox.losses.logits.class_logits import IGNORED, check_tau, pixel_labels
from kdtoolbox.losses.logits.kd import kd_divergence
from kdtoolbox.losses.segmentation.class_queue import ClassQueue
from kdtoolbox.registry import MODELS

PIXELS_PER_CLASS = 16
"""How many pixels of a class an image adds to the memory at most, as in the paper."""


def memory_divergence(
    student: Tensor, teacher: Tensor, keys: Tensor, valid: Tensor, tau: float = 0.1
) -> Tensor:
    r"""Compare how pixels resemble remembered embeddings of the teacher.

    .. math:: mean_p \, KL(softmax_k(\langle t_p, m_k \rangle / \tau)
        \,\|\, softmax_k(\langle s_p, m_k \rangle / \tau))

    with s and t brought to length 1.

    Args:
        student: Embeddings (R, C), float32 or wider.
        teacher: Embeddings of the same shape and precision.
        keys: Remembered embeddings (J, C) of length 1.
        valid: Which rows count (R,).
        tau: Temperature of both softmaxes, above 0.

    Returns:
        A scalar; 0 if no row counts.

    Example:
        >>> student, valid = torch.eye(2), torch.ones(2) > 0
        >>> teacher = student.flip(0)
        >>> memory_divergence(student, teacher, torch.eye(2), valid, tau=1.0)
        tensor(0.4621)
    """
    keys = keys.to(student.dtype)
    student, teacher = (
        functional.normalize(rows, dim=1) @ keys.T / tau for rows in (student, teacher)
    )
    terms = kd_divergence(student, teacher)
    return terms.where(valid, 0).sum() / valid.sum().clamp(min=1)


@MODELS.register_module()
class CIRKDMemoryLoss(nn.Module):
    """Relations to remembered pixels and regions of the teacher; `memory_divergence`.

    In training, each image adds up to 16 random pixels of every class it shows and
    their mean, the region, to two `ClassQueue` of the teacher's embeddings; then both
    sides are compared on keys drawn from them. The student's embeddings come from a
    projection head: a 1x1 convolution to the teacher's width, batch norm, ReLU and
    another 1x1 convolution. Head and queues are no part of the exported student.

    The queues take 2 * num_classes * (pixel_slots + region_slots) * teacher_channels
    bytes, on the GPU and in each checkpoint: 428 MB for Cityscapes at 512 channels and
    3.4 GB for the 150 classes of ADE20K, where fewer slots are in place. A checkpoint
    has those of the first process.

    Ignored pixels are neither remembered nor compared; the batch norm of the head sees
    them in training, as do those of the student.

    Deviation: of more than ``max_anchors`` pixels a random part is compared in each
    step; the authors compare all.
    Deviation: the authors' queue of pixels stores those of other classes, too, and
    wraps around to the wrong slots.
    Deviation: the authors gather the embeddings of all GPUs; here each process
    remembers its own, and its batch norm is its own.

    Args:
        num_classes: Number of classes K.
        student_channels: Channels of the student's map.
        teacher_channels: Channels of the teacher's map.
        tau: Temperature.
        pixel_slots: Pixels remembered of each class.
        region_slots: Regions remembered of each class.
        pixel_keys: Pixels drawn in each step: ``pixel_keys // K + 1`` of each class.
        region_keys: Regions drawn likewise.
        max_anchors: The most pixels of a batch that are compared with them.
        loss_weight: Factor on both terms. The paper uses 0.1.

    Raises:
        ValueError: If `tau` is not a finite number above 0, or another number is too
            small.

    Example:
        >>> loss = CIRKDMemoryLoss(19, 4, 8, pixel_slots=50, region_slots=50)
        >>> sum(queue.keys.numel() for queue in (loss.pixels, loss.regions))
        15200
    """

    examples = (
        Example(
            'map',
            'map of other channels',
            arguments=lambda s: dict(
                num_classes=s.classes,
                student_channels=s.channels,
                teacher_channels=s.teacher_channels,
                pixel_slots=500,
                region_slots=500,
                max_anchors=1024,
            ),
            pixel_labels=True,
        ),
    )

    def __init__(
        self,
        num_classes: int,
        student_channels: int,
        teacher_channels: int,
        tau: float = 0.1,
        pixel_slots: int = 20000,
        region_slots: int = 2000,
        pixel_keys: int = 4096,
        region_keys: int = 1024,
        max_anchors: int = 4096,
        loss_weight: float = 0.1,
    ) -> None:
        super().__init__()
        check_counts(
            'CIRKDMemoryLoss',
            num_classes=num_classes,
            student_channels=student_channels,
            teacher_channels=teacher_channels,
            pixel_slots=pixel_slots,
            region_slots=region_slots,
            pixel_keys=pixel_keys,
            region_keys=region_keys,
            max_anchors=max_anchors,
        )
        check_at_least('CIRKDMemoryLoss', 0, loss_weight=loss_weight)
        self.tau = check_tau('CIRKDMemoryLoss', tau)
        self.num_classes = num_classes
        self.channels = (student_channels, teacher_channels)
        self.project = nn.Sequential(
            nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
            nn.BatchNorm2d(teacher_channels),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        )
        self.pixels = ClassQueue(num_classes, pixel_slots, teacher_channels)
        self.regions = ClassQueue(num_classes, region_slots, teacher_channels)
        self.pixel_keys = pixel_keys
        self.region_keys = region_keys
        self.max_anchors = max_anchors
        self.loss_weight = loss_weight

    def forward(
        self, student: Tensor, teacher: Tensor, data_samples: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Return the terms ``pixel`` and ``region`` of two maps (N, C, H, W).

        Raises:
            ValueError: If a map is not 4-D, N, H or W differ, the channels are not
                those of the config, or there are no pixel labels.
        """
        check_positions(student, teacher)
        labels = self._check(student, teacher, data_samples)
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = at_least_float32(student, teacher)
            if self.training:
                self.remember(teacher, labels)
            anchors, valid = self._choose(labels.flatten() != IGNORED)
            student, teacher = (
                maps.movedim(1, -1).flatten(0, 2)[anchors]
                for maps in (self.project(student), teacher)
            )
            draws = dict(
                pixel=self.pixels.draw(self.pixel_keys // self.num_classes + 1),
                region=self.regions.draw(self.region_keys // self.num_classes + 1),
            )
            return {
                name: self.loss_weight
                * memory_divergence(student, teacher, keys, valid, self.tau)
                for name, keys in draws.items()
            }

    @torch.no_grad()
    def remember(self, teacher: Tensor, labels: Tensor) -> None:
        """Add what a batch shows to the queues.

        Args:
            teacher: Embeddings (N, C, H, W), float32 or wider.
            labels: Classes (N, H, W), long, with `IGNORED` for no class.
        """
        rows = functional.normalize(teacher, dim=1).flatten(2).transpose(1, 2)
        classes = torch.arange(self.num_classes, device=labels.device)
        # (N, K, P): no images are looped over, and nothing waits for the GPU.
        shown = labels.flatten(1)[:, None] == classes[:, None]
        noise = torch.rand(shown.shape[0], 1, shown.shape[2], device=labels.device)
        top = noise.where(shown, -1).topk(min(PIXELS_PER_CLASS, rows.shape[1]), dim=2)
        index = top.indices.flatten(1)[..., None].expand(-1, -1, rows.shape[2])
        chosen = rows.gather(1, index).unflatten(1, top.indices.shape[1:])
        self.pixels.push(_by_class(chosen), _by_class(top.values >= 0))
        counted = rows.where(shown.any(1)[..., None], 0)
        means = functional.normalize(shown.to(rows.dtype) @ counted, dim=2)
        self.regions.push(means.transpose(0, 1), shown.any(2).T)

    def _choose(self, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return random positions (R,), those that count first, and which count."""
        noise = torch.rand(len(valid), device=valid.device).where(valid, -1)
        top = noise.topk(min(self.max_anchors, len(valid)))
        return top.indices, top.values >= 0

    def _check(
        self, student: Tensor, teacher: Tensor, data_samples: Sequence[Any]
    ) -> Tensor:
        found = (student.shape[1], teacher.shape[1])
        if found != self.channels:
            raise ValueError(
                f'expected maps of {self.channels} channels, the wires have {found}; '
                f'set student_channels={found[0]}, teacher_channels={found[1]}'
            )
        labels = pixel_labels(data_samples, student.shape[2:], student.device)
        if labels is None:
            raise ValueError(
                'the memory needs pixel labels, and the data samples have no '
                '`gt_sem_seg`; distil a segmentor, or use CIRKDMiniBatchLoss alone'
            )
        return labels


def _by_class(values: Tensor) -> Tensor:
    """Turn what N images have of K classes (N, K, M, ...) into (K, N * M, ...)."""
    return values.transpose(0, 1).flatten(1, 2)
