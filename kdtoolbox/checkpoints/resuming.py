"""Find the newest whole checkpoint of a run."""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log
from torch import Tensor

from kdtoolbox.checkpoints.finite_values import listed, non_finite
from kdtoolbox.checkpoints.reading import UntrustedError, read_checkpoint

_NUMBERED = re.compile(r'(?:epoch|iter)_(\d+)\.pth')
# What mmengine reads when it resumes.
_NEEDED = ('meta', 'state_dict', 'message_hub', 'optimizer')


class Checkpoint(NamedTuple):
    """A whole checkpoint: its file or URL, and what mmengine notes beside the weights.

    The notes are ``epoch``, ``iter``, ``seed`` and so on.
    """

    path: str
    meta: dict


def checkpoint_folders(cfg: Config) -> list[Path]:
    """Return the work dir, and the folder that CheckpointHook writes to if another."""
    work_dir = Path(cfg.work_dir).resolve()
    hook = cfg.get('default_hooks', {}).get('checkpoint') or {}
    elsewhere = hook.get('out_dir')
    if elsewhere is None:
        return [work_dir]
    return [work_dir, Path(elsewhere).resolve() / work_dir.name]


def numbered_checkpoints(folder: Path) -> dict[Path, int]:
    """Return each ``epoch_N.pth`` and ``iter_N.pth`` of a folder with its N."""
    matches = {path: _NUMBERED.fullmatch(path.name) for path in folder.glob('*.pth')}
    return {path: int(match[1]) for path, match in matches.items() if match}


def read_whole(path: str | Path) -> Checkpoint:
    """Read a checkpoint, all of it.

    Raises:
        ValueError: If it is damaged, lacks what a run needs to go on, or has a weight
            that is not finite.
    """
    content = read_checkpoint(path)
    keys = content if isinstance(content, Mapping) else ()
    missing = [key for key in _NEEDED if key not in keys]
    if missing:
        raise ValueError(
            f"checkpoint '{path}' cannot be resumed from: it has no {missing}. "
            'Save with `default_hooks.checkpoint.save_optimizer=True`'
        )
    odd = next(_oddities(content), None)
    if odd is not None:
        raise ValueError(f"checkpoint '{path}' cannot be resumed from: {odd}")
    weights = {key: content.get(key) or {} for key in ('state_dict', 'ema_state_dict')}
    broken = [name for state in weights.values() for name in non_finite(state)]
    if broken:
        raise ValueError(
            f"checkpoint '{path}' cannot be resumed from: it has NaN or Inf in "
            f'{listed(broken)}. Resume from one before it'
        )
    return Checkpoint(str(path), content['meta'])


def _oddities(content: Mapping) -> Iterator[str]:
    """Say what mmengine would stumble over."""
    for key in _NEEDED:
        if not isinstance(content[key], Mapping):
            yield f'expected {key} to be a dict, got {content[key]!r:.60}'
    meta = content['meta']
    for key in ('epoch', 'iter'):
        number = meta.get(key)
        # A truth value is an integer, too.
        if type(number) is not int or number < 0:
            yield f"expected meta['{key}'] to be a number from 0 on, got {number!r:.60}"
    if type(meta.get('seed')) not in (int, type(None)):
        yield f"expected meta['seed'] to be an integer, got {meta['seed']!r:.60}"
    for key, value in content['state_dict'].items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            yield f'expected tensors by name in state_dict, got {key!r:.60}'
    for key in ('log_scalars', 'runtime_info', 'resumed_keys'):
        value = content['message_hub'].get(key)
        if not isinstance(value, Mapping):
            yield f"expected message_hub['{key}'] to be a dict, got {value!r:.60}"


def named_checkpoint(source: str) -> Checkpoint:
    """Return the checkpoint that the user has named.

    Raises:
        ValueError: If it is not whole; it names up to three whole ones beside it.
    """
    try:
        return read_whole(source)
    except UntrustedError:
        raise
    except ValueError as error:
        numbers = numbered_checkpoints(Path(source).parent)
        beside = sorted(numbers, key=lambda path: numbers[path], reverse=True)
        whole = [found.path for found in islice(_whole_of(beside, []), 3)]
        raise ValueError(
            f'{error}\nWhole checkpoints beside it: {", ".join(whole) or "none"}'
        ) from error


def newest_checkpoint(cfg: Config) -> Checkpoint | None:
    """Return the newest whole checkpoint of the work dir, None if there is none at all.

    Damaged ones are told. The processes of a run all get what the first has found.

    Args:
        cfg: A config with ``work_dir``.

    Raises:
        ValueError: If there are checkpoints and none is whole.
    """
    outcome: list = [None]
    if is_main_process():
        try:
            outcome[0] = _search(cfg)
        except ValueError as error:
            # The other processes wait for an answer.
            outcome[0] = error
    broadcast_object_list(outcome)
    if isinstance(outcome[0], ValueError):
        raise outcome[0]
    return outcome[0]


def _search(cfg: Config) -> Checkpoint | None:
    last = _last_checkpoint(Path(cfg.work_dir))
    candidates = _newest_first(cfg, last)
    faults: list[str] = []
    found = next(_whole_of(candidates, faults), None)
    if last is not None and not candidates:
        faults.append(
            f"'{last}', which last_checkpoint names, is gone; bring it back, or remove "
            'last_checkpoint to start afresh'
        )
    if faults and found is None:
        told = '\n  '.join(faults)
        raise ValueError(f'nothing in {cfg.work_dir} can be resumed from:\n  {told}')
    if faults and found is not None:
        print_log('\n'.join([*faults, f"'{found.path}' is resumed from instead"]))
    return found


def _whole_of(paths: list[Path], faults: list[str]) -> Iterator[Checkpoint]:
    """Yield those of ``paths`` that are whole; note what is wrong with the others."""
    for path in paths:
        try:
            yield read_whole(path)
        except UntrustedError:
            # It is no damage, and an older one would lose what has been trained.
            raise
        except ValueError as error:
            faults.append(str(error))


def _last_checkpoint(work_dir: Path) -> Path | None:
    """Return what mmengine has noted as last; a killed run may leave half a name."""
    note = work_dir / 'last_checkpoint'
    name = note.read_text(errors='replace').strip() if note.is_file() else ''
    return Path(name).resolve() if name.endswith('.pth') else None


def _newest_first(cfg: Config, last: Path | None) -> list[Path]:
    numbers: dict[Path, int] = {}
    for folder in checkpoint_folders(cfg):
        numbers |= numbered_checkpoints(folder)
    if not numbers and last is not None and last.is_file():
        # Another folder: what is newer there than the note may be of another run.
        beside = numbered_checkpoints(last.parent)
        own = beside.get(last, 0)
        older = {path: number for path, number in beside.items() if number < own}
        numbers = {last: own} | older
    # Only the name counts: the work dir may have been moved or copied.
    noted = [path for path in numbers if last and path.name == last.name]

    def rank(path: Path) -> tuple[bool, int]:
        # Higher numbers that are older than what was written last are of a course
        # that the run has left, when it was resumed from further back.
        left = any(
            numbers[path] > numbers[other]
            and path.stat().st_mtime < other.stat().st_mtime
            for other in noted
        )
        return not left, numbers[path]

    return sorted(numbers, key=rank, reverse=True)
