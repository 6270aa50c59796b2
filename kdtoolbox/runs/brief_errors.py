"""Print the errors of a config as messages, without a traceback of forty lines."""

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.dist import is_distributed, is_main_process
from torch import distributed

from kdtoolbox.inspection.reports import Fault, message_of

STATUS = 2
"""The exit status of a tool whose config, flags or files have a fault."""

PATIENCE = 60
"""Seconds that the other processes leave the main process to list all faults."""

_ERRORS = (KeyError, TypeError, ValueError)
"""What the checks raise. Any other error is a bug and keeps its traceback."""


class FaultyConfig(ValueError):  # noqa: N818 - a config is faulty, not an error
    """A config with faults; the message lists them all."""


def add_traceback(parser: argparse.ArgumentParser) -> None:
    """Add the flag ``--traceback``."""
    parser.add_argument(
        '--traceback',
        action='store_true',
        help='show where the code has raised an error, besides its message',
    )


@contextmanager
def brief_errors(
    show_traceback: bool = False, applies: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Print the message of an error in the block and exit with `STATUS`.

    Args:
        show_traceback: Whether to print the traceback before the message.
        applies: Tells at an error whether it is one of the config. Others pass
            unchanged.

    Raises:
        SystemExit: After a KeyError, TypeError or ValueError. Others pass unchanged.
    """
    try:
        yield
    except _ERRORS as error:
        if not applies():
            raise
        if show_traceback:
            traceback.print_exception(error)
        else:
            print('This cannot start (--traceback shows the code):', file=sys.stderr)
        print(_told(error), file=sys.stderr, flush=True)
        sys.exit(STATUS)


@contextmanager
def all_faults(cfg: Config) -> Iterator[None]:
    """Replace the first error in the block by one that lists all faults of a config.

    Nothing is built a second time unless the block fails. Only the main process looks
    for the other faults. It leaves the process group, so the run has to end then.

    Args:
        cfg: The config of the run.

    Raises:
        FaultyConfig: If the block raises a KeyError, TypeError or ValueError.
    """
    try:
        yield
    except _ERRORS as error:
        if not is_main_process():
            # A launcher ends all processes as soon as one has ended.
            time.sleep(PATIENCE)
            raise
        if is_distributed():
            # The losses of a model would wait for the other processes.
            distributed.destroy_process_group()
        raise FaultyConfig(listed(_with(error, _faults_of(cfg)))) from error


def _faults_of(cfg: Config) -> list[Fault]:
    # The import takes a while, and few runs need it.
    from kdtoolbox.inspection.faults import find_faults

    try:
        return find_faults(cfg)
    except Exception:
        # The error that is at hand is worth more than that of the search for others.
        return []


def _with(error: Exception, faults: list[Fault]) -> list[Fault]:
    """Return the faults, with the error at the front if it is not one of them."""
    first = Fault(_told(error))
    known = {_place(fault) for fault in faults}
    return faults if _place(first) in known else [first, *faults]


def _place(fault: Fault) -> str:
    """Return the config path of a fault, without the level of a wire."""
    return fault.problem.partition(': ')[0].partition(', ')[0]


def listed(faults: Sequence[Fault]) -> str:
    """Return faults as numbered paragraphs.

    Example:
        >>> print(listed([Fault('model.a: no b', 'write c'), Fault('model.d: no e')]))
        2 faults:
        1. model.a: no b
           write c
        2. model.d: no e
    """
    count = f'{len(faults)} fault{"s" * (len(faults) > 1)}:'
    entries = [
        f'{number}. {fault}'.replace('\n', '\n' + ' ' * len(f'{number}. '))
        for number, fault in enumerate(faults, 1)
    ]
    return '\n'.join([count, *entries])


def _told(error: Exception) -> str:
    """Return the message of an error, with its type where the message is a bare key."""
    text = message_of(error)
    return f'KeyError: {text}' if isinstance(error, KeyError) else text
