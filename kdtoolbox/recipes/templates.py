"""The shipped recipes of a method, as templates for new ones."""

import difflib
import inspect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from kdtoolbox.configuration import load_config
from kdtoolbox.distillers.building import find_class, loss_wires
from kdtoolbox.losses.examples import examples_of
from kdtoolbox.recipes.places import is_at
from kdtoolbox.recipes.sides import FAMILIES, Side, family_of

_PACKAGE = Path(__file__).parents[1]

_DETECTION = 'kdtoolbox.losses.detection.'
_SEGMENTATION = 'kdtoolbox.losses.segmentation.'

SPECIFIC = {
    'dense class logits': {'dense'},
    'dense boxes': {'dense'},
    'box distributions': {'dense'},
    'centerness': {'dense'},
    'objectness': {'two_stage'},
    'RoI logits': {'two_stage'},
    'RoI boxes': {'two_stage'},
    'RoI labels': {'two_stage'},
    'query logits': {'detr'},
    'query boxes': {'detr'},
    'mask logits': {'mask'},
    'mask class logits': {'mask'},
    'class logits map': {'segmentor'},
}
"""The families that have a kind of wire; any family has the others."""


@dataclass(frozen=True)
class Template:
    """A shipped recipe.

    Attributes:
        path: Its file.
        config: The recipe, with what it inherits.
    """

    path: Path
    config: Config

    @property
    def model(self) -> Any:
        """The distiller's config."""
        return self.config.model

    @property
    def family(self) -> str:
        """The family of the student."""
        return family_of(self.model.student)

    def families(self) -> set[str]:
        """Return the families of models that the losses and sources support."""
        families = (families_of(loss) for loss in self.model.losses.values())
        fitting = set(FAMILIES).intersection(*families)
        # Its further wires exist in this family alone.
        return fitting & {self.family} if self.model.get('sources') else fitting


def class_of(loss: Any) -> type[nn.Module]:
    """Return the class of a loss or connector of a recipe."""
    return find_class(loss['type'], 'type')


def kinds_of(loss: Any) -> dict[str, str]:
    """Return the kind of each wire of a loss.

    Several losses read either rows, such as RoIs, or maps. The name of the student's
    wire tells which.

    Args:
        loss: The loss's config with its wires.
    """
    is_rows = any(part in loss['student'] for part in ('roi', 'query', 'rows'))
    examples = examples_of(class_of(loss))
    read = {key for key in loss_wires(class_of(loss)) if key in loss}

    def misfit(example: Any) -> tuple[bool, int]:
        rows = 'rows' in example.student or 'RoI' in example.student
        return rows != is_rows, len(read ^ example.names.keys())

    return min(examples, key=misfit).names


def families_of(loss: Any) -> set[str]:
    """Return the families of models that have the wires and the context of a loss."""
    kind = class_of(loss)
    fitting = set(FAMILIES)
    if kind.__module__.startswith(_DETECTION):
        fitting -= {'segmentor', 'mask'}
    if kind.__module__.startswith(_SEGMENTATION):
        fitting &= {'segmentor', 'mask'}
    if 'targets' in inspect.signature(kind.forward).parameters:
        fitting &= {'dense'}
    for wire in kinds_of(loss).values():
        fitting &= SPECIFIC.get(wire.removesuffix(' of other queries'), fitting)
    return fitting


def folder() -> Path:
    """Return the folder of the shipped configs, installed or in the repository."""
    places = (_PACKAGE / '.mim' / 'configs', _PACKAGE.parent / 'configs')
    return next(place for place in places if place.is_dir())


_NO_METHODS = ('benchmarks', 'digits', 'foundation', 'pretrain', 'students')
"""Folders of configs/ whose recipes are for models of their own."""


def method_names() -> list[str]:
    """Return the methods that have recipes."""
    return sorted(
        path.name
        for path in folder().iterdir()
        if path.name not in _NO_METHODS and any(path.glob('*.py'))
    )


def templates_of(method: str) -> Iterator[Template]:
    """Yield the recipes of a method that train a student.

    Raises:
        ValueError: If there is no such method.
    """
    names = method_names()
    if method not in names:
        close = difflib.get_close_matches(method, names, n=3)
        raise ValueError(
            f'--method {method}: there is no such method; '
            + (f'did you mean {" or ".join(close)}? ' if close else '')
            + '`--list` shows all'
        )
    for path in sorted((folder() / method).glob('*.py')):
        config = load_config(path)
        if 'losses' in config.model:
            yield Template(path, config)


def closest_template(
    method: str, student: Side, teacher: Side, at: str | None = None
) -> Template:
    """Return the recipe of a method whose models are most like two others.

    Raises:
        ValueError: If the method does not fit the family of both models.
    """
    own = student.config.get('model', student.config)
    known = list(templates_of(method))
    fitting = [t for t in known if student.family in t.families()]
    needed = [t for t in fitting if teacher.family in t.families()]
    if not needed:
        side = teacher if fitting else student
        families = set().union(*(t.families() for t in known))
        names = [FAMILIES[name] for name in FAMILIES if name in families]
        raise ValueError(
            f'--method {method} fits {", ".join(names)}; the {side.name} is one of the '
            f'{FAMILIES[side.family]}. `--list` shows what fits each pair'
        )

    usual = Counter(str(_recorders(template)) for template in needed)

    def likeness(template: Template) -> tuple:
        other = template.model.student
        return (
            template.family == student.family,
            other.get('type') == own.get('type'),
            _head(other) == _head(own),
            at is not None and any(is_at(path, at) for path in _recorders(template)),
            not template.model.get('connectors'),
            # Most recipes of a method compare the layers of its paper.
            usual[str(_recorders(template))],
            -len(template.model.losses),
        )

    return max(needed, key=likeness)


def _recorders(template: Template) -> list[Any]:
    sides = (template.model.get('recorders') or {}).values()
    return [recorder for named in sides for recorder in named.values()]


def _head(model: Any) -> Any:
    head = model.get('bbox_head') or model.get('decode_head') or {}
    head = head[-1] if isinstance(head, list) else head
    return head.get('type')
