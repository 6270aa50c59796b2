"""Build the teacher from its config, load it strictly, freeze it and hide it."""

import copy
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from kdtoolbox.checkpoints.weights import class_names, load_checkpoint, load_strictly
from kdtoolbox.configuration import check_keys, load_config
from kdtoolbox.recorders import (
    Recorder,
    Records,
    check_recorders,
    find_modules,
    record,
)

# Parts whose forward needs only the output of `extract_feat`.
_HEADS = ('bbox_head', 'rpn_head', 'mask_head', 'decode_head', 'auxiliary_head')


def build_model(
    source: str | dict,
    data_preprocessor: dict | None = None,
    where: str = 'model.student',
) -> BaseModel:
    """Build the model of a config in that config's own scope.

    Args:
        source: A source for ``load_config``: a whole config, or its ``model`` alone.
        data_preprocessor: Used if the config sets none. mmengine's Runner takes it from
            the top level of its config.
        where: Config path of ``source``, for error messages.

    Raises:
        ValueError: If a file does not exist.
        TypeError: If the config contains no model, or an unknown argument of the model.
    """
    cfg = load_config(source, where)
    scope = cfg.get('default_scope')
    if scope is None:
        current = DefaultScope.get_current_instance()
        scope = current.scope_name if current is not None else None
    # Detectors change the configs of their heads while they are built.
    model = copy.deepcopy(dict(cfg.get('model', cfg), _scope_=scope))
    _check_model(model, where)
    preprocessor = cfg.get('data_preprocessor') or data_preprocessor
    if preprocessor is not None:
        model.setdefault('data_preprocessor', preprocessor)
    try:
        return MODELS.build(model)
    except TypeError as error:
        unknown = re.search(
            r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'",
            str(error),
        )
        kind, key = unknown.groups() if unknown else ('', '')
        for place, part in _parts(model, where):
            if key in part and str(part['type']).endswith(kind):
                _check_model({'_scope_': scope, **part}, place)
                raise TypeError(f'{place}: {error}') from error
        raise TypeError(f'{where}: {error}') from error


def _parts(config: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield all parts of a model that have a type, with their config paths."""
    if isinstance(config, list | tuple):
        for index, part in enumerate(config):
            yield from _parts(part, f'{where}[{index}]')
    elif isinstance(config, Mapping):
        if 'type' in config:
            yield where, config
        for name, part in config.items():
            yield from _parts(part, f'{where}.{name}')


def _check_model(model: Mapping[str, Any], where: str) -> None:
    kind = model.get('type')
    if kind is None:
        keys = [key for key in model if key != '_scope_']
        raise TypeError(
            f'{where}: expected a config with `model`, or a model with `type`, got a '
            f'dict of {keys}; write a path, dict(_base_=path, model=dict(...)) to '
            'change some of it, or the whole model'
        )
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry(model['_scope_']) as registry:
            kind = registry.get(kind)
    # For an unknown type the registry itself raises a clear error.
    if kind is not None:
        check_keys({k: v for k, v in model.items() if k != 'type'}, kind, where)


def check_trained(
    checkpoint: str | None = None, allow_random: bool = False, **_: Any
) -> None:
    """Raise ValueError if a teacher has no weights and is not allowed to be random."""
    if checkpoint is None and not allow_random:
        raise ValueError(
            'model.teacher.checkpoint is None: a teacher with random weights '
            'teaches nothing. Name a path or URL, or set `allow_random=True`'
        )


class Teacher:
    """A frozen model that is hidden from the module that holds it.

    This class is not an ``nn.Module``, so ``state_dict``, optimizer, EMA and DDP of the
    student never contain the teacher. A deepcopy of the distiller, which EMA makes,
    shares the teacher until one of the two moves to another device or type.

    Args:
        config: The teacher's config: ``package::path``, a file or a dict.
        checkpoint: Path or https URL of the weights.
        allow_random: Allow a teacher without a checkpoint.
        trust_pickle: Load pickles that contain more than weights. They can run any
            code.

    Attributes:
        model: The frozen model.
        classes: The names of its classes, if the checkpoint contains them.

    Raises:
        ValueError: If there is no checkpoint, or it does not fit the config.
    """

    def __init__(
        self,
        config: str | dict,
        checkpoint: str | None = None,
        allow_random: bool = False,
        trust_pickle: bool = False,
    ) -> None:
        check_trained(checkpoint, allow_random)
        where = 'model.teacher.config'
        self.model = build_model(config, where=where)
        self.classes: tuple[str, ...] | None = None
        if checkpoint is not None:
            loaded = load_checkpoint(checkpoint, trust_pickle)
            named = repr(config) if isinstance(config, str) else where
            load_strictly(self.model, loaded['state_dict'], repr(checkpoint), named)
            self.classes = class_names(loaded['meta'])
        self.model.requires_grad_(False).eval()

    def __deepcopy__(self, memo: dict) -> 'Teacher':
        return self

    @torch.no_grad()
    def moved(self, fn: Callable[[Tensor], Tensor]) -> 'Teacher':
        """Return a teacher with ``fn`` applied to all its tensors.

        If nothing changes, this is the same object. Otherwise it is a new one, because
        copies of the distiller may share this teacher and need it unchanged.

        Raises:
            ValueError: If tensors leave the device 'meta', where they have no values.
        """
        made: dict[int, Tensor] = {}
        for tensor in chain(self.model.parameters(), self.model.buffers()):
            new = fn(tensor)
            if tensor.is_meta and not new.is_meta:
                raise ValueError(
                    "model.teacher has no weights on the device 'meta', and "
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
        teacher.model = copy.deepcopy(self.model, made)
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
            inputs: Images (N, 3, H, W), normalised for this model.
            data_samples: Samples of the batch, for models whose forward reads them.
        """
        # Cheap, and it undoes any `train()` call that would turn dropout on.
        self.model.eval()
        where = 'model.recorders.teacher'
        with record(self.model, recorders, stop_early=True, where=where) as records:
            self._forward(self._parts(recorders), inputs, data_samples)
        return records

    def check(self, recorders: Mapping[str, Recorder]) -> None:
        """Raise if a recorder matches nothing in the model."""
        check_recorders(self.model, recorders, 'model.recorders.teacher')

    def _parts(self, recorders: Mapping[str, Recorder]) -> set[str]:
        sources = [r if isinstance(r, str) else r['source'] for r in recorders.values()]
        return {
            path.partition('.')[0]
            for source in sources
            for path in find_modules(self.model, source, 'model.recorders.teacher')
        }

    def _forward(self, parts: set[str], inputs: Tensor, data_samples: Sequence) -> None:
        # The head of a DETR needs decoder states, and the head of a cascade needs the
        # output of the stage before it.
        chained = hasattr(self.model, 'forward_transformer') or isinstance(
            getattr(self.model, 'decode_head', None), nn.ModuleList
        )
        if chained or not parts <= {'backbone', 'neck', *_HEADS}:
            self.model(inputs, data_samples, mode='tensor')
            return
        features = self.model.extract_feat(inputs)
        for part in _HEADS:
            if part in parts:
                head = getattr(self.model, part)
                # `mode='tensor'` would call `head.forward`, which runs no hooks, and
                # skip mmseg's auxiliary heads.
                for member in head if isinstance(head, nn.ModuleList) else [head]:
                    # The head of Mask2Former also needs the samples.
                    known = inspect.signature(member.forward).parameters
                    more = [data_samples] if 'batch_data_samples' in known else []
                    member(features, *more)
