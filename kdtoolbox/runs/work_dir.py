"""Resume the training of a work dir, or check that the folder has no results."""

from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from kdtoolbox.checkpoints.resuming import (
    Checkpoint,
    checkpoint_folders,
    named_checkpoint,
    newest_checkpoint,
    numbered_checkpoints,
)
from kdtoolbox.checkpoints.writing import remove_partials

_RESULTS = ('epoch_*.pth', 'iter_*.pth', 'best_*.pth', 'student_*.pth')


def enter_work_dir(cfg: Config, resume: str | None) -> None:
    """Decide from the work dir whether to resume, and update the config.

    With 'auto' and no checkpoint, the training starts from the beginning. So a job can
    be started again with the same command, whether it was interrupted early or late.

    Args:
        cfg: A config with ``work_dir``. Its ``resume``, ``load_from`` and seed are set.
        resume: The checkpoint to resume from, 'auto' for the newest undamaged one in
            the work dir, or None to follow the config.

    Raises:
        ValueError: If the training would overwrite results, if the checkpoint to resume
            from is damaged, or if the settings for saving can lose all checkpoints.
    """
    _check_saving(cfg)
    if resume is None and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    if resume is None:
        _refuse_to_overwrite(cfg, _results(cfg), 'Continue it with --resume, or name')
        return
    for folder in checkpoint_folders(cfg):
        remove_partials(folder)
    found = newest_checkpoint(cfg) if resume == 'auto' else _named(cfg, resume)
    cfg.resume = found is not None
    if found is None:
        print_log(
            f'--resume: there is no checkpoint in {cfg.work_dir}, so NOTHING IS '
            'RESUMED and the training starts from the beginning. If you expected one, '
            'stop this run and set --work-dir or --resume CKPT'
        )
        return
    cfg.load_from = found.path
    if found.meta.get('seed') is not None:
        # mmengine also restores the seed, but only after it has built the loaders.
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=found.meta['seed'])


def _named(cfg: Config, source: str) -> Checkpoint:
    found = named_checkpoint(source)
    path = Path(source).resolve()
    beside = numbered_checkpoints(path.parent)
    if path.parent in checkpoint_folders(cfg) and path in beside:
        newer = [other.name for other in beside if beside[other] > beside[path]]
        advice = f'Use --resume alone, or resume {path.name} in'
    else:
        newer, advice = _results(cfg), 'Name'
    _refuse_to_overwrite(cfg, newer, advice)
    return found


def _results(cfg: Config) -> list[str]:
    return [
        path.name
        for folder in checkpoint_folders(cfg)
        for pattern in (*_RESULTS, 'last_checkpoint')
        for path in folder.glob(pattern)
    ]


def _refuse_to_overwrite(cfg: Config, results: list[str], advice: str) -> None:
    if results:
        names = ', '.join(sorted(results)[:5]) + (', ...' if len(results) > 5 else '')
        raise ValueError(
            f'{cfg.work_dir} contains results that the training would overwrite: '
            f'{names}. {advice} another --work-dir'
        )


def _check_saving(cfg: Config) -> None:
    hook = cfg.get('default_hooks', {}).get('checkpoint') or {}
    if hook.get('max_keep_ckpts') == 1:
        raise ValueError(
            'default_hooks.checkpoint.max_keep_ckpts=1 removes the only checkpoint '
            'before the next one is written, so a kill in between loses both; set '
            '`default_hooks.checkpoint.max_keep_ckpts=2`'
        )
