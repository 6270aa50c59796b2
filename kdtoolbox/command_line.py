"""The flags that the training and the test tool share, as OpenMMLab users know them."""

import argparse
import os
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.device import get_device
from torch import distributed

from kdtoolbox.configuration import load_config


def run_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the flags of every run."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file or package::path')
    parser.add_argument(
        '--work-dir', help='folder for logs and results; ./work_dirs/<config stem>'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override config entries, as in model.losses.loss_cwd.loss_weight=2',
    )
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none'
    )
    # torch >= 2 launchers pass the dash, older ones the underscore.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def run_config(args: argparse.Namespace) -> Config:
    """Return the config that the flags of ``run_parser`` describe.

    The work dir is the flag's, else the config's, else named after the config.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args.config)
    cfg.launcher = args.launcher
    if args.launcher != 'none' and get_device() == 'cpu':
        _distribute_on_cpu(cfg)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    stem = Path(args.config.rpartition('::')[2]).stem
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'./work_dirs/{stem}'
    return cfg


def _distribute_on_cpu(cfg: Config) -> None:
    """Start gloo and choose a wrapper; mmengine's own start asks for a CUDA device."""
    if not distributed.is_initialized():
        distributed.init_process_group('gloo')
    cfg.setdefault(
        'model_wrapper_cfg',
        dict(
            type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None
        ),
    )
