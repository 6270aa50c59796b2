"""Train the first parts of a student on images without labels."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModel
from torch import Tensor, nn

from kdtoolbox.distillers.distiller import Distiller
from kdtoolbox.recorders import Recorder, find_modules
from kdtoolbox.registry import MODELS

PARTS = ('backbone', 'neck')


class Trunk(BaseModel):
    """The backbone of a detector or segmentor and its neck, without heads.

    Args:
        model: The detector or segmentor. The parts are its own, not copies.
        parts: The names of the parts to keep.

    Raises:
        ValueError: If ``parts`` are not those of `Pretrainer`, or the model lacks one.

    Example:
        >>> from kdtoolbox.teachers.models import build_model
        >>> model = build_model('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
        >>> [name for name, _ in Trunk(model).named_children()]
        ['data_preprocessor', 'backbone', 'neck']
    """

    def __init__(self, model: BaseModel, parts: Sequence[str] = PARTS) -> None:
        super().__init__(model.data_preprocessor, getattr(model, 'init_cfg', None))
        if tuple(parts) not in (PARTS, PARTS[:1]):
            raise ValueError(
                f'model.parts: expected {PARTS} or {PARTS[:1]}, got {parts!r}; heads '
                'need labels, and a neck needs the backbone before it'
            )
        for part in parts:
            module = getattr(model, part, None)
            if not isinstance(module, nn.Module):
                raise ValueError(
                    f'model.parts: the student, a {type(model).__name__}, has no '
                    f'{part}; set parts={PARTS[:1]}'
                )
            self.add_module(part, module)

    def extract_feat(self, inputs: Tensor) -> Any:
        """Return the maps of the last part for images (N, 3, H, W)."""
        features = self.backbone(inputs)
        return self.neck(features) if hasattr(self, 'neck') else features

    def forward(
        self,
        inputs: Tensor,
        data_samples: Sequence | None = None,
        mode: str = 'tensor',
    ) -> Any:
        """Compute the maps; return them, or in ``loss`` mode no losses.

        Raises:
            ValueError: In ``predict`` mode.
        """
        if mode == 'predict':
            raise ValueError(
                'a pre-training has no heads and predicts nothing; set '
                'val_dataloader = val_cfg = val_evaluator = None, and evaluate the '
                'model that is fine-tuned from it'
            )
        features = self.extract_feat(inputs)
        return {} if mode == 'loss' else features


@MODELS.register_module()
class Pretrainer(Distiller):
    """Train the backbone and the neck of a student on the maps of a teacher.

    It needs no labels: the losses compare recorded wires alone. The other parts of the
    student are removed, so neither the optimizer nor a checkpoint contains them. Each
    checkpoint gets a ``student_<name>.pth`` beside it, with the keys ``backbone.`` and
    ``neck.``. mmdet and mmseg load it with ``init_cfg=dict(type='Pretrained',
    checkpoint=..., prefix='backbone.')`` in the config of the part.

    Args:
        student: Config of the whole student: a dict, a file or ``package::path``.
        teacher: As for `Distiller`.
        losses: As for `Distiller`. They may not read labels.
        recorders: As for `Distiller`.
        connectors: As for `Distiller`.
        parts: The parts to train, ``('backbone', 'neck')`` or ``('backbone',)``.
        data_preprocessor: As for `Distiller`.
        teachers: As for `Distiller`.

    Raises:
        ValueError: As `Distiller` raises it; if the student lacks a part; or if no
            recorder reads the last part, which would not be trained.
    """

    def __init__(
        self,
        student: str | dict,
        teacher: dict | None = None,
        *,
        losses: Mapping[str, dict],
        recorders: Mapping[str, Mapping[str, Recorder]] | None = None,
        connectors: Mapping[str, dict] | None = None,
        parts: Sequence[str] = PARTS,
        data_preprocessor: dict | None = None,
        teachers: Mapping[str, dict] | None = None,
    ) -> None:
        # Before the student is built, of which it says what is kept.
        self.parts = parts
        super().__init__(
            student,
            teacher,
            losses=losses,
            recorders=recorders,
            connectors=connectors,
            data_preprocessor=data_preprocessor,
            teachers=teachers,
        )
        check_reached(self.student, self.recorders['student'])

    def build_student(
        self, config: str | dict, data_preprocessor: dict | None
    ) -> BaseModel:
        """Return the parts of the student, for ``__init__``."""
        return Trunk(super().build_student(config, data_preprocessor), self.parts)

    def loss(self, inputs: Tensor, data_samples: Sequence) -> dict[str, Any]:
        """Return the losses of the distillation; there are no others.

        Raises:
            NonFiniteError: If an image, a wire or a loss is not finite.
        """
        losses = super().loss(inputs, data_samples)
        if self.wiring.active:
            return losses
        # A step without any gradient would be an error, such as the first of a warmup.
        zeros = [0 * weight.sum() for weight in self.student.parameters()]
        return {name: value + sum(zeros) for name, value in losses.items()}


def check_reached(student: nn.Module, recorders: Mapping[str, Recorder]) -> None:
    """Raise ValueError if no recorder reads the last part of a student."""
    where = 'model.recorders.student'
    last = [name for name in PARTS if hasattr(student, name)][-1]
    sources = [r if isinstance(r, str) else r['source'] for r in recorders.values()]
    paths = [path for x in sources for path in find_modules(student, x, where)]
    if not any(path.partition('.')[0] == last for path in paths):
        raise ValueError(
            f'{where}: no recorder reads the {last}, so no loss trains it; record '
            f"'{last}' for a loss, or leave it out of model.parts"
        )
