"""Read a config from a file, a package (``mmdet::...``) or a dict, and check it."""

import copy
import difflib
import inspect
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.config import utils as config_utils

_SUFFIXES = ('.py', '.json', '.yaml', '.yml')

Report = Callable[[Exception], None]
"""Gets the faults of a config one by one."""


def refuse(fault: Exception) -> None:
    """Raise a fault of a config: the `Report` that ends at the first one."""
    raise fault


def _enable_mmseg_inheritance() -> None:
    """Make ``_base_ = 'mmseg::...'`` work with the maintained fork of mmseg.

    mmengine looks for the distribution ``mmsegmentation``. The fork has another name,
    so mmengine raises an error, or pip-installs the original over the fork.
    """
    try:
        metadata.version('mmsegmentation')
    except metadata.PackageNotFoundError:
        if util.find_spec('mmseg') is not None:
            config_utils.MODULE2PACKAGE['mmseg'] = 'mmseg'


def load_config(source: str | Path | dict | Config, where: str = 'config') -> Config:
    """Read a config from a file, a package or a dict.

    Args:
        source: A file, ``package::path`` for a config of an installed package, or a
            dict. A dict may inherit through ``_base_``, as a file does: one source or
            a list of them.
        where: Config path of ``source``, for error messages.

    Raises:
        ValueError: If a package, a file or an inherited key does not exist, or a key is
            in the wrong place. The message lists similar names.

    Example:
        >>> gfl = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'
        >>> load_config(gfl).model.type
        'GFL'
        >>> mine = dict(_base_=gfl, model=dict(bbox_head=dict(num_classes=3)))
        >>> load_config(mine).model.bbox_head.num_classes
        3
    """
    _enable_mmseg_inheritance()
    if isinstance(source, Config):
        return source
    if isinstance(source, dict):
        return _inherit(source, where) if '_base_' in source else Config(dict(source))
    if not isinstance(source, str | Path):
        raise TypeError(
            f'{where}: expected a file, package::path or a dict, got {source!r}'
        )
    path = find_file(str(source), [Path.cwd()], where)
    if path.suffix not in _SUFFIXES:
        raise ValueError(
            f"{where}: '{path}' is not a config, which ends in one of "
            f'{", ".join(_SUFFIXES)}; weights belong under `checkpoint`'
        )
    try:
        return Config.fromfile(path)
    except AttributeError as error:
        if not isinstance(error.obj, ConfigDict):
            raise
        raise ValueError(
            f"{where}: '{path}' names {error.name!r}, as in `_base_.{error.name}`, "
            f'which does not exist{did_you_mean(str(error.name), error.obj)}'
        ) from error
    except (AssertionError, ImportError, OSError, ValueError):
        _check_bases(path)
        raise


def _inherit(source: dict, where: str) -> Config:
    """Merge a dict into the configs that it inherits from."""
    own = copy.deepcopy({key: source[key] for key in source if key != '_base_'})
    inherited: dict[str, Any] = {}
    for base in _listed(source['_base_']):
        read = load_config(base, f'{where}._base_').to_dict()
        twice = sorted(inherited.keys() & read.keys())
        if twice:
            raise ValueError(
                f'{where}._base_: {twice} come from several of its configs; name those '
                'that share no key'
            )
        inherited |= read
    for key in own:
        if key not in inherited and key in inherited.get('model', {}):
            raise ValueError(
                f'{where}: {key!r} belongs to the `model` of its _base_; write '
                f'model=dict({key}=...)'
            )
    cfg = Config(inherited)
    try:
        cfg.merge_from_dict(own, allow_list_keys=False)
    except TypeError as error:
        raise TypeError(f'{where}: {error}') from error
    return cfg


def _listed(names: Any) -> list:
    return list(names) if isinstance(names, list | tuple) else [names]


def find_file(source: str, folders: Sequence[Path], where: str) -> Path:
    """Return the absolute path of a file.

    Args:
        source: Path of the file, or ``package::path`` for a config of a package.
        folders: Folders to search for a relative path, in this order.
        where: Config path of ``source``, for error messages.

    Raises:
        ValueError: If there is no such file. The message lists the places searched and
            similar names.
    """
    if '::' in source:
        return _package_file(source, where)
    path = Path(source).expanduser()
    places = list(dict.fromkeys(os.path.abspath(folder / path) for folder in folders))
    for place in places:
        if os.path.isfile(place):
            return Path(place)
    close = dict.fromkeys(name for place in places for name in _near(Path(place)))
    raise ValueError(
        f'{where}: there is no file {source!r}; looked for '
        f'{" and ".join(places)}; close: {", ".join(close) or "none"}'
    )


def _package_file(source: str, where: str) -> Path:
    package, _, name = source.partition('::')
    spec = util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(
            f'{where}: {source!r}: the package {package!r} is not installed'
        )
    root = Path(spec.origin).parent / '.mim' / 'configs'
    path = root / name
    if not path.is_file():
        names = [str(found.relative_to(root)) for found in root.rglob('*.py')]
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        raise ValueError(
            f'{where}: {source!r}: {package} has no such config; close: '
            + (', '.join(f'{package}::{match}' for match in close) or 'none')
        )
    return path


def _near(place: Path) -> list[str]:
    """Return names similar to the first part of a path that does not exist."""
    folder = next(parent for parent in place.parents if parent.is_dir())
    name = place.relative_to(folder).parts[0]
    close = difflib.get_close_matches(name, os.listdir(folder), n=3)
    return [str(folder / match) for match in close]


