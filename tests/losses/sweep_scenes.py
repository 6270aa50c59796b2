"""Random inputs for the losses: shapes, values, boxes and labels of a batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from kdtoolbox.losses.detection.targets import DenseTargets, pad_boxes
from kdtoolbox.losses.examples import KINDS, Sizes
from kdtoolbox.losses.logits.class_logits import IGNORED

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
MAGNITUDES = {'normal': 1.0, 'zeros': 0.0, 'tiny': 1e-6, 'large': 1e3, 'constant': 1.0}
BOXES = {
    # Offsets of the two corners from a random point of the image, in pixels.
    'usual': (-9.0, 14.0),
    'small': (-0.2, 0.1),
    'pixel': (-0.5, 0.5),
    'nothing': (0.0, 0.0),
    'wide': (-400.0, 4.0),
    'outside': (500.0, 520.0),
}
SITUATIONS = [
    # Precision, values of student and teacher, labels: each scene is tried with all.
    (torch.float32, 'zeros', 'normal', 'any'),
    (torch.float32, 'normal', 'zeros', 'one'),
    (torch.float32, 'large', 'large', 'any'),
    (torch.float32, 'zeros', 'equal', 'none'),
    (torch.float64, 'tiny', 'equal', 'one'),
    (torch.float16, 'constant', 'equal', 'ignored'),
    (torch.float16, 'tiny', 'constant', 'any'),
    (torch.bfloat16, 'large', 'normal', 'none'),
]
SHARED = ('classifier', 'margin')
"""Wires that do not belong to single images."""


@dataclass(frozen=True, kw_only=True)
class Scene(Sizes):
    """Everything that the inputs are computed from.

    Attributes:
        points: Whether the priors of dense heads are points instead of boxes.
        values: Names of `MAGNITUDES` for student and teacher; the teacher's may be
            'equal', the student's values.
        boxes: For each image, names of `BOXES`, 'whole' for the padded input, or
            'again' for the box before.
        pixels: The labels of pixels and rows: 'any', 'one', 'ignored', or 'none' for
            samples without labels of pixels.
        variant: Any number; it chooses among the cases and settings of a loss.
    """

    seed: int
    points: bool
    dtype: torch.dtype
    values: tuple[str, str]
    boxes: tuple[tuple[str, ...], ...]
    pixels: str
    variant: int

    @property
    def shape(self) -> tuple[int, int]:
        """Return the size of the padded input; the first level has a stride of 8."""
        return 8 * self.levels[0][0], 8 * self.levels[0][1]

    @property
    def strides(self) -> list[int]:
        return [8 * 2**level for level in range(len(self.levels))]


SIDES = st.integers(1, 9)
BOX_NAMES = st.sampled_from([*BOXES, 'whole', 'again'])


@st.composite
def scenes(draw: Callable) -> Scene:
    images = draw(st.integers(1, 3))
    box_sets = st.tuples(*[st.lists(BOX_NAMES, max_size=4).map(tuple)] * images)
    values = st.sampled_from(list(MAGNITUDES))
    others = draw(st.integers(1, 6))
    return Scene(
        seed=draw(st.integers(0, 2**31)),
        images=images,
        levels=tuple(draw(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=3))),
        channels=draw(st.integers(1, 6)),
        teacher_channels=others,
        classes=draw(st.integers(1, 6)),
        anchors=draw(st.integers(1, 2)),
        bins=3,
        points=draw(st.booleans()),
        rows=draw(st.integers(0, 7)),
        queries=4,
        teacher_queries=others,
        dtype=draw(st.sampled_from(DTYPES)),
        values=(draw(values), draw(values | st.just('equal'))),
        boxes=draw(box_sets),
        pixels=draw(st.sampled_from(['any', 'one', 'ignored', 'none'])),
        variant=draw(st.integers(0, 11)),
    )


USUAL = Scene(
    seed=0,
    teacher_channels=3,
    anchors=2,
    points=False,
    teacher_queries=3,
    dtype=torch.bfloat16,
    values=('normal', 'normal'),
    boxes=(('usual', 'wide'), ('small',)),
    pixels='any',
    variant=0,
)
"""The scene of the fast tests."""

Wires = dict[str, list[Tensor]]


@dataclass
class Inputs:
    """Wires, each a list over the levels, and the context of a batch."""

    wires: Wires
    context: dict[str, Any]

    def to(self, dtype: torch.dtype) -> 'Inputs':
        wires = {
            name: [x.to(dtype) if x.is_floating_point() else x for x in levels]
            for name, levels in self.wires.items()
        }
        return replace(self, wires=wires)

    def on(self, device: str) -> 'Inputs':
        return Inputs(moved(self.wires, device), moved(self.context, device))

    def turned(self) -> 'Inputs':
        """Return the same batch with its last image, or row, moved to the front."""
        wires = {
            name: levels if name in SHARED else [x.roll(1, 0) for x in levels]
            for name, levels in self.wires.items()
        }
        context = dict(self.context)
        samples, targets = context['data_samples'], context['targets']
        context['data_samples'] = [*samples[-1:], *samples[:-1]]
        parts = ('labels', 'label_weights', 'priors', 'gt_inds')
        rolled = {
            part: [x.roll(1, 0) for x in getattr(targets, part)] for part in parts
        }
        decode = decoder(rolled['priors'], targets.strides)
        context['targets'] = replace(targets, decode=decode, **rolled)
        return Inputs(wires, context)


def moved(value: Any, device: str) -> Any:
    """Return a copy of tensors on a device, in whatever holds them."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: moved(part, device) for key, part in value.items()}
    if isinstance(value, list):
        return [moved(part, device) for part in value]
    if isinstance(value, SimpleNamespace):
        return SimpleNamespace(**moved(vars(value), device))
    if isinstance(value, DenseTargets):
        parts = moved(vars(value), device)
        decode = decoder(parts['priors'], value.strides)
        return DenseTargets(**parts | dict(decode=decode))
    return value


