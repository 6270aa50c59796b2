"""Write a recipe that distils one model of mmdet or mmseg from another.

Losses, connectors and numbers come from the shipped recipe of the method whose models
are most like the two; layers, channels and levels from a forward of both on random
images.
"""

import argparse
import warnings
from pathlib import Path

from mmengine.registry import init_default_scope
from rich.console import Console

from kdtoolbox.checkpoints.writing import write_whole
from kdtoolbox.inspection.batches import sides_of
from kdtoolbox.recipes.catalogue import print_methods
from kdtoolbox.runs.brief_errors import add_traceback, all_faults, brief_errors
from kdtoolbox.runs.command_line import read_config
from kdtoolbox.runs.distillation import build_distiller
from kdtoolbox.runs.pair_arguments import (
    add_pair_arguments,
    check_pair,
    name_of,
    recipe_of,
)
from kdtoolbox.runs.rehearsal import rehearse
from kdtoolbox.teachers.kinds import forget_weights

console = Console(soft_wrap=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_pair_arguments(parser)
    parser.add_argument(
        '-o', '--out', help='the new file; <method>_<teacher>_<student>.py by default'
    )
    parser.add_argument(
        '--list', action='store_true', help='show each method in one line'
    )
    add_traceback(parser)
    args = parser.parse_args()
    if not args.list:
        check_pair(parser, args)
    return args


def output_of(args: argparse.Namespace) -> Path:
    """Return the path of the new file.

    Raises:
        ValueError: If it exists, or is no Python file.
    """
    path = Path(args.out or f'{name_of(args)}.py')
    if path.suffix != '.py':
        raise ValueError(f'--out {path}: a recipe is a .py file; name one')
    if path.exists():
        raise ValueError(f'--out {path} exists; name another file or remove it')
    return path


def check(path: Path) -> None:
    """Build the distillation of a recipe and try its losses on random images.

    Raises:
        ValueError: If the recipe does not fit the models, or the teacher's weights do
            not exist.
    """
    cfg = read_config(str(path))
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    forget_weights(cfg.model)
    with all_faults(cfg):
        model = build_distiller(cfg)
        rehearse(model, sides_of(model.student)[0])


def write_checked(text: str, path: Path) -> None:
    """Write a recipe, and remove it again if its losses do not work.

    Raises:
        ValueError: If the recipe does not fit the models.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as file:
        file.write(text.encode())
    try:
        check(path)
    except Exception:
        path.unlink()
        raise


def main() -> None:
    args = parse_args()
    if args.list:
        # A table of one line per method needs this many columns.
        print_methods(Console(width=max(console.width, 160)))
        return
    with brief_errors(args.traceback):
        path = output_of(args)
        # The libraries warn of their own code while they build models.
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            write_checked(recipe_of(args, path.parent), path)
    console.print(f'{path} written; see it with: tools/inspect_config.py {path}')


if __name__ == '__main__':
    main()
