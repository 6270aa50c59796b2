"""Build the models of a distillation without the files of their weights."""

from collections.abc import Callable, Mapping
from typing import Any

from mmengine.model import BaseModel
from torch import nn

from kdtoolbox.distillers.building import SIDES
from kdtoolbox.distillers.normalization import Renormalization
from kdtoolbox.inspection.quiet import make_finite
from kdtoolbox.inspection.reports import Faults
from kdtoolbox.teacher import Teacher, build_model, check_trained


def attempt(build: Callable[[], Any], where: str, faults: Faults) -> Any:
    """Return what a function builds, or None with a fault."""
    try:
        return build()
    except Exception as error:
        faults(error, where=where)
        return None


def build_student(model: Mapping[str, Any], faults: Faults) -> BaseModel | None:
    """Return the student with finite weights; None if it has a fault."""
    if 'student' not in model:
        return None
    preprocessor = model.get('data_preprocessor')
    student = attempt(
        lambda: build_model(model['student'], preprocessor), 'model.student', faults
    )
    if student is not None:
        make_finite(student)
    return student


def build_teacher(config: Any, faults: Faults) -> Teacher | None:
    """Return a teacher with random, finite weights; None if it has a fault."""
    if not isinstance(config, Mapping) or 'config' not in config:
        return None
    attempt(lambda: check_trained(**config), 'model.teacher', faults)
    teacher: Teacher | None = attempt(
        lambda: Teacher(config['config'], allow_random=True), 'model.teacher', faults
    )
    if teacher is not None:
        # Only weights that learn are made finite, and these are random, too.
        make_finite(teacher.model.requires_grad_(True))
        teacher.model.requires_grad_(False)
    return teacher


def check_images(models: Mapping[str, BaseModel], faults: Faults) -> None:
    """Check that both models can read the same images."""
    if len(models) == len(SIDES):
        both = [model.data_preprocessor for model in models.values()]
        attempt(lambda: Renormalization(*both), 'model.teacher', faults)


def features_of(*models: BaseModel) -> str:
    """Return the path of the features of models: 'neck', or else 'backbone'."""
    necks = all(isinstance(getattr(m, 'neck', None), nn.Module) for m in models)
    return 'neck' if necks else 'backbone'
