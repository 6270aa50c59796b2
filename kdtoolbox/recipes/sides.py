"""One of the two models of a new recipe, and what its layers compute."""

import contextlib
import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mmengine.config import Config
from torch import nn

from kdtoolbox.configuration import load_config
from kdtoolbox.inspection.outline import Outline, Value, quick_outline
from kdtoolbox.recorders import find_modules
from kdtoolbox.teachers.models import build_model

FAMILIES = dict(
    segmentor='segmentors',
    mask='mask-query segmentors',
    detr='detection transformers',
    two_stage='two-stage detectors',
    dense='one-stage detectors with a dense head',
    other='other detectors',
)
"""The families of models, in words."""


@dataclass(frozen=True)
class Level:
    """One map of a pyramid.

    Attributes:
        stride: In pixels.
        channels: Number of channels.
        path: The module that returns exactly this map; None if no single one does.
        trains: Whether it carries a gradient.
    """

    stride: float
    channels: int
    path: str | None
    trains: bool


class Side:
    """The student or the teacher of a new recipe.

    Args:
        name: 'student' or 'teacher'.
        source: Its config, as `load_config` takes it.
    """

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source
        self.config: Config = load_config(source, f'--{name}')
        # The libraries print while they build models.
        with contextlib.redirect_stdout(io.StringIO()):
            self.model: Any = build_model(self.config, where=f'--{name}')

    @cached_property
    def outline(self) -> Outline:
        """What a forward on random images shows."""
        return quick_outline(self.model)

    @property
    def family(self) -> str:
        """The family of the model, one of `FAMILIES`."""
        return family_of(self.config.get('model', self.config))

    def values(self, recorder: Any) -> list[Value]:
        """Return the tensors that a recorder would record, in their order.

        Raises:
            ValueError: If no module matches, or a module is not called.
        """
        spec = dict(source=recorder) if isinstance(recorder, str) else recorder
        where = f'--at on the {self.name}'
        modules = find_modules(self.model, spec['source'], where)
        layers, seen = self.outline.layers, []
        taken = dict.fromkeys(modules, 0)
        for path in self.outline.order:
            if path in taken:
                layer = layers[path]
                kept = layer.inputs if spec.get('what') == 'input' else layer.outputs
                count = len(kept) // layer.calls
                seen += kept[taken[path] : taken[path] + count]
                taken[path] += count
        silent = [path for path in modules if not layers[path].calls]
        if silent or not seen:
            raise ValueError(
                f'{where}: {", ".join(silent)} is not called in a forward; name a '
                f'module inside it, such as {_inside(self.model, silent[0])!r}'
            )
        return seen

    def has(self, recorder: Any) -> bool:
        """Return whether a recorder matches modules that are called."""
        try:
            return bool(self.values(recorder))
        except ValueError:
            return False

    def pyramid(self, part: str) -> list[Level]:
        """Return the maps that a part of the model returns, such as its neck."""
        levels = []
        for value in self.outline.layers[part].outputs:
            stride = self.outline.stride(value.shape)
            if stride is not None:
                path = self._maker(value, part)
                levels.append(Level(stride, value.shape[1], path, value.trains))
        return levels

    def _maker(self, value: Value, part: str) -> str | None:
        makers = self.outline.makers(value.number, part)
        return makers[-1] if makers else None


def _inside(model: nn.Module, path: str) -> str:
    children = [name for name, _ in model.get_submodule(path).named_children()]
    return f'{path}.{children[0]}' if children else path


def family_of(model: Any) -> str:
    """Return the family of a model's config."""
    head = model.get('decode_head')
    if head is not None:
        kinds = head if isinstance(head, list) else [head]
        return 'mask' if 'Mask2Former' in str(kinds[-1].get('type')) else 'segmentor'
    if 'roi_head' in model:
        return 'two_stage'
    if 'decoder' in model and 'encoder' in model:
        return 'detr'
    return 'dense' if 'bbox_head' in model else 'other'
