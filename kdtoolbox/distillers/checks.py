"""Check what a distiller's config says about its models, before anything runs."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kdtoolbox.distillers.sources.source import Recorders
from kdtoolbox.teachers import Teacher


def check_options(sources: Sequence[Any], teachers: Mapping[str, Teacher]) -> None:
    """Raise ValueError if a source needs a teacher without some of its options."""
    for source in sources:
        teacher = teachers.get(source.teacher)
        if source.observes_teacher and teacher is not None and teacher.cache:
            raise ValueError(
                f'{source.where}: {type(source).__name__} watches the teacher while it '
                f'runs, and a teacher with a cache does not run; remove {teacher.where}'
                '.cache'
            )
        if source.asks_teacher and teacher is not None and not teacher.plain:
            raise ValueError(
                f'{source.where}: {type(source).__name__} runs parts of the teacher on '
                "the student's features, so the teacher needs the student's images "
                f'and number type; remove `view` and `dtype` of {teacher.where}'
            )


def check_sides(recorders: Recorders, models: Collection[str]) -> Recorders:
    """Return the recorders; raise ValueError if they are not those of the models."""
    if not isinstance(recorders, Mapping) or recorders.keys() != {*models}:
        is_dict = isinstance(recorders, Mapping)
        wanted = ', '.join(f'{name}=...' for name in models)
        raise ValueError(
            f'model.recorders: expected dict({wanted}), got '
            + (f'keys {sorted(recorders)}' if is_dict else repr(recorders))
        )
    for side, named in recorders.items():
        if not isinstance(named, Mapping):
            raise ValueError(
                f'model.recorders.{side}: expected paths by name, such as '
                f"dict(fpn='neck'), got {named!r}; for none write dict()"
            )
    return recorders
