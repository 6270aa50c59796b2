"""Make up a batch of random images with labels, to try models without data."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn

from kdtoolbox.distillers.pretrainer import Trunk

_SIDE = 256
"""Side in pixels of the images for detectors, and of small ones for segmentors."""

_LARGEST = 512
"""Largest side in pixels for segmentors, whose images are as large as their crops."""

_MOST_CLASSES = 8
"""Classes in an image of a segmentor: each becomes a mask of a Mask2Former."""


def made_up_batch(
    model: Any, size: int | Sequence[int] | None = None, num_images: int = 2
) -> tuple[Tensor, list]:
    """Return random images (N, C, H, W) and samples with labels for a model.

    Args:
        model: A detector of mmdet or a segmentor of mmseg, or a trunk of one. The
            samples for a trunk have no labels.
        size: Height and width in pixels, or one number for both; None for a usual size
            of the model.
        num_images: N.
    """
    weight = next(p for p in model.parameters() if p.dim() == 4)
    segments = hasattr(model, 'decode_head')
    if size is None:
        size = usual_size(model)
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.randn(num_images, image_channels(model), height, width).to(weight)
    if isinstance(model, Trunk):
        meta = _meta((height, width))
        return images, [BaseDataElement(metainfo=meta) for _ in images]
    make = _segmented if segments else _detected
    samples = [make(model, (height, width), weight.device) for _ in images]
    return images, samples


def image_channels(model: nn.Module) -> int:
    """Return the channels of the images that a model reads."""
    # The first convolution reads the images; behind a Focus, which YOLOX has, it reads
    # the four pixels of each cell at once.
    name, weight = next((n, p) for n, p in model.named_parameters() if p.dim() == 4)
    parts = name.split('.')
    above = ['.'.join(parts[:length]) for length in range(1, len(parts))]
    focused = any(type(model.get_submodule(p)).__name__ == 'Focus' for p in above)
    return weight.shape[1] // 4 if focused else weight.shape[1]


def usual_size(model: Any) -> tuple[int, int]:
    """Return height and width in pixels: the crops of a segmentor, or 256 x 256."""
    size = None
    if hasattr(model, 'decode_head'):
        size = getattr(model.data_preprocessor, 'size', None)
    height, width = (min(side, _LARGEST) for side in size or (_SIDE, _SIDE))
    return height, width


def sides_of(model: Any) -> list[int | None]:
    """Return sides of images to try, small ones first; None for the usual size."""
    return [_SIDE, None] if max(usual_size(model)) > _SIDE else [None]


def _segmented(student: Any, size: Sequence[int], device: torch.device) -> Any:
    from mmseg.structures import SegDataSample

    head: Any = student.decode_head
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    classes = min(head.num_classes, _MOST_CLASSES)
    labels = torch.randint(0, classes, (1, *size), device=device)
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo=_meta(size))
    sample.gt_edge_map = PixelData(data=torch.zeros_like(labels))
    return sample


def _detected(student: Any, size: Sequence[int], device: torch.device) -> Any:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    height, width = size
    box = [width / 4, height / 4, width * 3 / 4, height * 3 / 4]
    mask = np.zeros((1, height, width), dtype=np.uint8)
    mask[:, height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = 1
    sample = DetDataSample(metainfo=_meta(size))
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([box], device=device),
        labels=torch.zeros(1, dtype=torch.long, device=device),
    )
    # Assigners of models without masks may not support them.
    if any('mask' in name for name, _ in student.named_modules()):
        sample.gt_instances.masks = BitmapMasks(mask, height, width)
    sample.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4, device=device),
        labels=torch.zeros(0, dtype=torch.long, device=device),
    )
    semantic = {'semantic_head', 'panoptic_head', 'roi_head.semantic_head'}
    if semantic & {name for name, _ in student.named_modules()}:
        labels = torch.zeros(1, *size, dtype=torch.long, device=device)
        sample.gt_sem_seg = PixelData(sem_seg=labels)
    return sample


def _meta(size: Sequence[int]) -> dict:
    size = tuple(size)
    return dict(
        img_shape=size,
        ori_shape=size,
        pad_shape=size,
        batch_input_shape=size,
        scale_factor=(1.0, 1.0),
        img_path='made up',
    )
