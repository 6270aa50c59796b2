"""Random inputs of the losses; part of tools/benchmark.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from kdtoolbox.losses.detection.targets import DenseTargets, pad_boxes
from kdtoolbox.losses.examples import (
    KINDS,
    Example,
    Kind,
    Sizes,
    examples_of,
    loss_classes,
)

Wires = dict[str, list[Tensor]]
ROWS_PER_IMAGE = 512
"""Sampled RoIs of each image."""


@dataclass
class Scene:
    """Random inputs of the losses: wires and the context of a batch."""

    wires: Wires
    context: dict[str, Any]

    def clear(self) -> None:
        """Remove the gradients of the step before."""
        for name, levels in self.wires.items():
            for level in levels:
                level.grad = None
                level.requires_grad_(name.startswith('student.'))


def sizes_of(
    image: Sequence[int], strides: Sequence[int], channels: int, images: int
) -> Sizes:
    """Return the sizes of a batch: COCO's classes, one anchor at each cell."""
    return Sizes(
        images=images,
        levels=tuple((-(-image[0] // s), -(-image[1] // s)) for s in strides),
        channels=channels,
        teacher_channels=channels,
        classes=80,
        anchors=1,
        bins=17,
        rows=images * ROWS_PER_IMAGE,
        queries=100,
        teacher_queries=100,
    )


def wire_names(example: Example) -> dict[str, str]:
    """Return the name of each wire of an example: ``student.fpn`` for ``student``."""
    return {name: _wire_name(name, kind) for name, kind in example.kinds.items()}


def _wire_name(name: str, kind: Kind) -> str:
    if kind is KINDS['RoI labels']:
        return kind.wire
    side = 'teacher' if name.startswith('teacher') else 'student'
    return f'{side}.{kind.wire}'


def make_scene(
    sizes: Sizes, image: Sequence[int], strides: Sequence[int], boxes: int
) -> Scene:
    """Return random inputs for the first example of each loss.

    Args:
        sizes: The sizes of the wires.
        image: Height and width of the images in pixels.
        strides: The stride of each level.
        boxes: Number of boxes of each image.
    """
    torch.manual_seed(0)
    wanted = {
        wire
        for kind in loss_classes().values()
        for wire in wire_names(examples_of(kind)[0]).values()
    }
    wires: Wires = {}
    for side in ('student', 'teacher'):
        for kind in KINDS.values():
            wire = f'{side}.{kind.wire}'
            # Kinds that share a wire have equal shapes here, apart from its direction.
            if wire in wanted and wire not in wires:
                levels = range(kind.tensors or sizes.num_levels)
                wires[wire] = [torch.randn(kind.shape(sizes, i)) for i in levels]
    wires['roi_labels'] = [torch.randint(sizes.classes + 1, (sizes.rows,))]
    samples = [make_sample(boxes, image, sizes.classes) for _ in range(sizes.images)]
    context = dict(
        data_samples=samples,
        batch_input_shape=tuple(image),
        targets=make_targets(samples, sizes.levels, strides, sizes.classes),
    )
    return Scene(wires, context)


def make_sample(boxes: int, image: Sequence[int], classes: int) -> Any:
    """Return random labels of pixels, and boxes of 16 pixels to half the image."""
    extent = torch.tensor([image[1], image[0]])
    first = torch.rand(boxes, 2) * extent / 2
    last = first + 16 + torch.rand(boxes, 2) * (extent / 2 - 16).clamp(min=0)
    instances = SimpleNamespace(
        bboxes=torch.cat([first, last], 1), labels=torch.randint(classes, (boxes,))
    )
    labels = SimpleNamespace(data=torch.randint(classes, (1, *image)))
    return SimpleNamespace(
        gt_instances=instances,
        gt_sem_seg=labels,
        metainfo=dict(img_shape=tuple(image)),
    )


def make_targets(
    samples: list,
    levels: Sequence[Sequence[int]],
    strides: Sequence[int],
    classes: int,
) -> DenseTargets:
    """Return one square anchor per cell, positive where it is near a box's centre."""
    boxes, box_labels, exist = pad_boxes(samples, torch.device('cpu'))
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    labels, priors, indices = [], [], []
    for (height, width), stride in zip(levels, strides, strict=True):
        rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
        cells = torch.cartesian_prod(rows, columns).flip(1) * stride
        near = (cells[:, None] - centers[:, None]).abs().amax(-1) < 1.5 * stride
        hit, index = (near & exist[:, None]).max(-1)
        labels.append(box_labels.gather(1, index).where(hit, classes))
        indices.append(index.where(hit, -1))
        anchors = torch.cat([cells - 4 * stride, cells + 4 * stride], 1)
        priors.append(anchors.expand(len(samples), -1, -1))
    positives = sum((label < classes).sum() for label in labels)
    return DenseTargets(
        labels=labels,
        label_weights=[torch.ones(label.shape) for label in labels],
        priors=priors,
        strides=list(strides),
        num_classes=classes,
        avg_factor=torch.as_tensor(positives).clamp(min=1).float(),
        decode=lambda level, raw: priors[level] + strides[level] * raw,
        gt_inds=indices,
    )
