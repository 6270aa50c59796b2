"""Foundation models as teachers: backbones of timm, transformers, torch.hub or own."""

from kdtoolbox.teachers.foundation.building import build_foundation
from kdtoolbox.teachers.foundation.foundation_teacher import FoundationTeacher
from kdtoolbox.teachers.foundation.model import FoundationModel

__all__ = ['FoundationModel', 'FoundationTeacher', 'build_foundation']
