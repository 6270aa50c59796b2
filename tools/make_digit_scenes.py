"""Make DigitScenes, the embedded data set, in COCO and Cityscapes layout."""

import argparse
import dataclasses
import time

from kdtoolbox.datasets import PRESETS, make_digit_scenes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--preset', choices=PRESETS, default='det')
    parser.add_argument('--root', help='folder to make; default data/digits_<preset>')
    parser.add_argument('--train', type=int, default=2000, help='training scenes')
    parser.add_argument('--val', type=int, default=500, help='validation scenes')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--tuning',
        action='store_true',
        help='to choose weights on: training writers in both splits; default folder '
        'data/digits_<preset>_tuning',
    )
    parser.add_argument('--workers', type=int, help='processes; default all cores')
    parser.add_argument('--digit-size', type=int, nargs=2, metavar=('MIN', 'MAX'))
    parser.add_argument('--count', type=int, nargs=2, metavar=('MIN', 'MAX'))
    parser.add_argument('--contrast', type=float)
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('H', 'W'), help='scene size in pixels'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    given = dict(
        digit_size=args.digit_size and tuple(args.digit_size),
        count=args.count and tuple(args.count),
        contrast=args.contrast,
        size=args.size and tuple(args.size),
    )
    style = dataclasses.replace(
        PRESETS[args.preset], **{k: v for k, v in given.items() if v is not None}
    )
    suffix = '_tuning' if args.tuning else ''
    root = args.root or f'data/digits_{args.preset}{suffix}'
    start = time.perf_counter()
    made = make_digit_scenes(
        root, style, args.train, args.val, args.seed, args.workers, args.tuning
    )
    seconds = time.perf_counter() - start
    scenes = f'{args.train} training and {args.val} validation scenes'
    print(f'{root}: {scenes} ' + (f'in {seconds:.1f} s' if made else 'exist already'))


if __name__ == '__main__':
    main()
