"""Read the losses and sources of the shipped recipes without the models around them."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """What a recipe says about a method.

    Attributes:
        path: The file.
        losses: The config of each loss by its logged name.
        sources: The types of the sources of wires.
    """

    path: Path
    losses: Mapping[str, Mapping[str, Any]]
    sources: tuple[str, ...]


def read_recipe(path: Path) -> Recipe:
    """Read a recipe in well under a millisecond.

    Only the recipe itself and bases of ours are read. The config of the student, from
    which it inherits, has neither losses nor sources of a distillation.

    Args:
        path: A file of configs/.
    """
    model = _model_of(path)
    kinds = tuple(source['type'] for source in model.get('sources', ()))
    return Recipe(path, model.get('losses', {}), kinds)


class _Unread(dict):
    """Stands for the inherited config: any attribute or key of it is empty."""

    def __getattr__(self, name: str) -> '_Unread':
        return _Unread()

    def __getitem__(self, name: Any) -> '_Unread':
        return _Unread()


def _model_of(path: Path) -> dict[str, Any]:
    """Return a recipe's model with the ``losses`` and ``sources`` that it inherits."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    base = [node for node in tree.body if _assigned(node) == '_base_']
    tree.body = [node for node in tree.body if node not in base]
    names: dict[str, Any] = dict(_base_=_Unread())
    # A config is code, and this is one of our own; mmengine runs it as well.
    exec(compile(tree, str(path), 'exec'), names)  # noqa: S102
    own = names.get('model', {})
    if not base or own.get('_delete_'):
        return own
    inherited = _inherited(ast.literal_eval(base[0].value), path.parent)  # type: ignore[attr-defined]
    losses = dict(own.get('losses', {}))
    if not losses.pop('_delete_', False):
        losses = {**inherited.get('losses', {}), **losses}
    return {**inherited, **own, 'losses': losses}


def _assigned(node: ast.stmt) -> str | None:
    target = node.targets[0] if isinstance(node, ast.Assign) else None
    return target.id if isinstance(target, ast.Name) else None


def _inherited(base: str, folder: Path) -> dict[str, Any]:
    return {} if '::' in base else _model_of(folder / base)
