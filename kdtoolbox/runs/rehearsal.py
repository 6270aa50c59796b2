"""Try the losses of a distillation on made-up images before its data are read."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from mmengine.logging import MessageHub, print_log
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from kdtoolbox.distillers import Distiller
from kdtoolbox.distillers.finite import NonFiniteError

_SIDE = 256
"""Side of the images in pixels, where nothing else is known."""

_LARGEST = 512
"""The images of segmentors are as large as the crops of their training, up to this."""


def rehearse(model: Distiller) -> None:
    """Run one forward of the losses, on a copy, so that what does not fit is told now.

    Records, connectors and losses meet the shapes, levels and classes of both models.
    No weight, buffer or random number of the training changes. What the student itself
    cannot make of such images says nothing about the recipe: then one line tells that
    they were not tried.

    Args:
        model: The distiller, in one process or within DDP.

    Raises:
        ValueError: If a record, a connector or a loss does not work; it names its place
            in the config.
    """
    with torch.random.fork_rng(), _first_iteration():
        torch.manual_seed(0)
        try:
            copy = deepcopy(model).train()
            _tame(copy)
            images, samples = made_up_batch(copy.student)
            copy.loss(images, samples)
        except Exception as error:
            # Our own errors begin with their place in the config. Numbers that overflow
            # do so by weights and images of which the training has others.
            is_ours = str(error).startswith('model.')
            if is_ours and not isinstance(error, NonFiniteError):
                raise
            told = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
            print_log(
                f'The losses were not tried before the first iteration: {told}',
                logger='current',
            )


@contextmanager
def _first_iteration() -> Iterator[None]:
    """Let heads that ask how far the training is, as TOOD's, find its beginning."""
    known = MessageHub.get_current_instance().runtime_info
    before = dict(known)
    known.update(epoch=0, iter=0)
    try:
        yield
    finally:
        known.clear()
        known.update(before)


def _tame(model: nn.Module) -> None:
    """Make weights finite that hold whatever lay in memory before `init_weights`."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.nan_to_num_(0, 0, 0).clamp_(-1, 1)


def made_up_batch(student: Any) -> tuple[Tensor, list]:
    """Return normalised images (2, C, H, W) and samples with what a student learns."""
    # Of the first convolution, which reads the images.
    weight = next(p for p in student.parameters() if p.dim() == 4)
    segments = hasattr(student, 'decode_head')
    height, width = _size(student) if segments else (_SIDE, _SIDE)
    images = torch.randn(2, weight.shape[1], height, width).to(weight)
    make = _segmented if segments else _detected
    return images, [make(student, (height, width), weight.device) for _ in range(2)]


def _size(student: Any) -> tuple[int, int]:
    size = getattr(student.data_preprocessor, 'size', None) or (_SIDE, _SIDE)
    height, width = (min(side, _LARGEST) for side in size)
    return height, width


def _segmented(student: Any, size: Sequence[int], device: torch.device) -> Any:
    from mmseg.structures import SegDataSample

    head: Any = student.decode_head
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    labels = torch.randint(0, head.num_classes, (1, *size), device=device)
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
        masks=BitmapMasks(mask, height, width),
    )
    sample.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4, device=device),
        labels=torch.zeros(0, dtype=torch.long, device=device),
    )
    if hasattr(student, 'semantic_head') or hasattr(student, 'panoptic_head'):
        labels = torch.zeros(1, *size, dtype=torch.long, device=device)
        sample.gt_sem_seg = PixelData(data=labels)
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
