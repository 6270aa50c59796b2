"""Function-consistent feature distillation of box heads (FCFD, arXiv:2304.11832)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdtoolbox.distillers.building import SIDES, build_section, did_you_mean
from kdtoolbox.distillers.distiller import Distiller, Wires
from kdtoolbox.distillers.roi_distiller import (
    RESPONSES,
    ask_box_head,
    check_detectors,
    check_names,
    levels_of,
    record_rois,
)
from kdtoolbox.recorders import Recorder, Records
from kdtoolbox.registry import MODELS

PATHS = dict(cross=('student', 'teacher'), back=('teacher', 'student'))
"""For each path the side of the features and the side whose box head reads them."""


@MODELS.register_module()
class FCFDDistiller(Distiller):
    """A distiller that has each detector's features read by the other's box head.

    Features are alike if the rest of a network makes the same of them. Learned bridges
    carry the levels that the RoIs are cut from to the other detector, whose extractor
    and box head answer for the R RoIs on which the student trains in this step:

    - ``cross.roi_cls`` and ``cross.roi_reg``: the teacher's head on the student's
      bridged features. Gradients reach the bridge and the student below its heads.
    - ``back.roi_cls`` and ``back.roi_reg``: the student's head on the teacher's bridged
      features. Gradients reach the bridge and the student's box head.
    - ``cross.roi_levels`` and ``teacher.roi_levels``: the bridged features and what
      they should look like, level by level.

    The other wires are those of `RoIDistiller`, from whose demands on the detectors
    these do not differ: ``student.*`` and ``teacher.*`` of ``roi_cls`` and ``roi_reg``,
    and ``roi.labels``.

    Unverified: no number of the authors' code was compared, and whether it bridges
    levels that no box head reads, such as P6, is not known to us.

    Args:
        student: As `Distiller` takes it.
        teacher: As `Distiller` takes it.
        losses: As `Distiller` takes them.
        bridges: For ``cross`` and ``back`` the config of a connector without its
            ``input``, such as ``dict(type='ConvConnector', ...)`` with one convolution
            per level. A path that is left out has no wires.
        recorders: Records beside those of the RoIs and their levels.
        connectors: As `Distiller` takes them.
        init_student: As `Distiller` takes it.
        data_preprocessor: As `Distiller` takes it.

    Raises:
        ValueError: If `RoIDistiller` would refuse the detectors or the records, a
            bridge has another name, or nothing reads what it makes.
    """

    def __init__(
        self,
        student: str | dict,
        teacher: dict,
        losses: Mapping[str, dict],
        bridges: Mapping[str, dict],
        recorders: Mapping[str, Mapping[str, Recorder]] | None = None,
        connectors: Mapping[str, dict] | None = None,
        init_student: bool = False,
        data_preprocessor: dict | None = None,
    ) -> None:
        self._paths = _check_paths(bridges)
        super().__init__(
            student,
            teacher,
            losses,
            recorders,
            connectors,
            init_student,
            data_preprocessor,
        )
        self._check_read()
        with torch.random.fork_rng(devices=[]):
            self.bridges, _ = build_section(bridges, 'model.bridges', lambda kind: [])
        self.wiring.add_module('bridges', self.bridges)

    def complete_recorders(
        self, recorders: Mapping[str, Mapping[str, Recorder]]
    ) -> dict[str, Mapping[str, Recorder]]:
        """Return the recorders with those of the levels that the RoIs are cut from."""
        check_detectors(self.student, self.teacher.model)
        check_names(recorders)
        return {
            side: {**recorders[side], 'roi_levels': levels_of(self._detector(side))}
            for side in SIDES
        }

    def wire_sides(self) -> dict[str, set[str]]:
        """Return each wire with the sides it stems from."""
        made = {f'{side}.{name}': {side} for side in SIDES for name in RESPONSES}
        for path in self._paths:
            made |= {f'{path}.{name}': set(SIDES) for name in RESPONSES}
        if 'cross' in self._paths:
            made['cross.roi_levels'] = {'student'}
        # Labels train nothing, and so are no more the student's than a teacher's wire.
        return super().wire_sides() | made | {'roi.labels': {'teacher'}}

    def observe_student(
        self, inputs: Tensor, data_samples: Sequence
    ) -> tuple[dict[str, Any], Records]:
        """Run the student's own loss; what its box head trains on joins the records."""
        with record_rois(self.student.roi_head.bbox_head) as seen:
            task_losses, records = super().observe_student(inputs, data_samples)
        return task_losses, {**records, **seen}

    def collect_wires(self, student: Records, teacher: Records) -> Wires:
        """Return the records and what the box heads say about the student's RoIs."""
        [rois] = student['rois']
        levels = {}
        for side, records in (('student', student), ('teacher', teacher)):
            extractor = self._detector(side).roi_head.bbox_roi_extractor
            # What lies above, such as a pooled P6, no box head reads.
            levels[side] = records['roi_levels'][: extractor.num_inputs]
        wires = super().collect_wires(student, teacher)
        wires |= {f'{side}.roi_levels': levels[side] for side in SIDES}
        # Gradients pass through its head, and whoever thawed it must not train it.
        self.teacher.model.requires_grad_(False)
        wires |= ask_box_head('teacher', self.teacher.model, levels['teacher'], rois)
        for path in self._paths:
            source, reader = PATHS[path]
            bridged = self._bridge(path, levels[source], levels[reader])
            wires |= ask_box_head(path, self._detector(reader), bridged, rois)
            wires[f'{path}.roi_levels'] = bridged
        return wires | {'roi.labels': student['roi_labels']}

    def _bridge(
        self, path: str, levels: list[Tensor], expected: list[Tensor]
    ) -> list[Tensor]:
        """Return levels (N, C, H, W) in the shape that the other box head reads."""
        try:
            bridged = self.bridges[path](levels)
        except ValueError as error:
            raise ValueError(f'model.bridges.{path}: {error}') from error
        found, wanted = (
            [tuple(level.shape) for level in maps] for maps in (bridged, expected)
        )
        if found != wanted:
            raise ValueError(
                f'model.bridges.{path}: gives levels {found}, the {PATHS[path][1]} '
                f'reads {wanted}; set out_channels={wanted[0][1]}, and choose '
                'detectors whose RoI extractors have the same strides'
            )
        return bridged

    def _detector(self, side: str) -> Any:
        return self.student if side == 'student' else self.teacher.model

    def _check_read(self) -> None:
        sections = (self.wiring.connections, self.wiring.comparisons)
        read = {
            w for ends in sections for wires in ends.values() for w in wires.values()
        }
        for path in self._paths:
            if not any(wire.startswith(f'{path}.') for wire in read):
                raise ValueError(
                    f"model.bridges.{path}: nothing reads '{path}.roi_cls' or "
                    f"'{path}.roi_reg', so that it trains nothing; name one in a loss "
                    'or remove it'
                )


def _check_paths(bridges: Mapping[str, dict]) -> list[str]:
    for name in bridges:
        if name not in PATHS:
            raise ValueError(
                f'model.bridges.{name}: no such path{did_you_mean(name, PATHS)}'
            )
    return list(bridges)
