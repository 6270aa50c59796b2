"""Train a student: distilled, or alone by a plain mmdet or mmseg config."""

import argparse

from mmengine.config import Config
from mmengine.runner import Runner

from kdtoolbox.command_line import run_config, run_parser
from kdtoolbox.hooks import RandomStateHook


def parse_args() -> argparse.Namespace:
    parser = run_parser(__doc__)
    parser.add_argument(
        '--amp', action='store_true', help='train in automatic mixed precision'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate by this run's batch over the recipe's",
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CKPT',
        help='resume from CKPT, or from the last checkpoint of the work dir',
    )
    return parser.parse_args()


def configure(args: argparse.Namespace) -> Config:
    cfg = run_config(args)
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError(
                f"--auto-scale-lr needs the recipe's batch size, and {args.config} "
                'does not tell it; add '
                '`auto_scale_lr = dict(enable=False, base_batch_size=16)`'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    return cfg


def main() -> None:
    runner = Runner.from_cfg(configure(parse_args()))
    runner.register_hook(RandomStateHook())
    runner.train()


if __name__ == '__main__':
    main()
