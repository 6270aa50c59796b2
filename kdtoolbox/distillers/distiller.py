"""A student, hidden teachers, and losses on the wires between them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModel, ModuleDict
from torch import Tensor, nn

from kdtoolbox.distillers.building import Wires
from kdtoolbox.distillers.checks import check_options, check_sides
from kdtoolbox.distillers.dense_targets import record_targets
from kdtoolbox.distillers.finite import IMAGES, Seen, check_finite, finite_step
from kdtoolbox.distillers.initialization import inherit
from kdtoolbox.distillers.observing import Observer, Step
from kdtoolbox.distillers.sources.assembly import build_sources
from kdtoolbox.distillers.wiring import Wiring
from kdtoolbox.recorders import Recorder, Records, record
from kdtoolbox.registry import MODELS
from kdtoolbox.teachers import Teacher, build_teachers
from kdtoolbox.teachers.kinds import check_init, check_peers
from kdtoolbox.teachers.models import build_model
from kdtoolbox.teachers.normalization import Renormalization


@MODELS.register_module()
class Distiller(BaseModel):
    """Train any mmdet detector or mmseg segmentor with teachers.

    A wire is a list of tensors, one per level or call: ``student.<name>`` and
    ``teacher.<name>`` for each recorder, the wires of each source, and for each
    connector its output under its own name. In ``predict`` and ``tensor`` mode only the
    student runs.

    A loss may read a wire of the student as ``teacher``, such as a deeper layer: no
    gradient flows into it. A distillation without a teacher needs no ``teacher``.

    Args:
        student: Config of the student: a dict, a file or ``package::path``.
        teacher: Config of the teacher, for `kdtoolbox.teachers.build_teacher`.
        losses: Losses by logged name, which must contain 'loss'. Each sets the wires
            that its ``forward`` reads: ``student`` and ``teacher``, compared level by
            level, and any other wires of the method.
        recorders: ``dict(student=..., teacher=...)``, each as ``record`` takes it, with
            one entry for each model.
        connectors: Connectors by the name of the new wire. Each reads the wire
            ``input``, and some a second wire ``like``. They run in the order that
            these wires require, not in that of the config.
        init_student: Copy the teacher's neck and heads to the student at the start. A
            part is copied if all its tensors fit. The log lists the copied parts. With
            several teachers, the name of one of them.
        data_preprocessor: Used if the student's config sets none. mmengine's
            Runner puts a config's top-level ``data_preprocessor`` here.
        sources: Configs of `kdtoolbox.distillers.Source`, for wires that need more
            than a recorder: ``[dict(type='RoIResponses')]``. With several teachers
            each names one: ``dict(type='RoIResponses', teacher='a')``.
        teachers: Configs of several teachers by name, instead of ``teacher``. The name
            begins the wires: ``a.<name>``.
        peers: Configs of further students by name, for mutual learning
            (arXiv:1706.00384). They train on the same batch with their own losses,
            which the log calls ``a.<loss>``, and their wires can be the ``student`` or
            the ``teacher`` of a loss. Only the student is evaluated and exported.

    Attributes:
        connectors: The connectors by name.
        losses: The losses by name.
        observers: Functions that get each `Step` before the backward pass. Add one
            before a step and remove it afterwards, as a copy of the model copies it.
        recorders: All recorders, those of sources included.
        teachers: The teachers by name.
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
        teacher: dict | None = None,
        *,
        losses: Mapping[str, dict],
        recorders: Mapping[str, Mapping[str, Recorder]] | None = None,
        connectors: Mapping[str, dict] | None = None,
        init_student: bool | str = False,
        data_preprocessor: dict | None = None,
        sources: Sequence[dict] = (),
        teachers: Mapping[str, dict] | None = None,
        peers: Mapping[str, str | dict] | None = None,
    ) -> None:
        super().__init__()
        self.student = self.build_student(student, data_preprocessor)
        self.data_preprocessor = self.student.data_preprocessor
        # The student starts from the weights that it has without distillation. The
        # learned parts of sources do not depend on the teacher's random numbers.
        with torch.random.fork_rng(devices=[]):
            made = build_sources(sources)
        with torch.random.fork_rng(devices=[]):
            self.teachers = build_teachers(teacher, teachers, self.student)
            wiring = Wiring(losses, connectors, made)
        with torch.random.fork_rng(devices=[]):
            self._add_peers(peers or {}, data_preprocessor)
        # As a registered child it would put `wiring.` before the names of parameters
        # in checkpoints and optimizers. Its parts are registered here instead.
        object.__setattr__(self, 'wiring', wiring)
        for name, part in wiring.named_children():
            self.add_module(name, part)
        check_init(init_student, self.teachers)
        self.init_student = init_student
        self.observers: list[Observer] = []
        check_options(made, self.teachers)
        models = self._models
        recorders = check_sides(recorders or {side: {} for side in models}, models)
        trained = ['student', *self.trained_peers]
        self.recorders = self.wiring.connect(models, recorders, trained)
        for hidden in self.teachers.values():
            hidden.take_images_of(self.data_preprocessor)
        self._to_peers = {
            name: Renormalization(
                self.data_preprocessor, peer.data_preprocessor, f'model.peers.{name}'
            )
            for name, peer in self.trained_peers.items()
        }

    def build_student(
        self, config: str | dict, data_preprocessor: dict | None
    ) -> BaseModel:
        """Return the student, for ``__init__``."""
        return build_model(config, data_preprocessor)

    def _add_peers(
        self, configs: Mapping[str, str | dict], data_preprocessor: dict | None
    ) -> None:
        check_peers(configs, self.teachers)
        self._peer_names = [*configs]
        if configs:
            # mmengine's own, which initialises the weights of its members.
            self.peers = ModuleDict(
                {
                    name: build_model(config, data_preprocessor, f'model.peers.{name}')
                    for name, config in configs.items()
                }
            )

    @property
    def trained_peers(self) -> dict[str, Any]:
        """The further students by name."""
        return {name: self.peers[name] for name in self._peer_names}

    @property
    def teacher(self) -> Teacher:
        """The teacher of a distillation with one.

        Raises:
            ValueError: If there is none, or several.
        """
        if len(self.teachers) != 1:
            raise ValueError(
                f'model: expected one teacher, got {sorted(self.teachers) or "none"}'
            )
        return next(iter(self.teachers.values()))

    @property
    def _models(self) -> dict[str, Any]:
        hidden = {name: some.model for name, some in self.teachers.items()}
        return {'student': self.student, **self.trained_peers, **hidden}

    def init_weights(self) -> None:
        """Initialise the student, then copy the teacher's parts if `init_student`."""
        super().init_weights()
        if self.init_student:
            inherit(self.student, self._inherited().model)
        for teacher in self.teachers.values():
            teacher.start(self.student)

    def _inherited(self) -> Teacher:
        name = self.init_student
        return self.teacher if isinstance(name, bool) else self.teachers[name]

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

        A teacher does not run while all losses that read it have weight 0.

        Raises:
            ValueError: If a distillation loss has the name of a student's loss.
            NonFiniteError: If an image, a wire or a loss is not finite.
        """
        with finite_step(data_samples, self) as seen:
            seen[IMAGES] = inputs
            if self.wiring.active or self.trained_peers:
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
        models = self._models
        with (
            self.wiring.observe(models) as observed,
            record_targets(self.student, needs_targets) as targets,
        ):
            # The teachers run first: their activations are freed before the student's
            # exist.
            records = self._observe_teachers(inputs, data_samples)
            seen |= self._places(records)
            task_losses, found = self._observe_trained(inputs, data_samples)
        records = found | records
        seen |= self._places(records)
        try:
            wires = self.wiring.collect(models, records, observed)
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
            places = {name: f'model.connectors.{name}' for name in self.connectors}
            made = {k: seen[place] for k, place in places.items() if place in seen}
            own = (wires | made, task_losses, losses, found_targets)
            observer(Step(inputs, data_samples, *own))
        return merge(task_losses, losses)

    def _observe_teachers(self, inputs: Tensor, data_samples: Sequence) -> Wires:
        """Run each teacher that a loss reads, and return the records as wires."""
        records: Wires = {}
        for name, teacher in self.teachers.items():
            recorders = self.wiring.recorders_of(name, self.recorders)
            if recorders:
                found = teacher.observe(recorders, inputs, data_samples)
                records |= _wires_of(name, found)
        return records

    def _observe_trained(
        self, inputs: Tensor, data_samples: Sequence
    ) -> tuple[dict[str, Any], Wires]:
        """Run peers and student; return their own losses and records."""
        losses: dict[str, Any] = {}
        records: Wires = {}
        for name, peer in self.trained_peers.items():
            images = self._to_peers[name](inputs, data_samples)
            own, found = self._observe(name, peer, images, data_samples)
            losses |= {f'{name}.{key}': value for key, value in own.items()}
            records |= found
        own, found = self._observe('student', self.student, inputs, data_samples)
        return merge(losses, own), records | found

    def _observe(
        self, name: str, model: BaseModel, inputs: Tensor, data_samples: Sequence
    ) -> tuple[dict[str, Any], Wires]:
        """Compute a model's own losses; return them with its records."""
        with record(
            model,
            self.recorders[name],
            require_grad=torch.is_grad_enabled(),
            where=f'model.recorders.{name}',
        ) as records:
            try:
                task_losses = model(inputs, data_samples, mode='loss')
            except Exception:
                check_finite(self._places(_wires_of(name, records)), data_samples)
                raise
        return task_losses, _wires_of(name, records)

    def _places(self, wires: Wires) -> Seen:
        """Return the wires by the names that errors use."""
        known = {
            f'{side}.{name}' for side, named in self.recorders.items() for name in named
        }
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
            self.teachers = {
                name: teacher.moved(fn) for name, teacher in self.teachers.items()
            }
        return self


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
