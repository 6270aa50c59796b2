"""A student, a hidden teacher, and losses on the wires between them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from kdtoolbox.configuration import check_keys
from kdtoolbox.distillers.building import SIDES, Wires
from kdtoolbox.distillers.dense_targets import record_targets
from kdtoolbox.distillers.finite import IMAGES, Seen, check_finite, finite_step
from kdtoolbox.distillers.initialization import inherit
from kdtoolbox.distillers.normalization import Renormalization
from kdtoolbox.distillers.observing import Observer, Step
from kdtoolbox.distillers.sources.assembly import build_sources
from kdtoolbox.distillers.sources.source import Models, Recorders
from kdtoolbox.distillers.wiring import Wiring
from kdtoolbox.recorders import Recorder, Records, record
from kdtoolbox.registry import MODELS
from kdtoolbox.teacher import Teacher, build_model


@MODELS.register_module()
class Distiller(BaseModel):
    """Train any mmdet detector or mmseg segmentor with a teacher.

    A wire is a list of tensors, one per level or call: ``student.<name>`` and
    ``teacher.<name>`` for each recorder, the wires of each source, and for each
    connector its output under its own name. In ``predict`` and ``tensor`` mode only the
    student runs.

    Args:
        student: Config of the student: a dict, a file or ``package::path``.
        teacher: Arguments of ``kdtoolbox.teacher.Teacher``.
        losses: Losses by logged name, which must contain 'loss'. Each sets the wires
            that its ``forward`` reads: ``student`` and ``teacher``, compared level by
            level, and any other wires of the method.
        recorders: ``dict(student=..., teacher=...)``, each as ``record`` takes it.
        connectors: Connectors by the name of the new wire. Each reads the wire
            ``input``, and some a second wire ``like``. They run in the order that
            these wires require, not in that of the config.
        init_student: Copy the teacher's neck and heads to the student at the start. A
            part is copied if all its tensors fit. The log lists the copied parts.
        data_preprocessor: Used if the student's config sets none. mmengine's
            Runner puts a config's top-level ``data_preprocessor`` here.
        sources: Configs of `kdtoolbox.distillers.Source`, for wires that need more
            than a recorder: ``[dict(type='RoIResponses')]``.

    Attributes:
        connectors: The connectors by name.
        losses: The losses by name.
        observers: Functions that get each `Step` before the backward pass. Add one
            before a step and remove it afterwards, as a copy of the model copies it.
        recorders: All recorders, those of sources included.
        wiring: The `Wiring` of sources, connectors and losses.

    Raises:
        ValueError: If a path matches no module, a wire does not exist, a loss name
            lacks 'loss', an entry lacks its wires, connectors read each other in a
            circle, or a source does not support the models.
    """

    wiring: Wiring

    def __init__(
        self,
        student: str | dict,
        teacher: dict,
        losses: Mapping[str, dict],
        recorders: Mapping[str, Mapping[str, Recorder]] | None = None,
        connectors: Mapping[str, dict] | None = None,
        init_student: bool = False,
        data_preprocessor: dict | None = None,
        sources: Sequence[dict] = (),
    ) -> None:
        super().__init__()
        self.student = build_model(student, data_preprocessor)
        self.data_preprocessor = self.student.data_preprocessor
        # The student starts from the weights that it has without distillation. The
        # learned parts of sources do not depend on the teacher's random numbers.
        with torch.random.fork_rng(devices=[]):
            made = build_sources(sources)
        with torch.random.fork_rng(devices=[]):
            check_keys(teacher, Teacher, 'model.teacher')
            self.teacher = Teacher(**teacher)
            wiring = Wiring(losses, connectors, made)
        # As a registered child it would put `wiring.` before the names of parameters
        # in checkpoints and optimizers. Its parts are registered here instead.
        object.__setattr__(self, 'wiring', wiring)
        for name, part in wiring.named_children():
            self.add_module(name, part)
        self.init_student = init_student
        self.observers: list[Observer] = []
        recorders = check_sides(recorders or {side: {} for side in SIDES})
        self.recorders = self.wiring.connect(self._models, recorders)
        self._to_teacher = Renormalization(
            self.data_preprocessor, self.teacher.model.data_preprocessor
        )

    @property
    def _models(self) -> Models:
        return Models(self.student, self.teacher.model)

    def init_weights(self) -> None:
        """Initialise the student, then copy the teacher's parts if `init_student`."""
        super().init_weights()
        if self.init_student:
            inherit(self.student, self.teacher.model)

    def forward(
        self,
        inputs: Tensor,
        data_samples: Sequence | None = None,
        mode: str = 'tensor',
    ) -> Any:
        """Return the losses in ``loss`` mode, the student's own output otherwise.

        Args:
            inputs: Images (N, 3, H, W) from the student's data preprocessor.
            data_samples: The batch's samples.
            mode: 'loss', 'predict' or 'tensor'.
        """
        if mode == 'loss':
            return self.loss(inputs, data_samples or [])
        return self.student(inputs, data_samples, mode=mode)

    def loss(self, inputs: Tensor, data_samples: Sequence) -> dict[str, Any]:
        """Return the student's own losses and those of the distillation.

        The teacher does not run while every loss weight is 0.

        Raises:
            ValueError: If a distillation loss has the name of a student's loss.
            NonFiniteError: If an image, a wire or a loss is not finite.
        """
        with finite_step(data_samples, self) as seen:
            seen[IMAGES] = inputs
            if self.wiring.active:
                return self._losses(inputs, data_samples, seen)
            task_losses = self.student(inputs, data_samples, mode='loss')
            zeros = {name: self.wiring.zero(inputs) for name in self.wiring.losses}
            seen |= _own(task_losses) | {
                f'model.losses.{key}': zeros[key] for key in zeros
            }
            return merge(task_losses, zeros)

    def _losses(
        self, inputs: Tensor, data_samples: Sequence, seen: Seen
    ) -> dict[str, Any]:
        note_ignored_label(self.student, data_samples)
        needs_targets = self.wiring.reads_targets
        with (
            self.wiring.observe(self._models) as observed,
            record_targets(self.student, needs_targets) as targets,
        ):
            # The teacher runs first: its activations are freed before the student's
            # exist.
            teacher_inputs = self._to_teacher(inputs, data_samples)
            found = self.teacher.observe(
                self.recorders['teacher'], teacher_inputs, data_samples
            )
            records = _wires_of('teacher', found)
            seen |= self._places(records)
            task_losses, found = self._observe_student(inputs, data_samples)
        records = _wires_of('student', found) | records
        seen |= self._places(records)
        try:
            wires = self.wiring.collect(self._models, records, observed)
            seen |= self._places(wires)
        finally:
            seen |= _own(task_losses)
        found_targets = targets.read(data_samples) if needs_targets else None
        context = dict(
            data_samples=data_samples,
            batch_input_shape=tuple(inputs.shape[-2:]),
            targets=found_targets,
        )
        losses = self.wiring(wires, context, seen)
        for observer in self.observers:
            made = {name: seen[f'model.connectors.{name}'] for name in self.connectors}
            own = (wires | made, task_losses, losses, found_targets)
            observer(Step(inputs, data_samples, *own))
        return merge(task_losses, losses)

    def _observe_student(
        self, inputs: Tensor, data_samples: Sequence
    ) -> tuple[dict[str, Any], Records]:
        """Compute the student's own losses; return them with the student's records."""
        with record(
            self.student,
            self.recorders['student'],
            require_grad=torch.is_grad_enabled(),
            where='model.recorders.student',
        ) as records:
            try:
                task_losses = self.student(inputs, data_samples, mode='loss')
            except Exception:
                check_finite(self._places(_wires_of('student', records)), data_samples)
                raise
        return task_losses, records

    def _places(self, wires: Wires) -> Seen:
        """Return the wires by the names that errors use."""
        known = {f'{side}.{name}' for side in SIDES for name in self.recorders[side]}
        return {
            f'model.recorders.{wire}' if wire in known else f'wire {wire}': levels
            for wire, levels in wires.items()
        }

    def __getattr__(self, name: str) -> Any:
        """Return the student's attribute if the distiller has none of that name.

        Hooks and other tools look for parts and methods of a plain model, such as
        ``bbox_head`` and ``set_epoch``.
        """
        try:
            return super().__getattr__(name)
        except AttributeError:
            student = self.__dict__.get('_modules', {}).get('student')
            if student is None or not hasattr(student, name):
                raise
            return getattr(student, name)

    @property
    def detector(self) -> BaseModel:
        """The student; mmdet's hooks look here for the model behind a wrapper."""
        return self.student

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any
    ) -> None:
        """Load a plain checkpoint, for example of ``load_from``, into the student."""
        if not any(key.startswith(f'{prefix}student.') for key in state_dict):
            for key in self.student.state_dict():
                if prefix + key in state_dict:
                    value = state_dict.pop(prefix + key)
                    state_dict[f'{prefix}student.{key}'] = value
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable, recurse: bool = True) -> 'Distiller':
        super()._apply(fn, recurse)
        if recurse:
            self.teacher = self.teacher.moved(fn)
        return self


