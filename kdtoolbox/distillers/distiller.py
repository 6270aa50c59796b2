"""A student, a hidden teacher, and losses on the wires between them."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from kdtoolbox.normalization import Renormalization
from kdtoolbox.recorders import Recorder, Records, check_recorders, record
from kdtoolbox.registry import MODELS
from kdtoolbox.teacher import Teacher, build_model

_SIDES = ('student', 'teacher')


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
        losses: For each logged name, which contains 'loss', a loss with the wires
            ``student`` and ``teacher`` that it compares level by level.
        connectors: For each new wire a connector with the wire ``input`` that it
            reads and, where it takes a second one, ``like``. They run in this order.

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
    ) -> None:
        super().__init__()
        self.student = build_model(student)
        self.data_preprocessor = self.student.data_preprocessor
        # The student starts from the weights it would have without distillation.
        with torch.random.fork_rng(devices=[]):
            self.teacher = Teacher(**teacher)
            self.connectors, self._connections = _build(
                connectors or {}, 'connectors', ('input', 'like')
            )
            self.losses, self._comparisons = _build(losses, 'losses', _SIDES)
        self.recorders = _check_sides(recorders)
        check_recorders(
            self.student, self.recorders['student'], 'model.recorders.student'
        )
        self.teacher.check(self.recorders['teacher'])
        self._check_wires()
        self._to_teacher = Renormalization(
            self.data_preprocessor, self.teacher.model.data_preprocessor
        )

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
            distilled = {name: self._zero() for name in self.losses}
            return {**task_losses, **distilled}
        # First the teacher: its activations are gone before the student's exist.
        teacher_records = self.teacher.observe(
            self.recorders['teacher'],
            self._to_teacher(inputs, data_samples),
            data_samples,
        )
        with record(
            self.student,
            self.recorders['student'],
            require_grad=True,
            where='model.recorders.student',
        ) as student_records:
            task_losses = self.student(inputs, data_samples, mode='loss')
        distilled = self.distill(student_records, teacher_records)
        clash = task_losses.keys() & distilled.keys()
        if clash:
            raise ValueError(
                f'model.losses: the student has losses named {sorted(clash)} itself; '
                'choose other names'
            )
        return {**task_losses, **distilled}

    def distill(self, student: Records, teacher: Records) -> dict[str, Tensor]:
        """Return the weighted distillation losses, levels summed.

        Args:
            student: The student's records.
            teacher: The teacher's records, without gradient.

        Raises:
            ValueError: If the two wires of a loss have different numbers of levels.
        """
        wires = {f'student.{name}': levels for name, levels in student.items()}
        wires |= {f'teacher.{name}': levels for name, levels in teacher.items()}
        for name, connector in self.connectors.items():
            sources = [wires[wire] for wire in self._connections[name].values()]
            wires[name] = _explained(f'model.connectors.{name}', connector, *sources)
        distilled: dict[str, Tensor] = {}
        for name, loss in self.losses.items():
            if loss.loss_weight:
                distilled |= self._compare(name, loss, wires)
            else:
                distilled[name] = self._zero()
        return distilled

    def _compare(
        self, name: str, loss: nn.Module, wires: Mapping[str, list[Tensor]]
    ) -> dict[str, Tensor]:
        ends = self._comparisons[name]
        student, teacher = (wires[ends[side]] for side in _SIDES)
        if len(student) != len(teacher):
            raise ValueError(
                f'model.losses.{name}: {ends["student"]} has {len(student)} levels, '
                f'{ends["teacher"]} has {len(teacher)}; record the same levels on both '
                'sides'
            )
        total: dict[str, Tensor] = {}
        for level, pair in enumerate(zip(student, teacher, strict=True)):
            value = _explained(f'model.losses.{name}, level {level}', loss, *pair)
            terms = value if isinstance(value, dict) else {'': value}
            for key, term in terms.items():
                full = f'{name}.{key}' if key else name
                total[full] = total[full] + term if full in total else term
        return total

    def _zero(self) -> Tensor:
        """Return a zero that reaches every trainable parameter of the distillation.

        DDP expects a gradient for each parameter in each step.
        """
        zero = next(self.student.parameters()).new_zeros(())
        for module in (self.connectors, self.losses):
            for parameter in module.parameters():
                zero = zero + 0 * parameter.sum()
        return zero

    def _check_wires(self) -> None:
        wires = [f'{side}.{name}' for side in _SIDES for name in self.recorders[side]]
        for name, connection in self._connections.items():
            for key, wire in connection.items():
                _check_wire(wire, wires, f'model.connectors.{name}.{key}')
            wires.append(name)
        for name, comparison in self._comparisons.items():
            if 'loss' not in name:
                raise ValueError(
                    f'model.losses.{name}: mmengine sums only losses whose name '
                    f"contains 'loss'; call it 'loss_{name}'"
                )
            for side in _SIDES:
                if side not in comparison:
                    raise ValueError(
                        f"model.losses.{name}: expected the wire to compare as '{side}'"
                        f', one of {wires}'
                    )
                _check_wire(comparison[side], wires, f'model.losses.{name}.{side}')

    def _apply(self, fn: Callable, recurse: bool = True) -> 'Distiller':
        super()._apply(fn, recurse)
        self.teacher.model._apply(fn, recurse)
        return self


def _build(
    configs: Mapping[str, dict], where: str, wire_keys: Sequence[str]
) -> tuple[nn.ModuleDict, dict[str, dict[str, str]]]:
    """Build the modules of a config section and split off the wires they join."""
    modules, wires = nn.ModuleDict(), {}
    for name, config in configs.items():
        arguments = dict(config)
        wires[name] = {key: arguments.pop(key) for key in wire_keys if key in arguments}
        if not wires[name]:
            raise ValueError(
                f'model.{where}.{name}: expected a wire as {wire_keys[0]!r}, got only '
                f'{sorted(arguments)}'
            )
        # Without our scope a bare name means the task library's class.
        modules[name] = MODELS.build(dict(arguments, _scope_='kdtoolbox'))
    return modules, wires


def _check_sides(
    recorders: Mapping[str, Mapping[str, Recorder]],
) -> Mapping[str, Mapping[str, Recorder]]:
    if recorders.keys() != set(_SIDES):
        raise ValueError(
            f'model.recorders: expected dict(student=..., teacher=...), got keys '
            f'{sorted(recorders)}'
        )
    return recorders


def _check_wire(wire: str, wires: Sequence[str], where: str) -> None:
    if wire not in wires:
        close = difflib.get_close_matches(wire, wires, n=1)
        hint = f'; did you mean {close[0]!r}?' if close else ''
        raise ValueError(f'{where}: no wire {wire!r} among {list(wires)}{hint}')


def _explained(where: str, module: nn.Module, *arguments: Any) -> Any:
    try:
        return module(*arguments)
    except ValueError as error:
        raise ValueError(f'{where}: {error}') from error
