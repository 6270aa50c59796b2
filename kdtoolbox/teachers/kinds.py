"""Build teachers of all kinds from the config of a distillation."""

import inspect
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import nn

from kdtoolbox.configuration import check_keys, did_you_mean
from kdtoolbox.registry import TEACHERS
from kdtoolbox.teachers.teacher import NAME, Teacher

DEFAULT = 'MMEngineTeacher'
OPTIONS = (*inspect.signature(Teacher.use).parameters,)[1:]
"""The keys that every kind of teacher takes: the arguments of `Teacher.use`."""

_GIVEN = ('student', 'name', 'where')
"""Arguments of a kind that no config sets."""


def named_teachers(teacher: Any = None, teachers: Any = None) -> dict[str, Any]:
    """Return the configs of all teachers by name.

    Args:
        teacher: The config of the only teacher, called 'teacher', or None.
        teachers: The configs of several teachers by name, or None.

    Raises:
        ValueError: If both are set, or the names cannot be those of wires.

    Example:
        >>> named_teachers(dict(config='mmdet::gfl/gfl_r50_fpn_1x_coco.py')).keys()
        dict_keys(['teacher'])
    """
    if teachers is None:
        return {} if teacher is None else {NAME: teacher}
    if teacher is not None:
        raise ValueError(
            'model: `teacher` is for one teacher and `teachers` for several; move '
            'the one to teachers=dict(name=dict(...)), or remove a key'
        )
    if not isinstance(teachers, Mapping):
        raise ValueError(
            f'model.teachers: expected dict(name=dict(...)), got {teachers!r}'
        )
    for name in teachers:
        check_name(name, f'model.teachers.{name}')
    return dict(teachers)


def check_name(name: str, where: str) -> None:
    """Raise ValueError if a model cannot have a name, which begins its wires."""
    if not isinstance(name, str) or not name.isidentifier() or name == 'student':
        raise ValueError(
            f'{where}: {name!r} cannot be the name of a model, which begins its '
            "wires; choose a name of letters and digits other than 'student'"
        )


def check_peers(peers: Any, teachers: Collection[str]) -> None:
    """Raise an error if peers are not given by names of their own.

    Args:
        peers: ``model.peers``, or None.
        teachers: The names of the teachers.

    Raises:
        TypeError: If they are no dict.
        ValueError: If a name cannot be that of a peer.
    """
    if not isinstance(peers or {}, Mapping):
        raise TypeError(
            f'model.peers: expected configs by name, got {peers!r}; write '
            "peers=dict(peer='config.py')"
        )
    for name in peers or {}:
        check_name(name, f'model.peers.{name}')
        if name in teachers:
            raise ValueError(
                f'model.peers.{name}: a teacher has that name too; choose another'
            )
        if hasattr(nn.ModuleDict(), name):
            raise ValueError(
                f'model.peers.{name}: every module of torch has an attribute of that '
                "name; choose another, such as 'peer'"
            )


def check_init(init_student: Any, teachers: Collection[str]) -> None:
    """Raise ValueError if `init_student` names no teacher to copy from."""
    alone = len(teachers) == 1
    if init_student is False or (init_student is True and alone):
        return
    if init_student is True or init_student not in teachers:
        line = f'init_student={min(teachers)!r}' if teachers else 'init_student=False'
        raise ValueError(
            'model.init_student: expected the name of a teacher, one of '
            f'{sorted(teachers)}, got {init_student!r}; write {line}'
        )


def place_of(name: str, alone: bool) -> str:
    """Return the config path of a teacher."""
    return 'model.teacher' if alone else f'model.teachers.{name}'


def build_teachers(
    teacher: Any = None, teachers: Any = None, student: nn.Module | None = None
) -> dict[str, Teacher]:
    """Build the teachers of a distillation by name; arguments as `named_teachers`.

    Args:
        teacher: The config of the only teacher, or None.
        teachers: The configs of several teachers by name, or None.
        student: The student, for teachers that are copies of it.
    """
    alone = teachers is None
    return {
        name: build_teacher(config, name, place_of(name, alone), student)
        for name, config in named_teachers(teacher, teachers).items()
    }


def build_teacher(
    config: Any,
    name: str = NAME,
    where: str = 'model.teacher',
    student: nn.Module | None = None,
) -> Teacher:
    """Build a teacher of any kind.

    Args:
        config: The arguments of its kind, those of `Teacher.use`, and its ``type``,
            by default 'MMEngineTeacher'.
        name: Name of the teacher.
        where: Config path of the teacher, for errors.
        student: The student, for teachers that are copies of it.

    Raises:
        TypeError: If the config is no dict, or a key is unknown or missing.
        ValueError: If there is no such kind, or the kind rejects its arguments.
    """
    for fault in teacher_faults(config, where):
        raise fault
    kind = kind_of_teacher(config, where)
    own = {k: v for k, v in config.items() if k not in {'type', '_scope_', *OPTIONS}}
    given: dict[str, Any] = dict(student=student, name=name, where=where)
    if 'student' not in inspect.signature(kind).parameters:
        del given['student']
    teacher = kind(**own, **given)
    teacher.made_of = dict(own, type=kind.__name__)
    teacher.use(**{key: config[key] for key in OPTIONS if key in config})
    return teacher


def kind_of_teacher(config: Mapping[str, Any], where: str) -> type[Teacher]:
    """Return the class of a teacher; raise ValueError if there is none."""
    kind = config.get('type', DEFAULT)
    if isinstance(kind, type):
        return kind
    TEACHERS.import_from_location()
    found = TEACHERS.get(kind) if isinstance(kind, str) else None
    if found is None:
        raise ValueError(
            f'{where}.type: kdtoolbox has no teacher {kind!r}'
            f'{did_you_mean(str(kind), TEACHERS.module_dict)}'
        )
    return found


def teacher_faults(config: Any, where: str) -> Iterator[Exception]:
    """Yield what is wrong with the keys of a teacher's config."""
    if not isinstance(config, Mapping):
        yield TypeError(
            f'{where}: expected dict(config=..., checkpoint=...), got {config!r}; '
            f'write {where.rpartition(".")[2]}=dict(config={config!r}, checkpoint=...)'
        )
        return
    try:
        kind = kind_of_teacher(config, where)
    except ValueError as error:
        yield error
        return
    own = {k: v for k, v in config.items() if k not in OPTIONS}
    try:
        check_keys(own, kind, where, given=_GIVEN, others=OPTIONS)
    except TypeError as error:
        yield error


def forget_weights(model: Any) -> None:
    """Let all teachers of a model's config have random weights, in place."""
    if model.get('teacher') is not None:
        model['teacher'] = without_weights(model['teacher'])
    teachers = model.get('teachers') or {}
    for name, config in teachers.items():
        teachers[name] = without_weights(config)


def without_weights(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the same teacher with random weights, which reads no file.

    Example:
        >>> without_weights(dict(config='gfl.py', checkpoint='gfl.pth'))
        {'config': 'gfl.py', 'allow_random': True}
    """
    files = ('checkpoint', 'pretrained', 'trust_pickle', 'cache')
    kept = {key: value for key, value in config.items() if key not in files}
    known = inspect.signature(kind_of_teacher(config, 'model.teacher')).parameters
    return dict(kept, allow_random=True) if 'allow_random' in known else kept
