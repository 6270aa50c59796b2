"""Object queries of DETRs, compared one by one (after KD-DETR, arXiv:2211.08071)."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdtoolbox.distillers.building import SIDES, Sides, Wires
from kdtoolbox.distillers.sources.source import Models, Recorders, Source
from kdtoolbox.registry import MODELS

_PREDICTIONS = ('query_cls', 'query_box')
_STATES = 'query_states'
"""The record of the teacher's decoder, which only this source reads."""

_QUERY_ARGUMENTS = ('query', 'query_pos', 'reference_points')
"""The arguments of a decoder that make up its queries."""


@MODELS.register_module()
class ObjectQueries(Source):
    """Run the student's decoder on the teacher's object queries.

    Two DETRs learn, or choose, different queries, so their predictions cannot be
    compared one by one. This source passes the teacher's queries and reference points
    of this batch through the student's decoder as well. The pass uses the student's own
    memory and is separate from the pass of its task losses. The Q queries of N images
    give the wires

    - ``student.query_cls`` and ``teacher.query_cls``: class logits (N * Q, K),
    - ``student.query_box`` and ``teacher.query_box``: boxes (N * Q, 4) as
      (cx, cy, w, h), in fractions of the image,

    with one level per layer of the decoder. Denoising queries, which DINO adds in
    training, are left out. Supported are Deformable DETR and DINO, with both sides of
    one kind. A recorder such as ``dict(memory='encoder')`` may be added.

    Unverified: this is what KD-DETR calls specific sampling, according to its abstract
    and a third party's description; no authors' code was compared.

    Deviation: the paper also draws random queries for both sides in each step. This
    source uses the teacher's queries only.
    """

    reserved = frozenset({*_PREDICTIONS, _STATES})
    asks_teacher = True
    observes_teacher = True

    def record(self, models: Models) -> Recorders:
        """Record the states of the teacher's decoder.

        Raises:
            ValueError: If a detector is not supported, or the two do not fit.
        """
        _check_detector(models.student, 'model.student')
        _check_detector(models.teacher, 'model.teacher')
        _check_pair(models.student, models.teacher)
        return dict(teacher={_STATES: 'decoder'})

    def connect(
        self, models: Models, recorders: Recorders, read: Collection[str]
    ) -> Sides:
        """Return the wires of the predictions of both sides."""
        return {f'{side}.{name}': {side} for side in SIDES for name in _PREDICTIONS}

    @contextmanager
    def observe(self, models: Models) -> Iterator[tuple[dict, dict]]:
        """Observe the arguments of both decoders."""
        with (
            _arguments(models.student.decoder) as student,
            _arguments(models.teacher.decoder) as teacher,
        ):
            yield student, teacher

    def make_wires(
        self, models: Models, wires: Wires, observed: tuple[dict, dict]
    ) -> Wires:
        """Return the predictions of both sides for the teacher's queries."""
        student, teacher = observed
        queries = {key: teacher[key] for key in _QUERY_ARGUMENTS if key in teacher}
        arguments = {**student, **queries}
        if 'self_attn_mask' in arguments:
            # The mask separates denoising queries, which this pass leaves out.
            arguments['self_attn_mask'] = None
        states = models.student.decoder(**arguments)
        start = queries['reference_points']
        with torch.no_grad():
            expected = _predict(
                models.teacher.bbox_head, wires[f'teacher.{_STATES}'], start
            )
        predictions = dict(
            student=_predict(models.student.bbox_head, states, start), teacher=expected
        )
        return {
            f'{side}.{name}': levels
            for side, found in predictions.items()
            for name, levels in zip(_PREDICTIONS, found, strict=True)
        }


def _predict(
    head: nn.Module, states: Sequence[Tensor], start: Tensor
) -> Iterator[list[Tensor]]:
    """Yield the logits and the boxes of all queries, layer by layer.

    Args:
        head: The detector's head.
        states: What the decoder returns: hidden states (L, N, Q, C) and references.
        start: The reference points of the first layer.
    """
    hidden, references = states
    # DINO's decoder returns the start as well, before the references of its layers.
    steps = [start, *references[-len(hidden) :]]
    return ([x.flatten(0, 1) for x in levels] for levels in head(hidden, steps))


@contextmanager
def _arguments(decoder: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield the keyword arguments of the decoder's last call in the block."""
    observed: dict[str, Any] = {}

    def observe(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        observed.update(kwargs)

    handle = decoder.register_forward_pre_hook(observe, with_kwargs=True)
    try:
        yield observed
    finally:
        handle.remove()


def _check_detector(model: Any, where: str) -> None:
    """Raise ValueError for detectors with another kind of decoder or head."""
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
            f'{where}: ObjectQueries supports the decoders and heads of Deformable '
            f'DETR and DINO, got {kinds}; take a loss on the neck or on '
            "'encoder' without this source"
        )


def _check_pair(student: Any, teacher: Any) -> None:
    student_shape, teacher_shape = (
        {
            'kind of decoder': type(model.decoder).__name__,
            'layers of the decoder': model.decoder.num_layers,
            'embed_dims': model.embed_dims,
            'as_two_stage': model.as_two_stage,
            'classes': model.bbox_head.cls_out_channels,
        }
        for model in (student, teacher)
    )
    for key, value in student_shape.items():
        if value != teacher_shape[key]:
            raise ValueError(
                f'model.student: {key}: {value!r}, the teacher has '
                f"{teacher_shape[key]!r}, so the student's decoder cannot take the "
                "teacher's queries; choose a teacher with the same, or take a loss on "
                "'encoder' without ObjectQueries"
            )
