"""A student, a hidden teacher, and losses on the wires between them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from kdtoolbox.dense_targets import record_targets
from kdtoolbox.distillers.inheritance import inherit
from kdtoolbox.distillers.wiring import (
    CONTEXT,
    SIDES,
    build_section,
    check_wiring,
    connector_wires,
    loss_wires,
)
from kdtoolbox.normalization import Renormalization
from kdtoolbox.recorders import Recorder, Records, check_recorders, record
from kdtoolbox.registry import MODELS
from kdtoolbox.teacher import Teacher, build_model

Wires = dict[str, list[Tensor]]


@MODELS.register_module()
class Distiller(BaseModel):
    """Train any mmdet detector or mmseg segmentor under a teacher.

    A wire is a list of tensors, one per level or call: ``student.<name>`` and
    ``teacher.<name>`` for each recorder, and a connector's own name for its output.
    In ``predict`` and ``tensor`` mode the distiller is the student.

    Args:
        student: Config of the student: a dict, a file or ``package::path``.
        teacher: Arguments of ``kdtoolbox.teacher.Teacher``.
        recorders: ``dict(student=..., teacher=...)``, each as ``record`` takes it.
        losses: For each logged name, which contains 'loss', a loss with the wires that
            its ``forward`` names: ``student`` and ``teacher``, compared level by level,
            and what else the method reads.
        connectors: For each new wire a connector with the wire ``input`` that it
            reads and, where it takes a second one, ``like``. They run in this order.
        init_student: Start the student's neck and heads from the teacher's, where all
            tensors of a part fit. Says what was copied.

    Raises:
        ValueError: If a path matches no module, a wire does not exist, a loss name
            lacks 'loss', or an entry lacks its wires.
    """

    def __init__(
        self,
        student: str | dict,
        teacher: dict,
        recorders: Mapping[str, Mapping[str, Recorder]],
        losses: Mapping[str, dict],
        connectors: Mapping[str, dict] | None = None,
        init_student: bool = False,
    ) -> None:
        super().__init__()
        self.student = build_model(student)
        self.data_preprocessor = self.student.data_preprocessor
        # The student starts from the weights it would have without distillation.
        with torch.random.fork_rng(devices=[]):
            self.teacher = Teacher(**teacher)
            self.connectors, self._connections = build_section(
                connectors or {}, 'model.connectors', connector_wires
            )
            self.losses, self._comparisons = build_section(
                losses, 'model.losses', loss_wires
            )
        self.init_student = init_student
        self.recorders = self.complete_recorders(_check_sides(recorders))
        check_recorders(
            self.student, self.recorders['student'], 'model.recorders.student'
        )
        self.teacher.check(self.recorders['teacher'])
        check_wiring(self.wire_sides(), self._connections, self._comparisons)
        self._to_teacher = Renormalization(
            self.data_preprocessor, self.teacher.model.data_preprocessor
        )

    def complete_recorders(
        self, recorders: Mapping[str, Mapping[str, Recorder]]
    ) -> Mapping[str, Mapping[str, Recorder]]:
        """Return the recorders of the config with those that a subclass needs."""
        return recorders

    def wire_sides(self) -> dict[str, set[str]]:
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
        """
        if not any(loss.loss_weight for loss in self.losses.values()):
            task_losses = self.student(inputs, data_samples, mode='loss')
            return _merge(task_losses, {name: self._zero() for name in self.losses})
        # First the teacher: its activations are gone before the student's exist.
        teacher_records = self.teacher.observe(
            self.recorders['teacher'],
            self._to_teacher(inputs, data_samples),
            data_samples,
        )
        wanted = any('targets' in _context_of(loss) for loss in self.losses.values())
        with record_targets(self.student, wanted) as targets:
            task_losses, student_records = self.observe_student(inputs, data_samples)
        context = dict(
            data_samples=data_samples,
            batch_input_shape=tuple(inputs.shape[-2:]),
            targets=targets.read(data_samples) if wanted else None,
        )
        wires = self.collect_wires(student_records, teacher_records)
        return _merge(task_losses, self.distill(wires, context))

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
            task_losses = self.student(inputs, data_samples, mode='loss')
        return task_losses, records

    def collect_wires(self, student: Records, teacher: Records) -> Wires:
        """Return the wires that connectors and losses read, by name.

        Args:
            student: The student's records.
            teacher: The teacher's records, without gradient.
        """
        wires = {f'student.{name}': levels for name, levels in student.items()}
        return wires | {f'teacher.{name}': levels for name, levels in teacher.items()}

    def distill(self, wires: Wires, context: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the weighted distillation losses, levels summed.

        Args:
            wires: What `collect_wires` returns.
            context: ``data_samples``, ``batch_input_shape`` and ``targets`` of the
                batch, for the losses that name them.

        Raises:
            ValueError: If the wires of a loss have different numbers of levels.
        """
        wires = dict(wires)
        for name, connector in self.connectors.items():
            sources = [wires[wire] for wire in self._connections[name].values()]
            wires[name] = _explained(f'model.connectors.{name}', connector, *sources)
        distilled: dict[str, Tensor] = {}
        for name, loss in self.losses.items():
            if loss.loss_weight:
                distilled |= self._compare(name, loss, wires, context)
            else:
                distilled[name] = self._zero()
        return distilled

    def _compare(
        self, name: str, loss: nn.Module, wires: Wires, context: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        where = f'model.losses.{name}'
        ends = {key: wires[wire] for key, wire in self._comparisons[name].items()}
        counts = {self._comparisons[name][key]: len(end) for key, end in ends.items()}
        if len(set(counts.values())) > 1:
            told = ', '.join(f'{wire} has {n} levels' for wire, n in counts.items())
            raise ValueError(f'{where}: {told}; record the same levels on both sides')
        read = {key: context[key] for key in _context_of(loss) if key != 'level'}
        if not getattr(loss, 'per_level', True):
            return _terms(name, _explained(where, loss, **ends, **read))
        total: dict[str, Tensor] = {}
        for level, tensors in enumerate(zip(*ends.values(), strict=True)):
            if 'level' in _context_of(loss):
                read['level'] = level
            arguments = dict(zip(ends, tensors, strict=True), **read)
            value = _explained(f'{where}, level {level}', loss, **arguments)
            for key, term in _terms(name, value).items():
                total[key] = total[key] + term if key in total else term
        return total

    def _zero(self) -> Tensor:
        """Return a zero that reaches every trainable parameter of the distillation.

        DDP expects a gradient for each parameter in each step.
        """
        zero = next(self.student.parameters()).new_zeros(())
        for name, module in self.named_children():
            if name != 'student':
                for parameter in module.parameters():
                    zero = zero + 0 * parameter.sum()
        return zero

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
        self.teacher.model._apply(fn, recurse)
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


def _merge(task: Mapping[str, Any], distilled: Mapping[str, Tensor]) -> dict[str, Any]:
    clash = task.keys() & distilled.keys()
    if clash:
        raise ValueError(
            f'model.losses: the student has losses named {sorted(clash)} itself; '
            'choose other names'
        )
    return {**task, **distilled}


def _context_of(loss: nn.Module) -> list[str]:
    return [key for key in inspect.signature(loss.forward).parameters if key in CONTEXT]


def _terms(name: str, value: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {name: value}
    return {f'{name}.{key}': term for key, term in value.items()}


def _explained(where: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    try:
        return module(*args, **kwargs)
    except ValueError as error:
        raise ValueError(f'{where}: {error}') from error
