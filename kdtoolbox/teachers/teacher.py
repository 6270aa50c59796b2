"""The interface of all kinds of teachers."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from kdtoolbox.configuration import check_keys
from kdtoolbox.recorders import Recorder, Records, check_recorders
from kdtoolbox.teachers.identity import Identity, describe, identify
from kdtoolbox.teachers.normalization import Renormalization
from kdtoolbox.teachers.precision import Precision
from kdtoolbox.teachers.record_cache import RecordCache
from kdtoolbox.teachers.running import run
from kdtoolbox.teachers.view import View

NAME = 'teacher'
"""The name of the only teacher of a distillation."""


class Teacher:
    """A frozen model that is hidden from the module that holds it.

    This class is not an ``nn.Module``, so ``state_dict``, optimizer, EMA and DDP of the
    student never contain the teacher. A deepcopy of the distiller, which EMA makes,
    shares the teacher until one of the two moves to another device or type.

    The kinds of teachers are subclasses that build a model. `kdtoolbox.registry`'s
    ``TEACHERS`` has them by name, and `build_teacher` builds them from a config.

    Args:
        model: The model. It gets frozen.
        name: Name of the teacher: the first part of its wires.
        where: Config path of the teacher, for errors.
        classes: The names of the model's classes, if they are known.

    Attributes:
        cache: The `RecordCache` of its records, or None.
        classes: The names of its classes, or None.
        follows: Whether its weights follow those of the student.
        made_of: The arguments of its kind in the config, if it is from a config.
        name: Its name.
        view: The `View` that it sees, or None for the student's own batch.
        where: Its config path.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU())
        >>> teacher = Teacher(model)
        >>> records = teacher.observe({'maps': '0'}, torch.zeros(2, 3, 4, 4), [])
        >>> [tuple(level.shape) for level in records['maps']]
        [(2, 8, 4, 4)]
    """

    follows = False

    def __init__(
        self,
        model: nn.Module,
        name: str = NAME,
        where: str = 'model.teacher',
        classes: tuple[str, ...] | None = None,
    ) -> None:
        self.name, self.where, self.classes = name, where, classes
        self._root = model.requires_grad_(False).eval()
        self.view: View | None = None
        self.cache: RecordCache | None = None
        self.made_of: Mapping[str, Any] = {}
        self._described: tuple[nn.Module, dict] | None = None
        self._precision = Precision()
        self._to_own: Renormalization | None = None

    @property
    def model(self) -> Any:
        """The frozen model."""
        return self._root

    def __deepcopy__(self, memo: dict) -> 'Teacher':
        return self

    def use(
        self,
        view: Mapping[str, Any] | None = None,
        dtype: str | None = None,
        channels_last: bool = False,
        compile: bool = False,  # noqa: A002 - the key of mmengine's configs
        cache: Mapping[str, Any] | None = None,
    ) -> None:
        """Set how the teacher sees the images and how it computes.

        Args:
            view: Arguments of `View`: ``dict(scale=1.5)`` shows the images larger.
            dtype: The type of its weights and maps, 'bfloat16' or 'float16'; its
                records have the type of the images all the same.
            channels_last: Store weights and maps with the channels last.
            compile: Compile the parts of the model with ``torch.compile``.
            cache: Arguments of `RecordCache`: ``dict(path='caches/gfl', views=4)``
                computes the records of each image once and reads them afterwards.

        Raises:
            ValueError: If a value is not supported.
            TypeError: If ``view`` is no dict, or has an unknown key.
        """
        if view is not None:
            self.view = self._view_of(view)
        if dtype is not None and self.follows:
            raise ValueError(
                f'{self.where}.dtype: this teacher adds small updates to its weights, '
                f'which {dtype!r} would round away; remove `dtype`'
            )
        self._precision = Precision(dtype, channels_last, compile, self.where)
        self._precision.apply(self.model)
        if cache is not None:
            self.cache = self._cache_of(cache)

    def _view_of(self, config: Mapping[str, Any]) -> View:
        where = f'{self.where}.view'
        if not isinstance(config, Mapping):
            raise TypeError(
                f'{where}: expected a dict, got {config!r}; write view=dict(scale=1.5)'
            )
        check_keys(config, View, where, given=('divisor', 'where'))
        preprocessor = getattr(self.model, 'data_preprocessor', None)
        divisor = getattr(preprocessor, 'pad_size_divisor', 1)
        return View(**config, divisor=divisor, where=where)

    def _cache_of(self, config: Mapping[str, Any]) -> RecordCache:
        where = f'{self.where}.cache'
        if self.follows:
            raise ValueError(
                f'{where}: the weights of this teacher change in each step, so no '
                'record can be used twice; remove `cache`'
            )
        if not isinstance(config, Mapping):
            raise ValueError(
                f'{where}: expected a dict, got {config!r}; write '
                "cache=dict(path='caches/name', views=4)"
            )
        check_keys(config, RecordCache, where, given=('where',))
        return RecordCache(**config, where=where)

    @property
    def plain(self) -> bool:
        """Whether the model sees the student's own batch in its own precision."""
        return self.view is None and self._precision.dtype is None

    def take_images_of(self, preprocessor: nn.Module) -> None:
        """Expect batches that were normalised by the student's data preprocessor.

        Raises:
            ValueError: If the teacher reads images of other channels.
        """
        own = self.model.data_preprocessor
        self._to_own = Renormalization(preprocessor, own, self.where)

    @torch.no_grad()
    def moved(self, fn: Callable[[Tensor], Tensor]) -> 'Teacher':
        """Return a teacher with ``fn`` applied to all its tensors.

        If nothing changes, this is the same object. Otherwise it is a new one, because
        copies of the distiller may share this teacher and need it unchanged.

        Raises:
            ValueError: If tensors leave the device 'meta', where they have no values.
        """
        made: dict[int, Tensor] = {}
        for tensor in chain(self._root.parameters(), self._root.buffers()):
            new = self._precision.keep(tensor, fn(tensor))
            if tensor.is_meta and not new.is_meta:
                raise ValueError(
                    f"{self.where} has no weights on the device 'meta', and "
                    'checkpoints of the distiller do not contain them; build the '
                    'distiller on another device'
                )
            if new is not tensor:
                is_parameter = isinstance(tensor, nn.Parameter)
                made[id(tensor)] = nn.Parameter(new, False) if is_parameter else new
        if not made:
            return self
        teacher = copy.copy(self)
        # deepcopy takes the new tensors from its memo instead of copying the old ones.
        teacher._root = copy.deepcopy(self._root, made)
        teacher._precision.compile(teacher.model)
        return teacher

    @torch.no_grad()
    def observe(
        self,
        recorders: Mapping[str, Recorder],
        inputs: Tensor,
        data_samples: Sequence,
    ) -> Records:
        """Run the model only as deep as the recorders need and return the records.

        Args:
            recorders: The recorders, in the format of ``record``.
            inputs: Images (N, C, H, W), normalised for the student; for this model if
                `take_images_of` was not called.
            data_samples: Samples of the batch, for models whose forward reads them.
        """
        compute = partial(self._compute, recorders)
        if self.cache is None:
            return compute(inputs, data_samples)
        identity = self.identity(recorders, inputs.device)
        return self.cache.observe(compute, inputs, data_samples, identity)

    def _compute(
        self, recorders: Mapping[str, Recorder], inputs: Tensor, data_samples: Sequence
    ) -> Records:
        # Cheap, and it undoes any `train()` call that would turn dropout on.
        self._root.eval()
        images, samples = self.see(inputs, data_samples)
        with self._precision.computing(images) as cast:
            records = run(self.model, recorders, cast, samples, self._recorded)
        return self._precision.back(records, inputs)

    def see(self, inputs: Tensor, data_samples: Sequence) -> tuple[Tensor, Sequence]:
        """Return the batch as the model expects it: normalised and scaled.

        Args:
            inputs: Images (N, C, H, W) as for `observe`.
            data_samples: Samples of the batch.
        """
        images = self._to_own(inputs, data_samples) if self._to_own else inputs
        if self.view is not None:
            return self.view(images, data_samples)
        return images, data_samples

    def identity(
        self, recorders: Mapping[str, Recorder], device: torch.device
    ) -> Identity:
        """Return what its records of a batch depend on besides the batch.

        Args:
            recorders: The recorders, in the format of ``record``.
            device: The device of the batch.
        """
        # A digest of all weights takes a while; a teacher that moves is another model.
        if self._described is None or self._described[0] is not self._root:
            settings = dict(
                dtype=self._precision.dtype,
                view=(self.view.scale, self.view.divisor) if self.view else None,
                normalization=self._to_own.numbers() if self._to_own else None,
            )
            described = describe(self._root, self.made_of, **settings)
            self._described = self._root, described
        return identify(self._described[1], recorders, device, self.made_of)

    def check(self, recorders: Mapping[str, Recorder]) -> None:
        """Raise if a recorder matches nothing in the model."""
        check_recorders(self.model, recorders, self._recorded)

    @property
    def _recorded(self) -> str:
        return f'model.recorders.{self.name}'

    def start(self, student: nn.Module) -> None:
        """Begin a training; a teacher that is made of the student copies it here."""

    def update(self, student: nn.Module) -> None:
        """Follow the student after an update of its weights."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs to resume: nothing for a fixed model."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Resume from what `state_dict` returned."""
