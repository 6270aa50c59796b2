"""Keep libraries from printing between the tables of a report."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from mmengine.logging import MMLogger


@contextmanager
def quiet() -> Iterator[None]:
    """Hide what metrics and data sets print and log; errors are raised all the same.

    Example:
        >>> with quiet():
        ...     print('loading annotations into memory...')
    """
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
