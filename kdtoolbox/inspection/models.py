"""Build the models of a distillation without the files of their weights."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mmengine.model import BaseModel
from torch import nn

from kdtoolbox.distillers.pretrainer import Trunk
from kdtoolbox.inspection.quiet import make_finite
from kdtoolbox.inspection.reports import Faults
from kdtoolbox.teachers import Teacher, build_teacher
from kdtoolbox.teachers.kinds import teacher_faults, without_weights
from kdtoolbox.teachers.mmengine_teacher import check_trained
from kdtoolbox.teachers.models import build_model


def attempt(build: Callable[[], Any], where: str, faults: Faults) -> Any:
    """Return what a function builds, or None with a fault."""
    try:
        return build()
    except Exception as error:
        faults(error, where=where)
        return None


def build_trained(model: Mapping[str, Any], faults: Faults) -> dict[str, BaseModel]:
    """Return the student and its peers, by name, with finite weights.

    Those with a fault are left out.
    """
    places = {f'peers.{name}': config for name, config in _peers(model).items()}
    if 'student' in model:
        places = {'student': model['student'], **places}
    preprocessor = model.get('data_preprocessor')
    found = {}
    for place, config in places.items():
        where = f'model.{place}'
        built = attempt(
            partial(build_model, config, preprocessor, where), where, faults
        )
        if built is not None and place == 'student' and 'parts' in model:
            built = attempt(
                partial(Trunk, built, model['parts']), 'model.parts', faults
            )
        if built is not None:
            make_finite(built)
            found[place.removeprefix('peers.')] = built
    return found


def _peers(model: Mapping[str, Any]) -> Mapping[str, Any]:
    peers = model.get('peers')
    return peers if isinstance(peers, Mapping) else {}


def build_random(
    config: Any, name: str, where: str, student: BaseModel | None, faults: Faults
) -> Teacher | None:
    """Return a teacher with random, finite weights; None if it has a fault."""
    if [*teacher_faults(config, where)] or student is None:
        # `check_recipe` reports these keys.
        return None
    random = without_weights(config)
    if 'allow_random' in random:
        given = {k: config[k] for k in ('checkpoint', 'allow_random') if k in config}
        given |= dict(checkpoint='pretrained') if config.get('pretrained') else {}
        attempt(partial(check_trained, **given, where=where), where, faults)
    teacher: Teacher | None = attempt(
        partial(build_teacher, random, name, where, student), where, faults
    )
    if teacher is not None:
        # Only weights that learn are made finite, and these are random, too.
        make_finite(teacher.model.requires_grad_(True))
        teacher.model.requires_grad_(False)
    return teacher


def check_images(
    student: BaseModel | None, teachers: Mapping[str, Teacher], faults: Faults
) -> None:
    """Let the teachers expect the student's images; report those that cannot."""
    if student is None:
        return
    for teacher in teachers.values():
        take = partial(teacher.take_images_of, student.data_preprocessor)
        attempt(take, teacher.where, faults)


def features_of(*models: BaseModel) -> str:
    """Return the path of the features of models: 'neck', or else 'backbone'."""
    necks = all(isinstance(getattr(m, 'neck', None), nn.Module) for m in models)
    return 'neck' if necks else 'backbone'