def make_inputs(scene: Scene, kinds: Mapping[str, str]) -> Inputs:
    """Return random inputs.

    Args:
        scene: The sizes, values, boxes and labels.
        kinds: For each wire its kind, one of `KINDS`.
    """
    generator = torch.Generator().manual_seed(scene.seed)
    wires: Wires = {}
    for name, kind in kinds.items():
        shapes = [KINDS[kind].shape(scene, level) for level in range(scene.num_levels)]
        wires[name] = [_values(scene, name, shape, generator) for shape in shapes]
        twin = wires.get(name.replace('teacher', 'student'), [])
        if 'teacher' in name and scene.values[1] == 'equal':
            pairs = zip(wires[name], twin or wires[name], strict=True)
            wires[name] = [y.clone() if x.shape == y.shape else x for x, y in pairs]
        if kind == 'query boxes':
            # Fractions of the image.
            wires[name] = [x.sigmoid() for x in wires[name]]
    samples = [_sample(scene, boxes, generator) for boxes in scene.boxes]
    context = dict(
        data_samples=samples,
        batch_input_shape=scene.shape,
        targets=_targets(scene, samples, generator),
    )
    return Inputs(wires, context)


def _values(
    scene: Scene, name: str, shape: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    if name == 'labels':
        # The class behind the last one is the background.
        return _labels(scene, shape, generator, scene.classes + 1)
    kind = scene.values['teacher' in name]
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == 'constant':
        values = torch.full_like(values, float(values.sum()) / 3)
    values = MAGNITUDES.get(kind, 1.0) * values
    # Rounded to the dtype, so that all precisions get the same numbers.
    return values.to(scene.dtype)


def _labels(
    scene: Scene, shape: tuple[int, ...], generator: torch.Generator, classes: int
) -> Tensor:
    if scene.pixels == 'ignored':
        return torch.full(shape, IGNORED)
    if scene.pixels == 'one':
        return torch.full(shape, scene.classes - 1)
    labels = torch.randint(classes, shape, generator=generator)
    ignored = torch.rand(shape, generator=generator) < 0.2
    return labels.where(~ignored, IGNORED)


def _sample(scene: Scene, kinds: tuple[str, ...], generator: torch.Generator) -> Any:
    height, width = scene.shape
    extent = torch.tensor([width, height])
    boxes = [torch.tensor([0.0, 0, width, height])]
    for kind in kinds:
        corners = [torch.zeros(2), extent.float()]
        if kind in BOXES:
            point = torch.rand(2, generator=generator) * extent
            corners = [point + step for step in BOXES[kind]]
        boxes.append(boxes[-1] if kind == 'again' else torch.cat(corners))
    labels = torch.randint(scene.classes, (len(kinds),), generator=generator)
    sample = SimpleNamespace(
        gt_instances=SimpleNamespace(bboxes=torch.stack(boxes)[1:], labels=labels),
        metainfo=dict(img_shape=scene.shape),
    )
    if scene.pixels != 'none':
        shape = 1, 2 * scene.levels[0][0], scene.shape[1]
        data = _labels(scene, shape, generator, scene.classes)
        data = data.where(data != IGNORED, 255)
        sample.gt_sem_seg = SimpleNamespace(data=data)
    return sample


def _targets(scene: Scene, samples: list, generator: torch.Generator) -> DenseTargets:
    """Return one prior per anchor, positive where its cell is near a box's centre."""
    boxes, classes, exist = pad_boxes(samples, torch.device('cpu'))
    # A maximum over no boxes would fail, so every image gets a far-away box.
    boxes = functional.pad(boxes, (0, 0, 0, 1), value=-1e4)
    classes, exist = (functional.pad(x, (0, 1)) for x in (classes, exist))
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    labels, priors, indices = [], [], []
    for (height, width), stride in zip(scene.levels, scene.strides, strict=True):
        rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
        cells = torch.cartesian_prod(rows, columns).flip(1) * stride
        half = stride * torch.tensor([[4.0, 4.0], [6.0, 3.0]])[: scene.anchors]
        anchors = torch.cat([cells[:, None] - half, cells[:, None] + half], -1)
        anchors = anchors.flatten(0, 1)
        if scene.points:
            anchors = cells.repeat_interleave(scene.anchors, 0)
        middle = cells.repeat_interleave(scene.anchors, 0)
        near = (middle[:, None] - centers[:, None]).abs().amax(-1) < 1.5 * stride
        hit, index = (near & exist[:, None]).max(-1)
        labels.append(classes.gather(1, index).where(hit, scene.classes))
        indices.append(index.where(hit, -1))
        priors.append(anchors.expand(scene.images, -1, -1))
    positives = torch.stack([(x < scene.classes).sum() for x in labels]).sum()
    weights = [(torch.rand(x.shape, generator=generator) < 0.8).float() for x in labels]
    return DenseTargets(
        labels=labels,
        label_weights=weights,
        priors=priors,
        strides=scene.strides,
        num_classes=scene.classes,
        avg_factor=positives.clamp(min=1).float(),
        decode=decoder(priors, scene.strides),
        gt_inds=indices,
    )


def decoder(
    priors: list[Tensor], strides: list[int]
) -> Callable[[int, Tensor], Tensor]:
    """Return a decoder of boxes: from deltas of anchors, or distances from points."""

    def decode(level: int, raw: Tensor) -> Tensor:
        first, last = raw.split(2, -1)
        prior = priors[level].to(raw.dtype)
        if prior.shape[-1] == 2:
            sides = (strides[level] * x.clamp(-4, 4).exp() for x in (first, last))
            left, right = sides
            return torch.cat([prior - left, prior + right], -1)
        size = prior[..., 2:] - prior[..., :2]
        center = (prior[..., 2:] + prior[..., :2]) / 2 + size * first
        # As mmdet does, bound the delta before the exponential.
        half = size * last.clamp(-4, 4).exp() / 2
        return torch.cat([center - half, center + half], -1)

    return decode
