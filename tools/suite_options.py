"""Config entries of a suite as arguments of a tool; part of tools/run_benchmark.py."""

import argparse
from collections.abc import Mapping
from typing import Any

from mmengine.config import DictAction


def arguments_of(options: Mapping[str, Any], where: str) -> list[str]:
    """Return options as arguments of ``--cfg-options``.

    Args:
        options: Values by config path.
        where: Their place in the suite, for error messages.

    Raises:
        ValueError: If the tool would read another value than the option has.

    Example:
        >>> arguments_of({'train_cfg.max_iters': 8, 'scale': (1, 2)}, 'options')
        ['train_cfg.max_iters=8', 'scale=(1,2)']
    """
    if not isinstance(options, Mapping):
        raise ValueError(
            f'{where}: expected a dict, got {options!r}; write '
            "`options={'train_cfg.max_iters': 8}`"
        )
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    arguments = []
    for key, value in options.items():
        argument = f'{key}={value}'.replace(' ', '')
        try:
            read = parser.parse_args(['--cfg-options', argument]).cfg_options
        except (AssertionError, argparse.ArgumentError):
            # Brackets that do not match, or a name that looks like a flag.
            read = {}
        if read != {key: value}:
            raise ValueError(
                f'{where}: {key!r} is {value!r}, which the command line cannot pass on '
                '(it takes numbers, words without spaces, None, and lists of them). '
                'For a dict write one option for each of its entries, as in '
                "`{'train_cfg.max_iters': 8}`; for anything else, write a config that "
                'inherits the student'
            )
        arguments.append(argument)
    return arguments
