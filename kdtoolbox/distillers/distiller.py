"""A student, a hidden teacher, and losses on the wires between them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from kdtoolbox.configuration import check_keys
from kdtoolbox.distillers.building import SIDES, Sides, Wires
from kdtoolbox.distillers.dense_targets import record_targets
from kdtoolbox.distillers.finite import IMAGES, Seen, check_finite, finite_step
from kdtoolbox.distillers.initialization import inherit
from kdtoolbox.distillers.normalization import Renormalization
from kdtoolbox.distillers.wiring import Wiring
from kdtoolbox.recorders import Recorder, Records, check_recorders, record
from kdtoolbox.registry import MODELS
from kdtoolbox.teacher import Teacher, build_model


@MODELS.register_module()
class Distiller(BaseModel):
    """Train any mmdet detector or mmseg segmentor under a teacher.

    A wire is a list of tensors, one per level or call: ``student.<name>`` and
    ``teacher.<name>`` for each recorder, and a connector's own name for its output.
    In ``predict`` and ``tensor`` mode the distiller is the student.

    Args:
        student: Config of the student: a dict, a file or ``package::path``.
        teacher: Arguments of ``kdtoolbox.teacher.Teacher``.
        losses: For each logged name, which contains 'loss', a loss with the wires that
            its ``forward`` names: ``student`` and ``teacher``, compared level by level,
            and what else the method reads.
        recorders: ``dict(student=..., teacher=...)``, each as ``record`` takes it.
        connectors: For each new wire a connector with the wire ``input`` that it
            reads and, where it takes a second one, ``like``. Each runs after those
            whose wires it reads, in whatever order they stand.
        init_student: Start the student's neck and heads from the teacher's, where all
            tensors of a part fit. Says what was copied.
        data_preprocessor: The student's, where its own config has none. mmengine's
            Runner puts a config's top-level ``data_preprocessor`` here.

    Raises:
        ValueError: If a path matches no module, a wire does not exist, a loss name
            lacks 'loss', an entry lacks its wires, or connectors read each other in a
            circle.
    """

    def __init__(
        self,
        student: str | dict,
        teacher: dict,
        losses: Mapping[str, dict],
        recorders: Mapping[str, Mapping[str, Recorder]] | None = None,
        connectors: Mapping[str, dict] | None = None,
        init_student: bool = False,
        data_preprocessor: dict | None = None,
    ) -> None:
        super().__init__()
        self.student = build_model(student, data_preprocessor)
        self.data_preprocessor = self.student.data_preprocessor
        # The student starts from the weights it would have without distillation.
        with torch.random.fork_rng(devices=[]):
            check_keys(teacher, Teacher, 'model.teacher')
            self.teacher = Teacher(**teacher)
            wiring = Wiring(losses, connectors)
        # Not registered: checkpoints and optimizers name its parts without a prefix.
        object.__setattr__(self, 'wiring', wiring)
        for name, part in wiring.named_children():
            self.add_module(name, part)
        self.init_student = init_student
        recorders = _check_sides(recorders or {side: {} for side in SIDES})
        self.recorders = self.complete_recorders(recorders)
        check_recorders(
            self.student, self.recorders['student'], 'model.recorders.student'
        )
        self.teacher.check(self.recorders['teacher'])
        self.wiring.connect(self.wire_sides())
        self._to_teacher = Renormalization(
            self.data_preprocessor, self.teacher.model.data_preprocessor
        )

    def complete_recorders(
        self, recorders: Mapping[str, Mapping[str, Recorder]]
    ) -> Mapping[str, Mapping[str, Recorder]]:
        """Return the recorders of the config with those that a subclass needs."""
        return recorders

    def wire_sides(self) -> Sides:
        """Return each wire that `collect_wires` makes with the sides it stems from."""
        return {
            f'{side}.{name}': {side} for side in SIDES for name in self.recorders[side]
        }

    def init_weights(self) -> None:
        """Initialise the student, then copy from the teacher what was asked for."""
        super().init_weights()
        if self.init_student:
            inherit(self.student, self.teacher.model)

    def forward(
        self,
        inputs: Tensor,
        data_samples: Sequence | None = None,
        mode: str = 'tensor',
    ) -> Any:
        """Return the losses in ``loss`` mode, the student's own answer otherwise.

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

        While every loss weight is 0 the teacher does not run.

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
            return _merge(task_losses, zeros)

    def _losses(
        self, inputs: Tensor, data_samples: Sequence, seen: Seen
    ) -> dict[str, Any]:
        _tell_ignored(self.student, data_samples)
        # First the teacher: its activations are gone before the student's exist.
        teacher_records = self.teacher.observe(
            self.recorders['teacher'],
            self._to_teacher(inputs, data_samples),
            data_samples,
        )
        seen |= self._places(_wires_of('teacher', teacher_records))
        wanted = self.wiring.reads_targets
        with record_targets(self.student, wanted) as targets:
            task_losses, student_records = self.observe_student(inputs, data_samples)
        seen |= self._places(_wires_of('student', student_records)) | _own(task_losses)
        context = dict(
            data_samples=data_samples,
            batch_input_shape=tuple(inputs.shape[-2:]),
            targets=targets.read(data_samples) if wanted else None,
        )
        wires = self.collect_wires(student_records, teacher_records)
        seen |= self._places(wires)
        return _merge(task_losses, self.wiring(wires, context, seen))

    def observe_student(
        self, inputs: Tensor, data_samples: Sequence
    ) -> tuple[dict[str, Any], Records]:
        """Run the student's own loss and return it with the student's records."""
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

    def collect_wires(self, student: Records, teacher: Records) -> Wires:
        """Return the wires that connectors and losses read, by name.

        Args:
            student: The student's records.
            teacher: The teacher's records, without gradient.
        """
        return _wires_of('student', student) | _wires_of('teacher', teacher)

    def _places(self, wires: Wires) -> Seen:
        """Return the wires by what an error calls them."""
        known = {f'{side}.{name}' for side in SIDES for name in self.recorders[side]}
        return {
            f'model.recorders.{wire}' if wire in known else f'wire {wire}': levels
            for wire, levels in wires.items()
        }

    def __getattr__(self, name: str) -> Any:
        """Return what the student has by a name that the distiller has not.

        Hooks and other tools look for parts and methods of the model that they know,
        such as ``bbox_head`` and ``set_epoch``.
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
        """The student, where mmdet's hooks look for the model behind a wrapper."""
        return self.student

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any
    ) -> None:
        """Take a plain checkpoint, as an inherited ``load_from`` has it, as student."""
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


