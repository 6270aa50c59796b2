"""The kinds of teachers, and how they are built from a config."""

from kdtoolbox.teachers.foundation import FoundationTeacher
from kdtoolbox.teachers.kinds import build_teacher, build_teachers
from kdtoolbox.teachers.mmengine_teacher import MMEngineTeacher
from kdtoolbox.teachers.self_teacher import SelfTeacher
from kdtoolbox.teachers.teacher import Teacher

__all__ = [
    'FoundationTeacher',
    'MMEngineTeacher',
    'SelfTeacher',
    'Teacher',
    'build_teacher',
    'build_teachers',
]
