"""Find the newest checkpoint that a run can resume from."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log

from kdtoolbox.checkpoints.reading import UntrustedError
from kdtoolbox.checkpoints.resumable import Checkpoint, read_resumable

_NUMBERED = re.compile(r'(?:epoch|iter)_(\d+)\.pth')


def checkpoint_folders(cfg: Config) -> list[Path]:
    """Return the work dir and, if set, the folder of CheckpointHook's ``out_dir``."""
    work_dir = Path(cfg.work_dir).resolve()
    hook = cfg.get('default_hooks', {}).get('checkpoint') or {}
    out_dir = hook.get('out_dir')
    if out_dir is None:
        return [work_dir]
    return [work_dir, Path(out_dir).resolve() / work_dir.name]


def numbered_checkpoints(folder: Path) -> dict[Path, int]:
    """Return each ``epoch_N.pth`` and ``iter_N.pth`` of a folder with its N."""
    matches = {path: _NUMBERED.fullmatch(path.name) for path in folder.glob('*.pth')}
    return {path: int(match[1]) for path, match in matches.items() if match}


def named_checkpoint(source: str) -> Checkpoint:
    """Return the checkpoint that the user has named.

    Raises:
        ValueError: If a run cannot resume from it. The message names up to three
            checkpoints in its folder that work.
    """
    try:
        return read_resumable(source)
    except UntrustedError:
        raise
    except ValueError as error:
        numbers = numbered_checkpoints(Path(source).parent)
        beside = sorted(numbers, key=lambda path: numbers[path], reverse=True)
        whole = [found.path for found in islice(_resumable(beside, []), 3)]
        raise ValueError(
            f'{error}\nWhole checkpoints beside it: {", ".join(whole) or "none"}'
        ) from error


def newest_checkpoint(cfg: Config) -> Checkpoint | None:
    """Return the newest resumable checkpoint of the work dir; None if it has none.

    The log names damaged checkpoints. Only the main process searches, and sends the
    result to the others.

    Args:
        cfg: A config with ``work_dir``.

    Raises:
        ValueError: If there are checkpoints but none is resumable.
    """
    outcome: list = [None]
    if is_main_process():
        try:
            outcome[0] = _search(cfg)
        except ValueError as error:
            # The other processes wait for a result, so the error is sent, too.
            outcome[0] = error
    broadcast_object_list(outcome)
    if isinstance(outcome[0], ValueError):
        raise outcome[0]
    return outcome[0]


def _search(cfg: Config) -> Checkpoint | None:
    last = _last_checkpoint(Path(cfg.work_dir))
    candidates = _newest_first(cfg, last)
    faults: list[str] = []
    found = next(_resumable(candidates, faults), None)
    if last is not None and not candidates:
        faults.append(
            f"'{last}', which last_checkpoint names, is gone; bring it back, or remove "
            'last_checkpoint to start afresh'
        )
    if faults and found is None:
        lines = '\n  '.join(faults)
        raise ValueError(f'nothing in {cfg.work_dir} can be resumed from:\n  {lines}')
    if faults and found is not None:
        print_log('\n'.join([*faults, f"'{found.path}' is resumed from instead"]))
    return found


def _resumable(paths: list[Path], faults: list[str]) -> Iterator[Checkpoint]:
    """Yield the resumable ones of ``paths``; append the errors of others to a list."""
    for path in paths:
        try:
            yield read_resumable(path)
        except UntrustedError:
            # The file is not damaged, and an older one would lose training progress.
            raise
        except ValueError as error:
            faults.append(str(error))


def _last_checkpoint(work_dir: Path) -> Path | None:
    """Return the path in mmengine's ``last_checkpoint`` file, if it is complete.

    A killed run may leave a part of a name.
    """
    note = work_dir / 'last_checkpoint'
    name = note.read_text(errors='replace').strip() if note.is_file() else ''
    return Path(name).resolve() if name.endswith('.pth') else None


def _newest_first(cfg: Config, last: Path | None) -> list[Path]:
    numbers: dict[Path, int] = {}
    for folder in checkpoint_folders(cfg):
        numbers |= numbered_checkpoints(folder)
    if not numbers and last is not None and last.is_file():
        # `last` is in another folder. Newer files there may belong to another run.
        beside = numbered_checkpoints(last.parent)
        last_number = beside.get(last, 0)
        older = {
            path: number for path, number in beside.items() if number < last_number
        }
        numbers = {last: last_number} | older
    # Compared by name only, since the work dir may have been moved or copied.
    noted = [path for path in numbers if last and path.name == last.name]

    def rank(path: Path) -> tuple[bool, int]:
        # Higher-numbered but older checkpoints belong to an abandoned branch: the run
        # was later resumed from an earlier checkpoint. They rank last.
        abandoned = any(
            numbers[path] > numbers[other]
            and path.stat().st_mtime < other.stat().st_mtime
            for other in noted
        )
        return not abandoned, numbers[path]

    return sorted(numbers, key=rank, reverse=True)