def check_sides(recorders: Recorders) -> Recorders:
    """Return the recorders; raise ValueError if they are not those of two sides."""
    if not isinstance(recorders, Mapping) or recorders.keys() != set(SIDES):
        is_dict = isinstance(recorders, Mapping)
        raise ValueError(
            'model.recorders: expected dict(student=..., teacher=...), got '
            + (f'keys {sorted(recorders)}' if is_dict else repr(recorders))
        )
    for side, named in recorders.items():
        if not isinstance(named, Mapping):
            raise ValueError(
                f'model.recorders.{side}: expected paths by name, such as '
                f"dict(fpn='neck'), got {named!r}; for none write dict()"
            )
    return recorders


def note_ignored_label(student: Any, data_samples: Sequence) -> None:
    """Write the ignored label of a segmentor's head into its samples."""
    head: Any = getattr(student, 'decode_head', None)
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    if hasattr(head, 'ignore_index'):
        for sample in data_samples:
            sample.set_metainfo(dict(ignore_index=head.ignore_index))


def merge(task: Mapping[str, Any], distilled: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return all losses; raise ValueError if two have one name."""
    clash = task.keys() & distilled.keys()
    if clash:
        raise ValueError(
            f'model.losses: the student already has losses named {sorted(clash)}; '
            'choose other names'
        )
    return {**task, **distilled}


def _own(task: Mapping[str, Any]) -> Seen:
    # Other logged values, such as an accuracy, train nothing.
    return {f"the student's own {key}": task[key] for key in task if 'loss' in key}


def _wires_of(side: str, records: Records) -> Wires:
    return {f'{side}.{name}': levels for name, levels in records.items()}
