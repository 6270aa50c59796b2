"""Object queries of DETRs, compared one by one (after KD-DETR, arXiv:2211.08071)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdtoolbox.distillers.building import SIDES
from kdtoolbox.distillers.distiller import Distiller, Wires
from kdtoolbox.recorders import Recorder, Records
from kdtoolbox.registry import MODELS

_PREDICTIONS = ('query_cls', 'query_box')
_STATES = 'query_states'
"""The record of the teacher's decoder, there for the distiller alone."""

_ASKED = ('query', 'query_pos', 'reference_points')
"""The arguments of a decoder that are its question to the image."""


@MODELS.register_module()
class QueryDistiller(Distiller):
    """A distiller that asks the student's decoder the teacher's object queries.

    Two DETRs learn, or choose, queries of their own, so that their predictions cannot
    be compared one by one. Here the teacher's queries and reference points of this
    batch go through the student's decoder too, on the student's own memory and in a
    pass apart from that of its task losses. The Q queries of N images give the wires

    - ``student.query_cls`` and ``teacher.query_cls``: class logits (N * Q, K),
    - ``student.query_box`` and ``teacher.query_box``: boxes (N * Q, 4) as
      (cx, cy, w, h), in fractions of the image,

    with a level for each layer of the decoder, to which no recorder is needed. Queries
    for denoising, as DINO adds them in training, take no part. Known are Deformable
    DETR and DINO, both sides of one kind.

    Unverified: this is what KD-DETR calls specific sampling, as its abstract and a
    third party tell it; no authors' code was compared.

    Deviation: the paper also draws random queries for both sides in each step; here
    there are the teacher's alone.

    Args:
        student: As `Distiller` takes it.
        teacher: As `Distiller` takes it.
        losses: As `Distiller` takes them.
        recorders: Records beside those of the queries, such as
            ``dict(memory='encoder')``.
        connectors: As `Distiller` takes them.
        init_student: As `Distiller` takes it.
        data_preprocessor: As `Distiller` takes it.

    Raises:
        ValueError: If a detector is no such DETR, the two do not fit, or a record has a
            name that is used here.
    """

    # What both decoders are given in a step; `loss` fills and empties it.
    _calls: tuple[dict, dict] = ({}, {})

    def complete_recorders(
        self, recorders: Mapping[str, Mapping[str, Recorder]]
    ) -> dict[str, Mapping[str, Recorder]]:
        """Return the recorders with that of the teacher's decoder, to run that far."""
        _check_detector(self.student, 'model.student')
        _check_detector(self.teacher.model, 'model.teacher')
        _check_pair(self.student, self.teacher.model)
        for side, named in recorders.items():
            taken = named.keys() & {*_PREDICTIONS, _STATES}
            if taken:
                raise ValueError(
                    f'model.recorders.{side}: QueryDistiller makes {sorted(taken)} '
                    'itself; choose other names'
                )
        teacher = {**recorders['teacher'], _STATES: 'decoder'}
        return dict(student=recorders['student'], teacher=teacher)

    def wire_sides(self) -> dict[str, set[str]]:
        """Return each wire with the sides it stems from."""
        made = {f'{side}.{name}': {side} for side in SIDES for name in _PREDICTIONS}
        return super().wire_sides() | made

    def loss(self, inputs: Tensor, data_samples: Sequence) -> dict[str, Any]:
        """Return the losses; what both decoders are given in the step is kept in it."""
        with (
            _arguments(self.student.decoder) as mine,
            _arguments(self.teacher.model.decoder) as theirs,
        ):
            self._calls = mine, theirs
            try:
                return super().loss(inputs, data_samples)
            finally:
                # They hold the student's graph.
                self._calls = {}, {}

    def collect_wires(self, student: Records, teacher: Records) -> Wires:
        """Return the records and what both sides say to the teacher's queries."""
        wires = super().collect_wires(student, teacher)
        mine, theirs = self._calls
        asked = {key: theirs[key] for key in _ASKED if key in theirs}
        given = {**mine, **asked}
        if 'self_attn_mask' in given:
            # It keeps the student's denoising apart, which is not asked here.
            given['self_attn_mask'] = None
        states = self.student.decoder(**given)
        start = asked['reference_points']
        with torch.no_grad():
            answer = _predict(self.teacher.model.bbox_head, teacher[_STATES], start)
        for side, made in (
            ('student', _predict(self.student.bbox_head, states, start)),
            ('teacher', answer),
        ):
            for name, levels in zip(_PREDICTIONS, made, strict=True):
                wires[f'{side}.{name}'] = levels
        return wires


def _predict(
    head: nn.Module, states: Sequence[Tensor], start: Tensor
) -> Iterator[list[Tensor]]:
    """Yield the logits and the boxes of all queries, layer by layer.

    Args:
        head: The detector's head.
        states: What the decoder returns: hidden states (L, N, Q, C) and references.
        start: The reference points that the first layer was given.
    """
    hidden, references = states
    # DINO's decoder returns the start too, before those of its layers.
    steps = [start, *references[-len(hidden) :]]
    return ([x.flatten(0, 1) for x in levels] for levels in head(hidden, steps))


@contextmanager
def _arguments(decoder: nn.Module) -> Iterator[dict[str, Any]]:
    """Keep the arguments of the decoder's last call in the block."""
    seen: dict[str, Any] = {}

    def see(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)

    handle = decoder.register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def _check_detector(model: Any, where: str) -> None:
    """Refuse detectors whose decoder or head is called in a way of its own."""
    from mmdet.models.dense_heads import DeformableDETRHead
    from mmdet.models.layers import (
        DeformableDetrTransformerDecoder,
        DinoTransformerDecoder,
    )

    decoder, head = getattr(model, 'decoder', None), getattr(model, 'bbox_head', None)
    known = [
        x.forward for x in (DeformableDetrTransformerDecoder, DinoTransformerDecoder)
    ]
    if (
        getattr(type(decoder), 'forward', None) not in known
        or getattr(type(head), 'forward', None) is not DeformableDETRHead.forward
    ):
        kinds = ', '.join(type(x).__name__ for x in (model, decoder, head))
        raise ValueError(
            f'{where}: QueryDistiller knows the decoders and heads of Deformable DETR '
            f"and DINO, got {kinds}; take a loss on the neck or on 'encoder' under "
            "type='kdtoolbox.Distiller'"
        )


def _check_pair(student: Any, teacher: Any) -> None:
    mine, theirs = (
        {
            'kind of decoder': type(model.decoder).__name__,
            'layers of the decoder': model.decoder.num_layers,
            'embed_dims': model.embed_dims,
            'as_two_stage': model.as_two_stage,
            'classes': model.bbox_head.cls_out_channels,
        }
        for model in (student, teacher)
    )
    for key, value in mine.items():
        if value != theirs[key]:
            raise ValueError(
                f'model.student: {key}: {value!r}, the teacher has {theirs[key]!r}, so '
                "that the student cannot be asked this teacher's queries; choose a "
                "teacher with the same, or take a loss on 'encoder' under "
                "type='kdtoolbox.Distiller'"
            )
