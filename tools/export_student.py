"""Write the student of a distillation checkpoint as a plain mmdet or mmseg one."""

import argparse
from pathlib import Path

from kdtoolbox.checkpoint import export_student


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='checkpoint of a distillation')
    parser.add_argument('out', help='file to write, .pth or .safetensors')
    parser.add_argument(
        '--overwrite', action='store_true', help='replace OUT if it exists'
    )
    args = parser.parse_args()
    if Path(args.out).exists() and not args.overwrite:
        parser.error(f'{args.out} exists; name another file or add --overwrite')
    return args


def main() -> None:
    args = parse_args()
    export_student(args.checkpoint, args.out)
    print(f'student of {args.checkpoint} written to {args.out}')


if __name__ == '__main__':
    main()
