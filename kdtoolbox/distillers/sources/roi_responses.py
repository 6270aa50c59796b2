"""Responses of two-stage detectors on the student's regions of interest."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch

from kdtoolbox.distillers.box_heads import (
    RESPONSES,
    ask_box_head,
    check_detectors,
    levels_of,
    read_levels,
    record_rois,
)
from kdtoolbox.distillers.building import SIDES, Sides, Wires
from kdtoolbox.distillers.sources.source import Models, Recorders, Source
from kdtoolbox.recorders import Records
from kdtoolbox.registry import MODELS


@MODELS.register_module()
class RoIResponses(Source):
    """Run the teacher's box head on the RoIs that the student samples.

    Two detectors propose and sample different RoIs, so their box heads cannot be
    compared row by row. This source runs the teacher's RoI extractor and box head on
    the R RoIs, of all images, on which the student trains in this step. The wires, of
    one level each:

    - ``student.roi_cls`` and ``teacher.roi_cls``: class logits (R, K + 1).
    - ``student.roi_reg`` and ``teacher.roi_reg``: box deltas (R, 4 * K) class by class.
      Those of a class-agnostic head are repeated for each class.
    - ``roi.labels``: the student's target classes (R,), K for the background.

    Both detectors need mmdet's ``StandardRoIHead`` with the same classes and the same
    ``bbox_coder``. Losses on the proposals need recorders only, such as
    ``dict(rpn_cls='rpn_head.rpn_cls')``.
    """

    reserved = frozenset({*RESPONSES, 'roi_levels', 'rois', 'roi_labels'})
    asks_teacher = True

    def record(self, models: Models) -> Recorders:
        """Record the levels from which the teacher's RoIs are cut.

        Raises:
            ValueError: If a detector has another RoI head, or the two box heads differ.
        """
        check_detectors(models.student, models.teacher)
        return dict(teacher=dict(roi_levels=levels_of(models.teacher)))

    def connect(
        self, models: Models, recorders: Recorders, read: Collection[str]
    ) -> Sides:
        """Return the wires of the responses and of the labels."""
        made = {f'{side}.{name}': {side} for side in SIDES for name in RESPONSES}
        # Labels carry no gradient, so they count as a teacher wire.
        return made | {'roi.labels': {'teacher'}}

    @contextmanager
    def observe(self, models: Models) -> Iterator[Records]:
        """Observe the arguments of the student's box loss."""
        with record_rois(models.student.roi_head.bbox_head) as observed:
            yield observed

    def make_wires(self, models: Models, wires: Wires, observed: Records) -> Wires:
        """Return the responses of both box heads to the student's RoIs."""
        levels = read_levels(models.teacher, wires['teacher.roi_levels'])
        [rois] = observed['rois']
        with torch.no_grad():
            responses = ask_box_head('teacher', models.teacher, levels, rois)
        return {
            **{f'student.{name}': tensors for name, tensors in observed.items()},
            **responses,
            'teacher.roi_levels': levels,
            'roi.labels': observed['roi_labels'],
        }
