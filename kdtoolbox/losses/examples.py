"""Describe example inputs of the losses: kinds of wires and constructor arguments.

A loss class that compares two maps of equal shape and needs no arguments needs no
example. Any other has an attribute ``examples``; the benchmark and the tests of all
losses build their cases from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from kdtoolbox.registry import MODELS


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a batch and of two models; small ones by default.

    Attributes:
        images: N.
        levels: Height and width of each level.
        channels: Channels of a student's feature map.
        teacher_channels: Channels of a teacher's feature map.
        classes: Number of classes, without background.
        anchors: Anchors of a dense head at each cell.
        bins: Bins of each side of a box distribution.
        rows: Number of RoIs or object queries in the batch.
        queries: Mask queries of the student for each image.
        teacher_queries: Mask queries of the teacher for each image.
    """

    images: int = 2
    levels: tuple[tuple[int, int], ...] = ((6, 5), (3, 3))
    channels: int = 4
    teacher_channels: int = 4
    classes: int = 3
    anchors: int = 1
    bins: int = 3
    rows: int = 5
    queries: int = 4
    teacher_queries: int = 4

    @property
    def num_levels(self) -> int:
        """Return the number of levels."""
        return len(self.levels)


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of wire.

    Attributes:
        wire: The usual name of such a wire in a recipe.
        shape: Computes the shape of a tensor from the sizes and the level's index.
        tensors: Number of tensors on the wire; None for one per level.
    """

    wire: str
    shape: Callable[[Sizes, int], Shape]
    tensors: int | None = None


KINDS: dict[str, Kind] = {
    # Feature maps (N, C, H, W) and rows (R, C).
    'map': Kind('fpn', lambda s, i: (s.images, s.channels, *s.levels[i])),
    'map of other channels': Kind(
        'fpn', lambda s, i: (s.images, s.teacher_channels, *s.levels[i])
    ),
    'map of other size': Kind(
        'fpn', lambda s, i: (s.images, s.channels, *s.levels[i][::-1])
    ),
    'map of other channels and size': Kind(
        'fpn', lambda s, i: (s.images, s.teacher_channels, *s.levels[i][::-1])
    ),
    # Two layers of a backbone whose stride does not grow, as in segmentors.
    'map of one size': Kind(
        'layers', lambda s, i: (s.images, s.channels, *s.levels[0]), tensors=2
    ),
    'map of other channels and one size': Kind(
        'layers', lambda s, i: (s.images, s.teacher_channels, *s.levels[0]), tensors=2
    ),
    'feature rows': Kind('rows', lambda s, i: (s.rows, s.channels), tensors=1),
    'feature rows of other channels': Kind(
        'rows', lambda s, i: (s.rows, s.teacher_channels), tensors=1
    ),
    'channel margins': Kind('margin', lambda s, i: (s.channels,)),
    # Segmentors: a logit per class and pixel, and the layer that makes them.
    'class logits map': Kind('cls', lambda s, i: (s.images, s.classes, *s.levels[i])),
    'classifier weights': Kind(
        'classifier', lambda s, i: (s.classes, s.channels, 1, 1)
    ),
    # Dense heads: channels of each anchor one after another.
    'dense class logits': Kind(
        'cls', lambda s, i: (s.images, s.anchors * s.classes, *s.levels[i])
    ),
    'dense boxes': Kind('box', lambda s, i: (s.images, s.anchors * 4, *s.levels[i])),
    'box distributions': Kind(
        'distribution', lambda s, i: (s.images, 4 * s.bins, *s.levels[i])
    ),
    'centerness': Kind('centerness', lambda s, i: (s.images, s.anchors, *s.levels[i])),
    # An RPN has three aspect ratios.
    'objectness': Kind(
        'objectness', lambda s, i: (s.images, 3 * s.anchors, *s.levels[i])
    ),
    # Box heads of two-stage detectors: the last class is the background.
    'RoI logits': Kind('roi_cls', lambda s, i: (s.rows, s.classes + 1), tensors=1),
    'RoI boxes': Kind('roi_box', lambda s, i: (s.rows, 4 * s.classes), tensors=1),
    'RoI labels': Kind('roi_labels', lambda s, i: (s.rows,), tensors=1),
    # Detection transformers: sigmoid logits and boxes as fractions of the image.
    'query logits': Kind('query_cls', lambda s, i: (s.rows, s.classes), tensors=1),
    'query boxes': Kind('query_box', lambda s, i: (s.rows, 4), tensors=1),
    # Mask2Former: one layer of its decoder.
    'mask logits': Kind(
        'masks', lambda s, i: (s.images, s.queries, *s.levels[i]), tensors=1
    ),
    'mask logits of other queries': Kind(
        'masks', lambda s, i: (s.images, s.teacher_queries, *s.levels[i]), tensors=1
    ),
    'mask class logits': Kind(
        'mask_cls', lambda s, i: (s.images, s.queries, s.classes + 1), tensors=1
    ),
    'mask class logits of other queries': Kind(
        'mask_cls', lambda s, i: (s.images, s.teacher_queries, s.classes + 1), tensors=1
    ),
}
"""All kinds of wires. Kinds that share a wire differ in the teacher's sizes alone."""


