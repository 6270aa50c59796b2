"""Write the student of a distillation checkpoint as a plain mmdet or mmseg one."""

import argparse
from pathlib import Path

from mmengine.config import Config

from kdtoolbox.checkpoints.student_export import (
    export_student,
    load_distillation,
    select_student,
    write_student,
)
from kdtoolbox.checkpoints.weights import load_strictly
from kdtoolbox.configuration import load_config, resolve_paths
from kdtoolbox.runs.brief_errors import add_traceback, brief_errors
from kdtoolbox.runs.student_config import student_config, write_student_config
from kdtoolbox.teachers.models import build_model


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='checkpoint of a distillation')
    parser.add_argument('out', help='file to write, .pth or .safetensors')
    parser.add_argument(
        '--config',
        help='config of the distillation, best the one in its work dir; writes the '
        "student's config to OUT with the suffix .py, so that both files run without "
        'kdtoolbox',
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace existing files of OUT'
    )
    add_traceback(parser)
    args = parser.parse_args()
    args.out = Path(args.out)
    if args.out.suffix == '.py':
        parser.error(
            f'OUT must be a file for weights, .pth or .safetensors, got {args.out}'
        )
    if not args.out.parent.is_dir():
        parser.error(f'the folder {args.out.parent} of OUT does not exist; make it')
    targets = [args.out, args.out.with_suffix('.py')][: 2 if args.config else 1]
    for target in targets:
        if target.exists() and not args.overwrite:
            parser.error(f'{target} exists; name another file or add --overwrite')
    return args


def main() -> None:
    args = parse_args()
    with brief_errors(args.traceback):
        export(args)


def export(args: argparse.Namespace) -> None:
    """Write the student and, with a config, its own config."""
    if args.config is None:
        export_student(args.checkpoint, args.out)
        print(f'student of {args.checkpoint} written to {args.out}')
        print("to write the student's config, too, add --config CONFIG")
        return
    cfg = load_config(args.config)
    resolve_paths(cfg, need_teacher=False)
    # mmdet and mmseg would only warn about weights that do not fit the config.
    model = build_model(Config(student_config(cfg)))
    checkpoint = load_distillation(args.checkpoint)
    state = select_student(checkpoint['state_dict'])
    load_strictly(model, state, repr(args.checkpoint), args.config)
    write_student(checkpoint, args.out)
    written = args.out.with_suffix('.py')
    write_student_config(cfg, written)
    print(f'student of {args.checkpoint} written to {args.out} and {written}')


if __name__ == '__main__':
    main()
