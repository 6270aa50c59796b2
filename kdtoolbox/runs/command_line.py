"""Command-line flags that the training tool and the test tool share."""

import argparse
import difflib
import inspect
import os
import subprocess
from inspect import isclass
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.dist import init_dist, is_distributed
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing
from torch import distributed

from kdtoolbox.checkpoints.reading import use_safe_loaders
from kdtoolbox.checkpoints.writing import use_whole_files
from kdtoolbox.configuration import load_config, resolve_paths
from kdtoolbox.runs.brief_errors import add_traceback

_VARIABLES = {
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': (
        'OMPI_COMM_WORLD_RANK',
        'OMPI_COMM_WORLD_SIZE',
        'OMPI_COMM_WORLD_LOCAL_RANK',
    ),
}
"""Variables with the rank, the number of processes, and the rank on the machine."""


def config_parser(
    description: str | None, need_config: bool = True
) -> argparse.ArgumentParser:
    """Return a parser with the flags of each tool that reads a config.

    Args:
        description: What the tool does.
        need_config: Whether the config has to be given.
    """
    parser = argparse.ArgumentParser(description=description)
    nargs = None if need_config else '?'
    parser.add_argument('config', nargs=nargs, help='config file or package::path')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override config entries, as in model.losses.loss_cwd.loss_weight=2',
    )
    add_traceback(parser)
    return parser


def run_parser(
    description: str | None, need_config: bool = True
) -> argparse.ArgumentParser:
    """Return a parser with the flags that every run has.

    Args:
        description: What the tool does.
        need_config: Whether the config has to be given.
    """
    parser = config_parser(description, need_config)
    parser.add_argument(
        '--work-dir', help='folder for logs and results; ./work_dirs/<config stem>'
    )
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none'
    )
    # torch >= 2 launchers pass the dash, older ones the underscore.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def run_config(args: argparse.Namespace, need_teacher: bool = True) -> Config:
    """Read the config and apply the flags of ``run_parser`` to it.

    Paths of student and teacher become absolute. The work dir comes from the flag, else
    from the config, else from the name of the config. From this call on,
    mmengine reads checkpoints safely and replaces files only as a whole.
    """
    use_safe_loaders()
    use_whole_files()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config, args.cfg_options, need_teacher)
    cfg.launcher = args.launcher
    if args.launcher != 'none' and get_device() == 'cpu':
        _distribute_on_cpu(cfg)
    if args.launcher != 'none':
        _start_processes(cfg)
    stem = Path(args.config.rpartition('::')[2]).stem
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'./work_dirs/{stem}'
    return cfg


def read_config(
    source: str, options: dict | None = None, need_teacher: bool = True
) -> Config:
    """Read a config, override entries and make the paths of both models absolute.

    Args:
        source: A file or ``package::path``.
        options: The entries of ``--cfg-options``.
        need_teacher: Whether the files of the teacher have to exist.

    Raises:
        ValueError: If a file does not exist, or an option is for an entry of a list
            that the list does not have, or begins with a typo.
    """
    cfg = load_config(source)
    merge_options(cfg, options or {})
    resolve_paths(cfg, need_teacher)
    return cfg


def merge_options(cfg: Config, options: dict) -> None:
    """Override entries of a config, in place.

    Raises:
        ValueError: If an option is for an entry of a list that the list does not have,
            or begins with a typo.

    Example:
        >>> cfg = Config(dict(model=dict(sources=[dict(type='CrossHead')])))
        >>> merge_options(cfg, {'model.sources.1.stage': 2})
        Traceback (most recent call last):
        ValueError: --cfg-options model.sources.1.stage: model.sources has 1 entry, \
counted from 0; use model.sources.0
    """
    for option in options:
        _check_first(option, cfg)
        value, place = cfg, ''
        for part in option.split('.'):
            if isinstance(value, list) and part.isdigit() and int(part) >= len(value):
                count = f'{len(value)} {"entry" if len(value) == 1 else "entries"}'
                last = f'{place}.{len(value) - 1}'
                hint = f'use {last}' if value else f'write {place}=[dict(...)] first'
                raise ValueError(
                    f'--cfg-options {option}: {place} has {count}, counted from 0; '
                    f'{hint}'
                )
            try:
                value = value[int(part) if isinstance(value, list) else part]
            except (KeyError, TypeError, ValueError):
                break
            place = f'{place}.{part}'.strip('.')
    cfg.merge_from_dict(options)


def _check_first(option: str, cfg: Config) -> None:
    """Refuse an option whose first part is a typo of an entry that exists."""
    known = [*cfg, *inspect.signature(Runner.__init__).parameters]
    first = option.partition('.')[0]
    # mmengine would add the entry, and the run would go on without the option.
    close = difflib.get_close_matches(first, known, n=1, cutoff=0.8)
    if close and first not in known:
        raise ValueError(
            f'--cfg-options {option}: the config has no {first!r}; did you mean '
            f'{close[0]!r}?'
        )


def _start_processes(cfg: Config) -> None:
    """Start the process group early, for the checks that run before the Runner."""
    if not is_distributed():
        environment = cfg.get('env_cfg') or {}
        set_multi_processing(**environment.get('mp_cfg', {}), distributed=True)
        init_dist(cfg.launcher, **environment.get('dist_cfg', {}))


def _distribute_on_cpu(cfg: Config) -> None:
    """Start gloo on the CPU; mmengine's own start needs a CUDA device."""
    if cfg.get('sync_bn'):
        raise ValueError(
            f'sync_bn: {cfg.sync_bn!r} synchronises batch norms, which needs GPUs; on '
            'a CPU add `--cfg-options sync_bn=None`, so that each process normalises '
            'over its own images'
        )
    _wrap_for_cpu(cfg)
    if not distributed.is_initialized():
        _name_as_torchrun(cfg.launcher)
        distributed.init_process_group('gloo')


def _wrap_for_cpu(cfg: Config) -> None:
    """Set the model wrapper to use no CUDA device; the default is mmengine's."""
    if cfg.get('model_wrapper_cfg') is None:
        cfg.model_wrapper_cfg = dict(broadcast_buffers=False)
    wrapper = cfg.model_wrapper_cfg
    kind = wrapper.setdefault('type', 'MMDistributedDataParallel')
    found = MODEL_WRAPPERS.get(kind) if isinstance(kind, str) else kind
    if not (isclass(found) and issubclass(found, MMDistributedDataParallel)):
        raise ValueError(
            'model_wrapper_cfg.type: expected MMDistributedDataParallel or a class '
            f'derived from it on a CPU, got {kind!r}; add `--cfg-options '
            'model_wrapper_cfg.type=MMDistributedDataParallel`'
        )
    if 'find_unused_parameters' in cfg:
        wrapper.setdefault('find_unused_parameters', cfg.find_unused_parameters)
    wrapper.device_ids = None
    wrapper.pop('output_device', None)


def _name_as_torchrun(launcher: str) -> None:
    """Copy the variables of a launcher to the names that torch reads."""
    names = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')
    for name, source in zip(names, _VARIABLES.get(launcher, ()), strict=False):
        os.environ[name] = os.environ[source]
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        command = ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']]
        hosts = subprocess.run(  # noqa: S603  a list, so no shell reads it
            command, check=True, capture_output=True, text=True
        )
        os.environ['MASTER_ADDR'] = hosts.stdout.split()[0]
    os.environ.setdefault('MASTER_PORT', '29500')
