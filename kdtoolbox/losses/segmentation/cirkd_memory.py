"""Relations to pixels and regions of earlier images (CIRKD, arXiv:2204.06986)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least, check_counts
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import check_positions
from kdtoolbox.losses.logits.class_logits import check_tau
from kdtoolbox.losses.logits.kd import kd_divergence
from kdtoolbox.losses.logits.pixel_labels import IGNORED, pixel_labels
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.losses.segmentation.class_queue import ClassQueue
from kdtoolbox.registry import MODELS

PIXELS_PER_CLASS = 16
"""The most pixels per class that an image adds to the memory, as in the paper."""


def memory_divergence(
    student: Tensor, teacher: Tensor, keys: Tensor, valid: Tensor, tau: float = 0.1
) -> Tensor:
    r"""Compute the divergence of similarities to stored teacher embeddings.

    .. math:: mean_p \, KL(softmax_k(\langle t_p, m_k \rangle / \tau)
        \,\|\, softmax_k(\langle s_p, m_k \rangle / \tau))

    with s and t normalised to length 1.

    Args:
        student: Embeddings (R, C), float32 or wider.
        teacher: Embeddings of the same shape and dtype.
        keys: Stored embeddings (J, C) of length 1.
        valid: Mask (R,) of the rows that count.
        tau: Temperature of both softmaxes, above 0.

    Returns:
        A scalar; 0 without valid rows.

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
    """Relations to stored pixels and regions of the teacher; see `memory_divergence`.

    In training, each image adds teacher embeddings to two queues (`ClassQueue`): up to
    16 random pixels of every class in it, and the mean of each class (the region). Then
    student and teacher are compared on keys drawn from the queues. The student's
    embeddings come from a projection head: a 1x1 convolution to the teacher's width,
    batch norm, ReLU and another 1x1 convolution. Neither head nor queues are exported
    with the student.

    The queues take 2 * num_classes * (pixel_slots + region_slots) * teacher_channels
    bytes on the GPU and in each checkpoint: 428 MB for Cityscapes with 512 channels and
    3.4 GB for the 150 classes of ADE20K, where fewer slots are advisable. A checkpoint
    contains the queues of the first process only.

    Ignored pixels are neither stored nor compared. In training they enter the batch
    statistics of the head, as in the student.

    Deviation: at most ``max_anchors`` random pixels are compared in each step; the
    authors compare all.
    Deviation: the authors' pixel queue also stores pixels of other classes and wraps
    around to the wrong slots.
    Deviation: the authors gather the embeddings of all GPUs; here each process has its
    own queues and batch norm.

    Args:
        num_classes: Number of classes K.
        student_channels: Channels of the student's map.
        teacher_channels: Channels of the teacher's map.
        tau: Temperature.
        pixel_slots: Pixels stored per class.
        region_slots: Regions stored per class.
        pixel_keys: Pixels drawn per step: ``pixel_keys // K + 1`` of each class.
        region_keys: Regions drawn per step, in the same way.
        max_anchors: The most pixels of a batch that are compared with the keys.
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

    @full_precision
    def forward(
        self, student: Tensor, teacher: Tensor, data_samples: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Return the terms ``pixel`` and ``region`` of two maps (N, C, H, W).

        Raises:
            ValueError: If a map is not 4-D, N, H or W differ, the channels differ from
                the config, or there are no pixel labels.
        """
        check_positions(student, teacher)
        labels = self._check(student, teacher, data_samples)
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
        """Add the teacher's embeddings of a batch to the queues.

        Args:
            teacher: Embeddings (N, C, H, W), float32 or wider.
            labels: Classes (N, H, W), long, `IGNORED` at pixels without a class.
        """
        rows = functional.normalize(teacher, dim=1).flatten(2).transpose(1, 2)
        classes = torch.arange(self.num_classes, device=labels.device)
        # A mask (N, K, P) avoids loops over images, which would synchronise the GPU.
        is_class = labels.flatten(1)[:, None] == classes[:, None]
        size = len(rows), 1, rows.shape[1]
        noise = torch.rand(size, device=labels.device)
        top = noise.where(is_class, -1).topk(
            min(PIXELS_PER_CLASS, rows.shape[1]), dim=2
        )
        index = top.indices.flatten(1)[..., None].expand(-1, -1, rows.shape[2])
        chosen = rows.gather(1, index).unflatten(1, top.indices.shape[1:])
        self.pixels.push(_by_class(chosen), _by_class(top.values >= 0))
        rows = rows.where(is_class.any(1)[..., None], 0)
        means = functional.normalize(is_class.to(rows.dtype) @ rows, dim=2)
        self.regions.push(means.transpose(0, 1), is_class.any(2).T)

    def _choose(self, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return random positions (R,), valid ones first, and their validity."""
        noise = torch.rand(len(valid), device=valid.device).where(valid, -1)
        top = noise.topk(min(self.max_anchors, len(valid)))
        return top.indices, top.values >= 0

    def _check(
        self, student: Tensor, teacher: Tensor, data_samples: Sequence[Any]
    ) -> Tensor:
        channels = (student.shape[1], teacher.shape[1])
        if channels != self.channels:
            raise ValueError(
                f'expected maps with {self.channels} channels (student, teacher), got '
                f'{channels}; set student_channels={channels[0]}, '
                f'teacher_channels={channels[1]}'
            )
        labels = pixel_labels(data_samples, student.shape[2:], student.device)
        if labels is None:
            raise ValueError(
                'CIRKDMemoryLoss needs pixel labels, but the data samples have no '
                '`gt_sem_seg`; distil a segmentor, or use CIRKDMiniBatchLoss only'
            )
        return labels


def _by_class(values: Tensor) -> Tensor:
    """Group values (N, K, M, ...) of N images by class: (K, N * M, ...)."""
    return values.transpose(0, 1).flatten(1, 2)