def _bases_of(path: Path) -> list[str]:
    """Return the ``_base_`` of a file, without names that contain placeholders."""
    try:
        names = Config._get_base_files(str(path))
    except Exception:
        # With placeholders such as `{{fileDirname}}` the file is not valid Python yet.
        return []
    return [name for name in names if isinstance(name, str) and '{{' not in name]


def _check_bases(path: Path) -> None:
    """Raise ValueError if a file inherits, directly or not, from a missing file."""
    for name in _bases_of(path):
        _check_bases(find_file(name, [path.parent], f"'{path}': _base_"))


def resolve_paths(cfg: Config, need_teacher: bool = True) -> None:
    """Make the relative paths of student and teacher absolute, in place.

    The paths are ``model.student``, ``config`` and ``checkpoint`` of each teacher, the
    peers, and the ``_base_`` of any of them. Each is searched for in the working
    folder, then beside the config file that contains it: the file of ``cfg`` or one of
    its bases. Absolute paths stay valid in the config that a run dumps into its work
    dir.

    Args:
        cfg: The config of a run, as read from a file.
        need_teacher: Whether the files of the teacher have to exist.

    Raises:
        ValueError: If a file does not exist. The message lists the places searched and
            similar names.
    """
    model: Any = cfg.get('model') or {}
    if not {'student', 'teacher'} & set(model):
        return
    files = files_of(Path(cfg.filename)) if cfg.filename else []
    texts = {path: path.read_text(encoding='utf-8') for path in files}
    find = partial(_absolute, texts=texts)
    # A trainer of tokens has a teacher only.
    if 'student' in model:
        model.student = find(model.student, 'model.student')
    for place, owner, keys in _places_of_paths(model):
        for key in keys:
            if isinstance(owner.get(key), str | dict):
                owner[key] = find(owner[key], f'{place}.{key}', needed=need_teacher)


def _places_of_paths(model: Any) -> Iterator[tuple[str, dict, Sequence[str]]]:
    """Yield the parts of a model besides the student whose values may be paths."""
    files = ('config', 'checkpoint')
    teachers, peers = model.get('teachers'), model.get('peers')
    if isinstance(model.get('teacher'), dict):
        yield 'model.teacher', model['teacher'], files
    for name, teacher in teachers.items() if isinstance(teachers, dict) else ():
        if isinstance(teacher, dict):
            yield f'model.teachers.{name}', teacher, files
    if isinstance(peers, dict):
        yield 'model.peers', peers, [*peers]


def _absolute(
    value: Any, where: str, texts: Mapping[Path, str], needed: bool = True
) -> Any:
    """Return ``value`` with absolute paths, those of its ``_base_`` included."""
    again = partial(_absolute, texts=texts, needed=needed)
    if isinstance(value, list):
        return [again(part, where) for part in value]
    if isinstance(value, dict) and '_base_' in value:
        value['_base_'] = again(value['_base_'], f'{where}._base_')
    if not isinstance(value, str) or '::' in value or '://' in value:
        return value
    naming = [path for path in texts if value in texts[path]] or list(texts)[:1]
    try:
        folders = [Path.cwd(), *(path.parent for path in naming)]
        return str(find_file(value, folders, where))
    except ValueError:
        if needed:
            raise
        return value


def files_of(path: Path) -> list[Path]:
    """Return a config file and its bases, without those of packages."""
    files = [path]
    for name in _bases_of(path):
        base = path.parent / name
        if '::' not in name and base.is_file():
            files += files_of(base)
    return files


def check_keys(
    config: Mapping[str, Any],
    target: Callable,
    where: str,
    given: Collection[str] = (),
    others: Collection[str] = (),
) -> None:
    """Check that a config's keys match the parameters of a class or function.

    The registry reads ``type`` and ``_scope_``, so these two are always allowed.

    Args:
        config: The arguments in the config.
        target: The class or function that gets them.
        where: Config path of the arguments.
        given: Arguments that the caller sets, and no config.
        others: Keys that something else reads, which an unknown key may resemble.

    Raises:
        TypeError: If keys are unknown or missing. The message lists them all, with
            similar names.

    Example:
        >>> check_keys(dict(type='Path', soruce='a'), load_config, 'here')
        Traceback (most recent call last):
        TypeError: here: load_config takes no 'soruce' (did you mean 'source'?); \
it needs 'source'
    """
    parameters = inspect.signature(target).parameters.values()
    named = [
        p
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in given
    ]
    known = [parameter.name for parameter in named]
    keys = config.keys() - {'type', '_scope_'}
    unknown = sorted(keys - set(known))
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        unknown = []
    lacking = [p.name for p in named if p.default is p.empty and p.name not in keys]
    faults = [f'takes no {key!r}{_nearest(key, [*known, *others])}' for key in unknown]
    faults += [f'needs {key!r}' for key in lacking]
    if faults:
        name = getattr(target, '__name__', repr(target))
        raise TypeError(f'{where}: {name} {"; it ".join(faults)}')


def _nearest(name: str, names: Sequence[str]) -> str:
    if not names:
        return ' (it has no arguments)'
    close = difflib.get_close_matches(name, names, n=1)
    hint = f'did you mean {close[0]!r}?' if close else f'but {", ".join(names)}'
    return f' ({hint})'


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return the end of an error message: the nearest name, or else all names.

    Example:
        >>> did_you_mean('student.fnp', ['student.fpn', 'teacher.fpn'])
        "; did you mean 'student.fpn'?"
    """
    close = difflib.get_close_matches(name, names, n=1)
    return f'; did you mean {close[0]!r}?' if close else f'; there are {sorted(names)}'
