"""Make a recipe from two models and the name of a method."""

import os
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.fileio import load

from kdtoolbox.configuration import find_file
from kdtoolbox.recipes.fitted import Fitted
from kdtoolbox.recipes.fitting import fit
from kdtoolbox.recipes.sides import Side
from kdtoolbox.recipes.templates import Template, closest_template
from kdtoolbox.recipes.writing import (
    class_base,
    recipe_text,
    reference,
    text_base,
)


def make_recipe(
    method: str,
    student: str,
    teacher: str,
    checkpoint: str | None,
    at: str | None,
    folder: Path,
) -> str:
    """Return the text of a recipe that distils one model from another.

    The shipped recipe whose models are most like the two gives the losses, connectors
    and published numbers. Layers, channels, levels and sizes come from a forward of
    both models on random images.

    Args:
        method: A folder of the shipped configs, such as 'cwd'.
        student: The student's config: a file or ``package::path``.
        teacher: The teacher's.
        checkpoint: The weights of the teacher; None for those that its library
            publishes for the config.
        at: Where features are compared: 'neck', 'backbone', 'head' or a module path;
            None for where the shipped recipe compares them.
        folder: The folder of the new file.

    Raises:
        ValueError: If the method does not fit the two models.
    """
    pair = Side('student', student), Side('teacher', teacher)
    template, fitted, moved_to = _fit(method, *pair, at)
    weights = checkpoint or published_weights(teacher)
    if weights and '://' not in weights:
        weights = reference(weights, folder)
    comments = [
        f'{method}: {_stem(student)} learns from {_stem(teacher)}.',
        f'Made by tools/new_config.py; numbers of {method}/{template.path.name}.',
    ]
    if moved_to:
        comments.append(
            'These models have no layers like those that the shipped recipe compares; '
            f'as --at {moved_to}.'
        )
    if weights is None:
        comments.append("Set `checkpoint` to the teacher's weights.")
    base = class_base if _has_classes(pair[0].config) else text_base
    return recipe_text(
        comments,
        base(student, folder),
        dict(config=reference(teacher, folder), checkpoint=weights),
        fitted,
        _further(template, pair[0].config),
    )


def _fit(
    method: str, student: Side, teacher: Side, at: str | None
) -> tuple[Template, Fitted, str]:
    """Return the shipped recipe, its fitted sections, and where features are instead.

    If a model has no layer like those of the recipe, features are compared before the
    classifier of a segmentor, or on the neck of a detector, by a recipe for that place.
    """
    template = closest_template(method, student, teacher, at)
    try:
        return template, fit(template, student, teacher, at), ''
    except ValueError:
        if at is not None or template.model.get('sources'):
            raise
        place = 'head' if student.family == 'segmentor' else 'neck'
        try:
            other = closest_template(method, student, teacher, place)
            return other, fit(other, student, teacher, place), place
        except ValueError:
            pass
        raise


def _stem(source: str) -> str:
    return Path(source.rpartition('::')[2]).stem


def _has_classes(config: Config) -> bool:
    """Return whether a config is Python that imports its classes and its bases."""
    text = Path(str(config.filename)).read_text(encoding='utf-8')
    return 'read_base()' in text


def _further(template: Template, student: Any) -> dict[str, str]:
    """Return what the recipe of a method changes beside the model, as expressions."""
    further = {}
    clip = (template.config.get('optim_wrapper') or {}).get('clip_grad')
    own = (student.get('optim_wrapper') or {}).get('clip_grad')
    changes = 'clip_grad' in template.path.read_text(encoding='utf-8')
    if clip and changes and not own and not _has_classes(student):
        further['optim_wrapper'] = f'dict(clip_grad=dict({_arguments(clip)}))'
    hooks = [
        f'dict({_arguments(hook)})'
        for hook in template.config.get('custom_hooks') or []
        if str(hook.get('type')).startswith('kdtoolbox.')
    ]
    if hooks:
        name = 'custom_hooks' if _has_classes(student) else '_base_.custom_hooks'
        kept = [f'*{name}'] if student.get('custom_hooks') else []
        further['custom_hooks'] = f'[{", ".join([*kept, *hooks])}]'
    return further


def _arguments(values: Any) -> str:
    return ', '.join(f'{key}={value!r}' for key, value in values.items())


def published_weights(source: str) -> str | None:
    """Return the URL that a library's metafile gives for the weights of a config.

    Example:
        >>> url = published_weights('mmdet::gfl/gfl_r50_fpn_1x_coco.py')
        >>> url.rpartition('/')[2]
        'gfl_r50_fpn_1x_coco_20200629_121244-25944287.pth'
    """
    if '::' not in source:
        return None
    path = find_file(source, [], 'config')
    for metafile in sorted(path.parent.glob('metafile.y*ml')):
        content = load(str(metafile), file_format='yaml')
        models = content.get('Models', []) if isinstance(content, dict) else content
        for model in models:
            if os.path.basename(str(model.get('Config'))) == path.name:
                return model.get('Weights')
    return None
