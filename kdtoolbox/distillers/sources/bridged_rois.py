"""Function-consistent feature distillation of box heads (FCFD, arXiv:2304.11832)."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from kdtoolbox.configuration import did_you_mean
from kdtoolbox.distillers.box_heads import (
    RESPONSES,
    ask_box_head,
    levels_of,
    read_levels,
)
from kdtoolbox.distillers.building import (
    SIDES,
    Sides,
    Wires,
    build_section,
)
from kdtoolbox.distillers.sources.source import Models, Recorders, Source
from kdtoolbox.registry import MODELS

PATHS = dict(cross=('student', 'teacher'), back=('teacher', 'student'))
"""For each path the side of the features and the side whose box head reads them."""


@MODELS.register_module()
class BridgedRoIs(Source):
    """Run each detector's box head on the other detector's features.

    Features count as alike if the rest of a network computes the same from them.
    Learned bridges map the levels of one detector to those of the other. The other's
    RoI extractor and box head then run on the R RoIs of `RoIResponses`, which must be
    earlier in the list. The wires:

    - ``cross.roi_cls`` and ``cross.roi_reg``: the teacher's head on the student's
      bridged features. Gradients reach the bridge and the student below its heads.
    - ``back.roi_cls`` and ``back.roi_reg``: the student's head on the teacher's bridged
      features. Gradients reach the bridge and the student's box head.
    - ``cross.roi_levels`` and ``teacher.roi_levels``: the bridged features and the
      teacher's own, level by level.

    Unverified: the numbers were not compared with those of the authors' code. It is
    unknown to us whether their code bridges levels that no box head reads, such as P6.

    Args:
        bridges: For ``cross`` and ``back`` the config of a connector without its
            ``input``, such as ``dict(type='ConvConnector', ...)`` with one convolution
            per level. A path that is left out has no wires.

    Raises:
        ValueError: If a bridge has another name.
    """

    follows = 'RoIResponses'
    asks_teacher = True

    def __init__(self, bridges: Mapping[str, dict]) -> None:
        super().__init__()
        self.bridges, _ = build_section(bridges, 'bridges', lambda kind: [])
        for name in bridges:
            if name not in PATHS:
                raise ValueError(
                    f'bridges.{name}: no such path{did_you_mean(name, PATHS)}'
                )
        self._paths = list(bridges)

    def record(self, models: Models) -> Recorders:
        """Record the levels that the student's RoI extractor reads."""
        return dict(student=dict(roi_levels=levels_of(models.student)))

    def connect(
        self, models: Models, recorders: Recorders, read: Collection[str]
    ) -> Sides:
        """Return the wires of each path.

        Raises:
            ValueError: If nothing reads the wires of a bridge.
        """
        for path in self._paths:
            if not any(wire.startswith(f'{path}.') for wire in read):
                raise ValueError(
                    f"{self.where}.bridges.{path}: nothing reads '{path}.roi_cls' or "
                    f"'{path}.roi_reg', so the bridge trains nothing; name one of them "
                    'in a loss or remove the bridge'
                )
        sides = {f'{p}.{name}': set(SIDES) for p in self._paths for name in RESPONSES}
        if 'cross' in self._paths:
            sides['cross.roi_levels'] = {'student'}
        return sides

    def make_wires(self, models: Models, wires: Wires, observed: Any) -> Wires:
        """Return the responses of both box heads to the bridged features."""
        # Gradients pass through the teacher's head. It must not learn, even if
        # somebody has set requires_grad.
        models.teacher.requires_grad_(False)
        [rois] = wires['student.rois']
        levels = {
            side: read_levels(model, wires[f'{side}.roi_levels'])
            for side, model in zip(SIDES, models, strict=True)
        }
        made = {'student.roi_levels': levels['student']}
        for path in self._paths:
            source, reader = PATHS[path]
            bridged = self._bridge(path, levels[source], levels[reader])
            made |= ask_box_head(path, getattr(models, reader), bridged, rois)
            made[f'{path}.roi_levels'] = bridged
        return made

    def _bridge(
        self, path: str, levels: list[Tensor], expected: list[Tensor]
    ) -> list[Tensor]:
        """Return levels (N, C, H, W) in the shape that the other box head reads."""
        where = f'{self.where}.bridges.{path}'
        try:
            bridged = self.bridges[path](levels)
        except ValueError as error:
            raise ValueError(f'{where}: {error}') from error
        found, wanted = (
            [tuple(level.shape) for level in maps] for maps in (bridged, expected)
        )
        if found != wanted:
            raise ValueError(
                f'{where}: returns levels {found}, the {PATHS[path][1]} reads '
                f'{wanted}; set out_channels={wanted[0][1]}, and choose detectors '
                'whose RoI extractors have the same strides'
            )
        return bridged
