"""Try the losses of a distillation on random images before any data are read."""

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
"""Default side of the images in pixels."""

_LARGEST = 512
"""Largest side in pixels for segmentors, whose images are as large as their crops."""


def rehearse(model: Distiller) -> None:
    """Compute all losses once on a copy of the model, to find misfits at the start.

    This checks records, connectors and losses against the shapes, levels and classes
    of both models. It changes no weight, buffer or random state of the training. If
    the student itself fails on such images, the recipe may still be right. Then one
    line of the log says that the losses were not tried.

    Args:
        model: The distiller, without a DDP wrapper.

    Raises:
        ValueError: If a record, a connector or a loss does not work. The message begins
            with its config path.
    """
    with torch.random.fork_rng(), _first_iteration():
        torch.manual_seed(0)
        try:
            copy = deepcopy(model).train()
            _make_finite(copy)
            images, samples = made_up_batch(copy.student)
            copy.loss(images, samples)
        except Exception as error:
            # Our own errors begin with a config path. An overflow proves
            # nothing, because the training has other weights and images.
            is_ours = str(error).startswith('model.')
            if is_ours and not isinstance(error, NonFiniteError):
                raise
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
            print_log(
                f'The losses were not tried before the first iteration: {reason}',
                logger='current',
            )


@contextmanager
def _first_iteration() -> Iterator[None]:
    """Set epoch and iteration to 0 for heads that read them, such as TOOD's."""
    known = MessageHub.get_current_instance().runtime_info
    before = dict(known)
    known.update(epoch=0, iter=0)
    try:
        yield
    finally:
        known.clear()
        known.update(before)


def _make_finite(model: nn.Module) -> None:
    """Make all weights finite; before `init_weights` some are uninitialised memory."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.nan_to_num_(0, 0, 0).clamp_(-1, 1)


def made_up_batch(student: Any) -> tuple[Tensor, list]:
    """Return random images (2, C, H, W) and samples with labels for the student."""
    # The first convolution reads the images and so has their channels.
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
