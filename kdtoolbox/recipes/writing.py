"""Write the text of a recipe."""

import keyword
import os
from pathlib import Path
from typing import Any

from kdtoolbox.recipes.code import Expression, code_of
from kdtoolbox.recipes.fitted import Fitted

MOST_LINES = 30
"""A recipe of more lines is written more densely."""


def recipe_text(
    comments: list[str], base: str, teacher: dict, fitted: Fitted, further: dict
) -> str:
    """Return the text of a recipe.

    Args:
        comments: Lines at the top of the file.
        base: What the file begins with, so that the student's config is inherited: the
            result of `text_base` or `class_base`.
        teacher: The config of the teacher.
        fitted: The sections of the distillation.
        further: Other entries of the config, by name: an expression each.
    """
    # More and more items stand on one line.
    for density in range(3):
        text = _text(comments, base, teacher, fitted, further, density)
        if text.count('\n') <= MOST_LINES:
            break
    return text


def _text(
    comments: list[str],
    base: str,
    teacher: dict,
    fitted: Fitted,
    further: dict,
    density: int,
) -> str:
    is_text = base.startswith('_base_')
    student = '_base_.model' if is_text else 'model'
    own, other = fitted.recorders.values()
    lines = [*(f'# {line}' for line in comments), base]
    recorders: Any = fitted.recorders
    if own and own == other:
        lines.append(f'layers = {code_of(own, 0, density, lead=9)}')
        recorders = dict(student=Expression('layers'), teacher=Expression('layers'))
    model: dict[str, Any] = dict(_delete_=True) if is_text else {}
    model |= dict(
        type='kdtoolbox.Distiller', student=Expression(student), teacher=teacher
    )
    for key, value in (
        ('sources', fitted.sources),
        ('recorders', recorders if own or other else None),
        ('connectors', fitted.connectors),
        ('losses', fitted.losses),
    ):
        if value:
            model[key] = value
    lines += ['', f'model = {code_of(model, 0, density, lead=8, broken=True)}']
    lines += [f'{name} = {value}' for name, value in further.items()]
    return '\n'.join([*lines, ''])


def reference(source: str, folder: Path) -> str:
    """Return how a file in a folder names a config: ``package::path`` or a path.

    A path is relative to the folder if both are near, so that they can move together.
    """
    if '::' in source:
        return source
    path, start = os.path.abspath(source), os.path.abspath(folder)
    near = os.path.relpath(path, start)
    is_near = os.path.commonpath([path, start]) != os.path.sep
    return near if is_near and not near.startswith('../../../') else path


def text_base(source: str, folder: Path) -> str:
    """Return the line by which a config of text inherits another one."""
    return f'_base_ = {reference(source, folder)!r}'


def class_base(source: str, folder: Path) -> str:
    """Return the lines by which a config inherits one with ``read_base``.

    Raises:
        ValueError: If the path cannot be imported.
    """
    path = Path(os.path.relpath(os.path.abspath(source), folder)).with_suffix('')
    ups = [part for part in path.parts if part == '..']
    names = path.parts[len(ups) :]
    if not all(n.isidentifier() and not keyword.iskeyword(n) for n in names):
        raise ValueError(
            f'--student {source}: a config with `read_base` is imported, and '
            f'{"/".join(names)} cannot be a name in Python; copy it beside the recipe '
            'under such a name'
        )
    dots = '.' * (len(ups) + 1)
    return (
        'from mmengine.config import read_base\n\n'
        f'with read_base():\n    from {dots}{".".join(names)} import *'
    )
