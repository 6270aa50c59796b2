"""How each registered loss is run in the sweep, and what it promises there."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from sweep_scenes import BINS, QUERIES, Scene, Shape

Arguments = dict[str, Any]


def fpn(s: Scene, level: int) -> tuple[int, ...]:
    return s.images, s.channels, *s.sizes[level]


def wide(s: Scene, level: int) -> tuple[int, ...]:
    return s.images, s.others, *s.sizes[level]


def turned(s: Scene, level: int) -> tuple[int, ...]:
    return s.images, s.channels, *s.sizes[level][::-1]


def other(s: Scene, level: int) -> tuple[int, ...]:
    return s.images, s.others, *s.sizes[level][::-1]


def same_size(s: Scene, level: int) -> tuple[int, ...]:
    return s.images, s.channels, *s.sizes[0]


def copies(s: Scene, level: int) -> tuple[int, ...]:
    return s.images, s.channels * s.others, *s.sizes[level]


def even(s: Scene, level: int) -> tuple[int, ...]:
    return s.images, 2 * s.channels, *s.sizes[level]


def classes(s: Scene, level: int) -> tuple[int, ...]:
    return s.images, s.classes, *s.sizes[level]


def cls(s: Scene, level: int) -> tuple[int, ...]:
    return s.images, s.anchors * s.classes, *s.sizes[level]


def box(s: Scene, level: int) -> tuple[int, ...]:
    return s.images, s.anchors * 4, *s.sizes[level]


def distribution(s: Scene, level: int) -> tuple[int, ...]:
    return s.images, 4 * BINS, *s.sizes[level]


def centerness(s: Scene, level: int) -> tuple[int, ...]:
    return s.images, s.anchors, *s.sizes[level]


def rows(s: Scene, level: int) -> tuple[int, ...]:
    return s.rows, s.classes


def row_labels(s: Scene, level: int) -> tuple[int, ...]:
    return (s.rows,)


def other_rows(s: Scene, level: int) -> tuple[int, ...]:
    return s.rows, s.others


def deltas(s: Scene, level: int) -> tuple[int, ...]:
    return s.rows, 4 * s.classes


def boxes(s: Scene, level: int) -> tuple[int, ...]:
    return s.rows, 4


def masks(s: Scene, level: int) -> tuple[int, ...]:
    return s.images, QUERIES, *s.sizes[level]


def other_masks(s: Scene, level: int) -> tuple[int, ...]:
    return s.images, s.others, *s.sizes[level]


def mask_cls(s: Scene, level: int) -> tuple[int, ...]:
    return s.images, QUERIES, s.classes + 1


def other_mask_cls(s: Scene, level: int) -> tuple[int, ...]:
    return s.images, s.others, s.classes + 1


def weights(s: Scene, level: int) -> tuple[int, ...]:
    return s.classes, s.channels, 1, 1


def margins(s: Scene, level: int) -> tuple[int, ...]:
    return (s.channels,)


@dataclass(frozen=True)
class Case:
    """A loss with its wires.

    Attributes:
        wires: The shape of each wire.
        settings: The arguments of the constructor, one of which a scene chooses.
        sized: Makes further arguments of the sizes of a scene.
        least: The least sizes that the loss accepts, by attributes of `Scene`, and of
            levels.
        exactly: Attributes of `Scene` that the loss allows one value of.
        labelled: Whether it needs labels of pixels.
        unit: Whether the wires of both sides hold fractions.
        signed: Why the value may be below 0.
        random: Whether it draws numbers, so that the order of images matters.
        held: The function whose results the gradient takes for constants.
        shown: The terms whose gradient is that of their value; all by default.
        fixed: Wires of the student that receive no gradient.
        training: Whether it runs in training mode.
        precise: How far precisions may differ, as a share of the value.
        cost: How many times fewer scenes than usual it is checked on.
        scale: By how much it multiplies values of the order of 1.
    """

    wires: dict[str, Shape]
    settings: tuple[Arguments, ...] = ({},)
    sized: Callable[[Scene], Arguments] = lambda s: {}
    least: dict[str, int] = field(default_factory=dict)
    labelled: bool = False
    exactly: dict[str, Any] = field(default_factory=dict)
    unit: bool = False
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
        """Bring a scene to what the loss accepts."""
        least = dict(levels=1) | self.least
        count = max(least.pop('levels'), len(scene.sizes))
        changes = {
            name: max(getattr(scene, name), value) for name, value in least.items()
        }
        changes |= self.exactly
        if self.labelled and scene.pixels == 'none':
            changes['pixels'] = 'any'
        sizes = (scene.sizes * count)[:count]
        return replace(scene, sizes=sizes, **changes)

    def arguments(self, scene: Scene) -> Arguments:
        chosen = self.settings[scene.variant // 3 % len(self.settings)]
        return dict(chosen, **self.sized(scene))


def on(student: Shape, teacher: Shape | None = None, /, **options: Any) -> Case:
    others = options.pop('wires', {})
    wires = dict(student=student, teacher=teacher or student, **others)
    return Case(wires, **options)


def either(*settings: Arguments) -> dict[str, tuple[Arguments, ...]]:
    return dict(settings=settings or ({},))


def weighted(*terms: str) -> Arguments:
    return {f'{term}_weight': 1.0 for term in terms}


def pyramid(s: Scene) -> Arguments:
    return dict(channels=s.channels, num_levels=len(s.sizes))


def even_pyramid(s: Scene) -> Arguments:
    return dict(channels=2 * s.channels, num_levels=len(s.sizes))


def width(s: Scene) -> Arguments:
    return dict(channels=s.channels)


def channels_of_levels(s: Scene) -> Arguments:
    count = len(s.sizes)
    return dict(
        student_channels=[s.channels] * count, teacher_channels=[s.others] * count
    )


def memory(s: Scene) -> Arguments:
    return dict(
        num_classes=s.classes,
        student_channels=s.channels,
        teacher_channels=s.others,
        pixel_slots=9,
        region_slots=5,
        pixel_keys=12,
        region_keys=6,
        max_anchors=40,
    )


def pixel_logits(**options: Any) -> Case:
    options.setdefault('least', dict(classes=2))
    return on(classes, **options)


def row_logits(labels: bool = False, **options: Any) -> Case:
    options.setdefault('least', dict(classes=2))
    return on(rows, wires=dict(labels=row_labels) if labels else {}, **options)


def logits(*settings: Arguments, labels: bool = False, **options: Any) -> list[Case]:
    """A loss on rows and on maps."""
    # The square of the largest temperature.
    options = dict(scale=16) | either(*settings) | options
    return [row_logits(labels, **options), pixel_logits(labelled=labels, **options)]


def relations(*settings: Arguments, **options: Any) -> list[Case]:
    options |= either(*settings)
    return [on(fpn, other, **options), on(rows, other_rows, **options)]


TAUS = dict(), dict(tau=4.0)
SIGMOID = dict(), dict(use_sigmoid=True, tau=2.0)
THREE = dict(least=dict(classes=3))
GUIDES = dict(student_cls=cls, teacher_cls=cls)
REGS = dict(student_reg=box, teacher_reg=box)

CASES: dict[str, list[Case]] = {
    'ABLoss': [on(fpn)],
    'ATLoss': [on(fpn, wide)],
    'AdaptationLoss': [on(fpn)],
    'AffinityLoss': [on(fpn, wide), on(fpn, **either(dict(legacy_channels=True)))],
    'AngularLoss': [on(fpn)],
    'AttnFDLoss': [on(fpn, **either({}, dict(legacy_batch_norm=True)))],
    'BPKDLoss': [
        pixel_logits(labelled=True, scale=1000, **either({}, dict(tau=1.0, radius=1)))
    ],
    'CCLoss': relations(
        {}, dict(grid=None), dict(kernel='bilinear'), dict(legacy_norm=True)
    ),
    'CIRKDMemoryLoss': [
        # A batch norm in training refuses a single value per channel.
        on(fpn, wide, sized=memory, labelled=True, random=True, training=False),
        on(
            fpn,
            wide,
            sized=memory,
            labelled=True,
            random=True,
            least=dict(images=2),
        ),
    ],
    'CIRKDMiniBatchLoss': [on(fpn, wide, **either({}, dict(pool_size=1)))],
    'CTKDLoss': logits(
        dict(ramp_iterations=3),
        dict(ramp_iterations=1, use_sigmoid=True),
        scale=250,
    ),
    'CWDLoss': [on(fpn, scale=16, **either(*TAUS))],
    'ChannelDistillationLoss': [on(fpn, turned)],
    'CrossKDBoxLoss': [
        on(box, wires=dict(teacher_cls=cls), **either({}, dict(mode='iou')))
    ],
    'CrossKDCenternessLoss': [on(centerness)],
    'CrossKDClsLoss': [on(cls)],
    'CrossKDDistributionLoss': [
        on(distribution, wires=dict(teacher_cls=classes), exactly=dict(anchors=1))
    ],
    'DISTLoss': logits({}, dict(use_sigmoid=True, tau=2.0), **THREE),
    'DKDLoss': logits({}, dict(non_target_weight=8.0, tau=4.0), labels=True),
    'DSDCategoryLoss': [pixel_logits()],
    'DSDPixelLoss': [on(same_size, least=dict(levels=2))],
    'DeFeatLoss': [on(fpn)],
    'DeFeatRoILoss': [row_logits(True)],
    'DiffKDLoss': [on(fpn, sized=width, random=True, cost=2, **either(dict(steps=2)))],
    'FAKDLoss': [
        pixel_logits(
            wires=dict(features=fpn, classifier=weights),
            sized=lambda s: dict(num_classes=s.classes, student_channels=s.channels),
            labelled=True,
            **either(dict(ramp_iterations=1)),
        )
    ],
    'FBKDLoss': [
        on(
            even,
            sized=even_pyramid,
            held='kdtoolbox.losses.features.fbkd._attention',
            **either(weighted('feature', 'channel', 'spatial'), weighted('nonlocal')),
        )
    ],
    'FCFDRegressionLoss': [on(deltas)],
    'FGDLoss': [
        on(
            even,
            sized=even_pyramid,
            **either(
                weighted('foreground', 'background'),
                weighted('attention', 'relation'),
                dict(legacy_img_shape=True),
            ),
        )
    ],
    'FGFILoss': [on(fpn, **either({}, dict(legacy_defeat=True)))],
    'FRSFeatureLoss': [on(fpn, wires=dict(teacher_cls=cls))],
    'FRSLogitLoss': [on(cls)],
    'FSPLoss': [on(fpn, turned, wires=dict(student_end=wide, teacher_end=wide))],
    'FTLoss': [
        on(
            fpn,
            wide,
            sized=lambda s: dict(teacher_channels=s.others, factor_channels=s.channels),
        )
    ],
    'FitNetLoss': [on(fpn)],
    'GIDLoss': [
        on(
            fpn,
            wires=GUIDES | REGS,
            exactly=dict(points=False),
            held='kdtoolbox.losses.detection.gid.general_instances',
        )
    ],
    'GuidedKDLoss': logits(*TAUS, labels=True),
    'HCLLoss': [on(fpn)],
    'ICKDLoss': [on(fpn, turned)],
    'IDDLoss': [on(fpn, wide, labelled=True, cost=2)],
    'IFVDLoss': [
        on(fpn, wide, labelled=True, **either({}, dict(legacy_count_ignored=True)))
    ],
    'KDLoss': logits(*SIGMOID),
    'LDClsLoss': [on(cls, least=dict(classes=2))],
    'LDLoss': [
        on(
            distribution,
            wires=dict(student_cls=classes),
            exactly=dict(points=False, anchors=1),
            fixed=('student_cls',),
            scale=100,
        )
    ],
    'LSKDLoss': logits(**THREE),
    'MGDLoss': [on(fpn)],
    'MasKDLoss': [
        on(
            fpn,
            sized=pyramid,
            **either(
                dict(num_tokens=3, allow_random=True),
                dict(num_tokens=1, allow_random=True, weighted=False),
                dict(num_tokens=2, allow_random=True, legacy_squared_mask=True),
            ),
        ),
        on(
            fpn,
            sized=pyramid,
            held='kdtoolbox.losses.features.maskd.token_masks',
            **either(dict(num_tokens=3, allow_random=True, student_mask_warmup=0)),
        ),
    ],
    'MaskQueryLoss': [
        on(
            masks,
            other_masks,
            wires=dict(student_cls=mask_cls, teacher_cls=other_mask_cls),
        )
    ],
    'NFDLoss': [on(fpn, **either({}, dict(axes='channel'), dict(axes='both')))],
    'NKDLoss': logits(*TAUS, labels=True),
    'NORMLoss': [on(copies, wide)],
    'NSTLoss': [on(fpn, wide)],
    'NormKDLoss': logits(**THREE),
    'OFDLoss': [on(fpn), on(fpn, wires=dict(margin=margins))],
    'ObjectnessLoss': [on(centerness)],
    'PFILoss': [on(fpn, wires=GUIDES, **either({}, dict(legacy_logits=True)))],
    'PGDClsLoss': [
        on(
            fpn,
            wires=dict(teacher_cls=cls, teacher_reg=box),
            sized=lambda s: dict(level_weights=[1.0] * len(s.sizes)),
            **either({}, dict(legacy_cross_image=True)),
        )
    ],
    'PGDRegLoss': [on(fpn, wires=dict(teacher_cls=cls, teacher_reg=box))],
    'PKDLoss': [on(fpn)],
    # Of opposite rows it takes the logarithm of the last digits of float32.
    'PKTLoss': relations({}, dict(grid=2), dict(grid=None), precise=1e-2),
    'QueryBoxLoss': [on(boxes, wires=dict(teacher_cls=rows), unit=True)],
    'QueryClassLoss': [on(rows)],
    'RKDLoss': relations({}, dict(grid=2, normalize=True), dict(grid=None)),
    'RMLoss': [on(cls)],
    'RoIRegressionLoss': [on(deltas, wires=dict(labels=row_labels))],
    'SDDLoss': [pixel_logits(labelled=True, scale=32)],
    'SKDHolisticLoss': [
        pixel_logits(
            sized=lambda s: dict(num_classes=s.classes),
            random=True,
            shown=('generator',),
            signed='the critic scores by any number',
            cost=5,
        )
    ],
    'SKDPairwiseLoss': [on(fpn, wide, **either({}, dict(cells=1), dict(cells=2)))],
    'SPLoss': relations({}, dict(grid=2), dict(grid=None)),
    'SRDLoss': [
        on(kind, signed='a logarithm', **either({}, dict(exponent=1.0)))
        for kind in (fpn, rows)
    ],
    'SSIMLoss': [on(fpn, **either({}, dict(window=5, max_val=4.0)))],
    'SemCKDLoss': [
        on(fpn, wide, sized=channels_of_levels, **either({}, dict(pool_size=2))),
    ],
    'SphericalKDLoss': logits(**THREE),
    'TTMLoss': logits({}, dict(weighted=True), dict(use_sigmoid=True)),
    'VIDLoss': [on(fpn, sized=pyramid, signed='a code length')],
    'ViTKDLoss': [on(fpn, sized=width, random=True)],
    'WSLDLoss': logits(*TAUS, labels=True, held='torch.expm1'),
}