def no_arguments(sizes: Sizes) -> dict[str, Any]:
    """Return an empty dict: the loss is built with its defaults."""
    return {}


@dataclass(frozen=True)
class Example:
    """How to build a loss and what to give to its ``forward``.

    Attributes:
        student: The kind of the student's wire, one of `KINDS`.
        teacher: The kind of the teacher's wire; None for the student's kind.
        wires: The kinds of further wires, by their names in ``forward``.
        arguments: Computes the constructor's arguments from the sizes.
        connector: Computes the config of a connector in front of the student's wire,
            without its ``input``; None for no connector.
        pixel_labels: Whether the loss needs labels of pixels in ``data_samples``.

    Raises:
        ValueError: If a kind is not one of `KINDS`.

    Example:
        >>> example = Example('RoI logits', wires=dict(labels='RoI labels'))
        >>> {name: kind.wire for name, kind in example.kinds.items()}
        {'student': 'roi_cls', 'teacher': 'roi_cls', 'labels': 'roi_labels'}
    """

    student: str = 'map'
    teacher: str | None = None
    wires: Mapping[str, str] = field(default_factory=dict)
    arguments: Callable[[Sizes], dict[str, Any]] = no_arguments
    connector: Callable[[Sizes], dict[str, Any]] | None = None
    pixel_labels: bool = False

    def __post_init__(self) -> None:
        for name, kind in self.names.items():
            if kind not in KINDS:
                raise ValueError(
                    f'Example: {name}={kind!r} is not a kind of wire; expected one of '
                    f'{sorted(KINDS)}'
                )

    @property
    def names(self) -> dict[str, str]:
        """Return the name of the kind of each wire."""
        teacher = self.teacher or self.student
        return dict(student=self.student, teacher=teacher, **self.wires)

    @property
    def kinds(self) -> dict[str, Kind]:
        """Return the kind of each wire."""
        return {name: KINDS[kind] for name, kind in self.names.items()}


CLASS_LOGITS = (Example('RoI logits'), Example('class logits map'))
"""A loss on class logits of RoIs or of pixels."""

LABELLED_CLASS_LOGITS = (
    Example('RoI logits', wires=dict(labels='RoI labels')),
    Example('class logits map', pixel_labels=True),
)
"""A loss on class logits of RoIs or of pixels, which needs their labels."""

MAPS_AND_ROWS = (
    Example('map', 'map of other channels and size'),
    Example('feature rows', 'feature rows of other channels'),
)
"""A loss on relations: any number of channels and positions."""


def loss_classes() -> dict[str, type[nn.Module]]:
    """Return all registered losses, by name.

    Example:
        >>> loss_classes()['PKDLoss'].__module__
        'kdtoolbox.losses.features.pkd'
    """
    package = __name__.rpartition('.')[0]
    return {
        name: kind
        for name, kind in sorted(MODELS.module_dict.items())
        if kind.__module__.startswith(f'{package}.')
    }


def examples_of(kind: type[nn.Module]) -> tuple[Example, ...]:
    """Return the examples of a loss class: two equal maps if it has none.

    Example:
        >>> from kdtoolbox.losses import PKDLoss
        >>> [example.names for example in examples_of(PKDLoss)]
        [{'student': 'map', 'teacher': 'map'}]
    """
    return getattr(kind, 'examples', (Example(),))
