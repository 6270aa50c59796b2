"""The cases of the sweep: the examples of each loss, and where a loss is special."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sweep_scenes import Scene

from kdtoolbox.losses.examples import Example, examples_of, loss_classes

Arguments = dict[str, Any]
REGISTERED = loss_classes()


@dataclass(frozen=True)
class Case:
    """An example of a loss, and how the sweep checks it.

    Attributes:
        example: The kinds of the wires and the arguments of the constructor.
        settings: Further arguments; a scene chooses one of them.
        least_classes: The smallest number of classes that the loss accepts.
        anchors: The only number of anchors that the loss accepts; None for any.
        points: Whether the priors may be points; otherwise they are boxes.
        fit: Changes the sizes of a scene to sizes that the loss accepts.
        least_images: The smallest number of images that the loss accepts.
        signed: The reason why the value may be below 0.
        random: Whether the loss draws numbers, so that the order of images matters.
        held: The path of a function whose results the gradient treats as constants.
        shown: The terms whose gradient is that of their value; all by default.
        fixed: Wires of the student that receive no gradient.
        training: Whether the loss runs in training mode.
        scale: The factor by which the loss multiplies values of the order of 1.
        precise: The largest relative difference between float32 and float64.
        cost: Divides the number of scenes of the thorough sweep.
    """

    example: Example
    settings: tuple[Arguments, ...] = ({},)
    least_classes: int = 1
    anchors: int | None = None
    points: bool = True
    fit: Callable[[Scene], Scene] = lambda scene: scene
    least_images: int = 1
    signed: str = ''
    random: bool = False
    held: str = ''
    shown: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    training: bool = True
    scale: float = 1.0
    precise: float = 1e-4
    cost: int = 1

    def prepare(self, scene: Scene) -> Scene:
        """Change a scene so that the loss accepts it."""
        kinds = self.example.kinds.values()
        count = max(len(scene.levels), *(kind.tensors or 1 for kind in kinds))
        scene = replace(
            scene,
            levels=(scene.levels * count)[:count],
            images=max(scene.images, self.least_images),
            boxes=(scene.boxes * self.least_images)[
                : max(scene.images, self.least_images)
            ],
            classes=max(scene.classes, self.least_classes),
            anchors=self.anchors or scene.anchors,
            points=scene.points and self.points,
        )
        if self.example.pixel_labels and scene.pixels == 'none':
            scene = replace(scene, pixels='any')
        return self.fit(scene)

    def arguments(self, scene: Scene) -> Arguments:
        chosen = self.settings[scene.variant // 3 % len(self.settings)]
        return self.example.arguments(scene) | chosen


def default_case(example: Example) -> Case:
    """Return the case of an example as its kinds of wires need it."""
    names = example.names.values()
    # A softmax over a single class is constant.
    softmax = 'class logits map' in names or 'RoI logits' in names
    return Case(
        example,
        least_classes=2 if softmax else 1,
        # A head with box distributions has one anchor at each cell.
        anchors=1 if 'box distributions' in names else None,
    )


def doubled_channels(scene: Scene) -> Scene:
    return replace(scene, channels=2 * scene.channels)


def copied_channels(scene: Scene) -> Scene:
    return replace(scene, channels=scene.channels * scene.teacher_channels)


def weighted(*terms: str) -> Arguments:
    return {f'{term}_weight': 1.0 for term in terms}


def either(*settings: Arguments) -> dict[str, Any]:
    return dict(settings=settings)


TAUS = either({}, dict(tau=4.0))
# The square of the largest temperature.
LOGITS: dict[str, Any] = dict(scale=16)
THREE = LOGITS | dict(least_classes=3)
MEMORY = dict(pixel_slots=9, region_slots=5, pixel_keys=12, region_keys=6)
MEMORY['max_anchors'] = 40
TOKENS = dict(num_tokens=3)

SPECIAL: dict[str, dict[str, Any]] = {
    'AttnFDLoss': either({}, dict(legacy_batch_norm=True)),
    'BPKDLoss': dict(scale=1000, **either({}, dict(tau=1.0, radius=1))),
    'CCLoss': either(
        {}, dict(grid=None), dict(kernel='bilinear'), dict(legacy_norm=True)
    ),
    # A batch norm in training refuses a single value per channel.
    'CIRKDMemoryLoss': dict(random=True, training=False, **either(MEMORY)),
    'CIRKDMiniBatchLoss': either(dict(pool_size=2), dict(pool_size=1)),
    'CTKDLoss': dict(
        scale=250,
        **either(dict(ramp_iterations=3), dict(ramp_iterations=1, use_sigmoid=True)),
    ),
    'CWDLoss': dict(scale=16, **TAUS),
    'CrossKDBoxLoss': either({}, dict(mode='iou')),
    'DISTLoss': THREE | either({}, dict(use_sigmoid=True, tau=2.0)),
    'DKDLoss': LOGITS | either({}, dict(non_target_weight=8.0, tau=4.0)),
    'DiffKDLoss': dict(random=True, cost=2, **either(dict(steps=2))),
    'FBKDLoss': dict(
        fit=doubled_channels,
        held='kdtoolbox.losses.features.fbkd._attention',
        **either(weighted('feature', 'channel', 'spatial'), weighted('nonlocal')),
    ),
    'FGDLoss': dict(
        fit=doubled_channels,
        **either(
            weighted('foreground', 'background'),
            weighted('attention', 'relation'),
            dict(legacy_img_shape=True),
        ),
    ),
    'FGFILoss': either({}, dict(legacy_defeat=True)),
    'GIDLoss': dict(
        points=False, held='kdtoolbox.losses.detection.gid.general_instances'
    ),
    'GuidedKDLoss': LOGITS | TAUS,
    'IDDLoss': dict(cost=2),
    'IFVDLoss': either({}, dict(legacy_count_ignored=True)),
    'KDLoss': LOGITS | either({}, dict(use_sigmoid=True, tau=2.0)),
    'LDClsLoss': dict(least_classes=2),
    'LDLoss': dict(points=False, fixed=('student_cls',), scale=100),
    'LSKDLoss': THREE,
    'MasKDLoss': either(
        TOKENS,
        dict(num_tokens=1, weighted=False),
        dict(num_tokens=2, legacy_squared_mask=True),
    ),
    'NFDLoss': either({}, dict(axes='channel'), dict(axes='both')),
    'NKDLoss': LOGITS | TAUS,
    'NORMLoss': dict(fit=copied_channels),
    'NormKDLoss': THREE,
    'PFILoss': either({}, dict(legacy_logits=True)),
    'PGDClsLoss': either({}, dict(legacy_cross_image=True)),
    # For opposite rows the loss is a logarithm of rounding errors of float32.
    'PKTLoss': dict(precise=1e-2, **either({}, dict(grid=2), dict(grid=None))),
    'RKDLoss': either({}, dict(grid=2, normalize=True), dict(grid=None)),
    'SDDLoss': dict(scale=32),
    'SKDHolisticLoss': dict(
        random=True,
        shown=('generator',),
        signed='the critic scores by any number',
        cost=5,
    ),
    'SKDPairwiseLoss': either({}, dict(cells=1), dict(cells=2)),
    'SPLoss': either({}, dict(grid=2), dict(grid=None)),
    'SRDLoss': dict(signed='a logarithm', **either({}, dict(exponent=1.0))),
    'SSIMLoss': either({}, dict(window=5, max_val=4.0)),
    'SemCKDLoss': either(dict(pool_size=1), dict(pool_size=2)),
    'SphericalKDLoss': THREE,
    'TTMLoss': LOGITS | either({}, dict(weighted=True), dict(use_sigmoid=True)),
    'VIDLoss': dict(signed='a code length'),
    'ViTKDLoss': dict(random=True),
    'WSLDLoss': LOGITS | TAUS | dict(held='torch.expm1'),
}
"""What differs from the default case; most losses need nothing here."""

FURTHER: dict[str, list[dict[str, Any]]] = {
    'AffinityLoss': [dict(example=Example(), **either(dict(legacy_channels=True)))],
    'CIRKDMemoryLoss': [dict(training=True, least_images=2)],
    'MasKDLoss': [
        dict(
            held='kdtoolbox.losses.features.maskd.token_masks',
            **either(TOKENS | dict(student_mask_warmup=0)),
        )
    ],
}
"""Further cases of a loss: what differs from its first case."""

WAITS = {
    'GIDLoss': {
        'mmcv.ops.nms.': 'NMS keeps a number of boxes that only their values tell',
        'kdtoolbox.losses.detection.gid._response_errors': 'of ten thousands of '
        'anchors some hundred match; computing the errors of all takes longer',
    },
    'MaskQueryLoss': {
        'kdtoolbox.losses.segmentation.query_matching.match_queries': 'scipy solves '
        'the assignment on the CPU, of all images at once',
    },
}
"""Losses that let the host wait for a GPU: the places and their reasons."""


def cases_of(name: str) -> list[Case]:
    """Return the cases of a registered loss."""
    first = [
        replace(default_case(example), **SPECIAL.get(name, {}))
        for example in examples_of(REGISTERED[name])
    ]
    return [
        *first,
        *(replace(first[0], **changes) for changes in FURTHER.get(name, [])),
    ]


CASES: dict[str, list[Case]] = {name: cases_of(name) for name in REGISTERED}
