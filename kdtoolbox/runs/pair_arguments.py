"""Flags that name two models and a method in place of a config file."""

import argparse
from pathlib import Path

from kdtoolbox.checkpoints.writing import write_whole
from kdtoolbox.recipes.making import make_recipe


def add_pair_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--student``, ``--teacher``, ``--method`` and what goes with them."""
    group = parser.add_argument_group('a recipe from two models and a method')
    group.add_argument('--student', help="the student's config: file or package::path")
    group.add_argument('--teacher', help="the teacher's config: file or package::path")
    group.add_argument(
        '--teacher-checkpoint',
        metavar='F',
        help="the teacher's weights, a path or https URL; by default those that its "
        'library publishes for a package::path',
    )
    group.add_argument('--method', metavar='NAME', help='see new_config.py --list')
    group.add_argument(
        '--at',
        metavar='PLACE',
        help='where features are compared: neck, backbone, head, a module path, or '
        'STUDENT_PATH,TEACHER_PATH',
    )


_FLAGS = ('student', 'teacher', 'method', 'teacher_checkpoint', 'at')


def check_pair(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    config: str | None = None,
) -> None:
    """End with a usage message unless there is either a config or a whole pair."""
    given = [f'--{name}'.replace('_', '-') for name in _FLAGS if getattr(args, name)]
    if config is not None:
        if given:
            parser.error(f'give a config or {" ".join(given)}, not both')
        return
    missing = [f'--{name}' for name in _FLAGS[:3] if not getattr(args, name)]
    if missing:
        parser.error(
            f'{" and ".join(missing)} missing; new_config.py --list shows the methods'
        )


def name_of(args: argparse.Namespace) -> str:
    """Return a name for the recipe: method, teacher and student."""
    stems = [
        Path(source.rpartition('::')[2]).stem for source in (args.teacher, args.student)
    ]
    return '_'.join([args.method, *stems])


def recipe_of(args: argparse.Namespace, folder: Path) -> str:
    """Return the text of the recipe for a file in a folder.

    Raises:
        ValueError: If the method does not fit the two models.
    """
    return make_recipe(
        args.method,
        args.student,
        args.teacher,
        args.teacher_checkpoint,
        args.at,
        folder,
    )


def recipe_in_work_dir(args: argparse.Namespace) -> tuple[str, str]:
    """Write the recipe below a work dir; return its path and the work dir.

    It is in a folder of its own, because the run dumps its whole config under the same
    name into the work dir.

    Raises:
        ValueError: If the work dir has another recipe of this name, or the method does
            not fit the two models.
    """
    name = name_of(args)
    work_dir = args.work_dir or f'./work_dirs/{name}'
    path = Path(work_dir) / 'recipe' / f'{name}.py'
    text = recipe_of(args, path.parent)
    if path.exists() and path.read_text(encoding='utf-8') != text:
        raise ValueError(
            f'{path} is another recipe; train it by its path, or name another folder '
            'with --work-dir'
        )
    # All processes of a run write the same text, each at once.
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as file:
        file.write(text.encode())
    return str(path), work_dir