def _check_sides(
    recorders: Mapping[str, Mapping[str, Recorder]],
) -> Mapping[str, Mapping[str, Recorder]]:
    if recorders.keys() != set(SIDES):
        raise ValueError(
            f'model.recorders: expected dict(student=..., teacher=...), got keys '
            f'{sorted(recorders)}'
        )
    return recorders


def _tell_ignored(student: Any, data_samples: Sequence) -> None:
    """Write into the samples of a segmentor which label its head ignores."""
    head: Any = getattr(student, 'decode_head', None)
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    if hasattr(head, 'ignore_index'):
        for sample in data_samples:
            sample.set_metainfo(dict(ignore_index=head.ignore_index))


def _merge(task: Mapping[str, Any], distilled: Mapping[str, Tensor]) -> dict[str, Any]:
    clash = task.keys() & distilled.keys()
    if clash:
        raise ValueError(
            f'model.losses: the student has losses named {sorted(clash)} itself; '
            'choose other names'
        )
    return {**task, **distilled}


def _own(task: Mapping[str, Any]) -> Seen:
    # What is logged beside the losses, such as an accuracy, trains nothing.
    return {f"the student's own {key}": task[key] for key in task if 'loss' in key}


def _wires_of(side: str, records: Records) -> Wires:
    return {f'{side}.{name}': levels for name, levels in records.items()}
