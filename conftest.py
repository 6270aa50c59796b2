"""Set up torch for the whole suite, and let doctest see decorated functions."""

import doctest
import gc
import inspect
import os
from types import ModuleType
from typing import Any

import pytest

if 'PYTEST_XDIST_WORKER' in os.environ:
    # Before torch starts its threads: those of two workers would wait for one another.
    os.environ.setdefault('OMP_NUM_THREADS', '1')

import torch  # noqa: E402

_from_module = doctest.DocTestFinder._from_module


def _is_from_module(
    finder: doctest.DocTestFinder, module: ModuleType | None, item: Any
) -> bool:
    # doctest takes a decorated function for one of the decorator's module and skips it.
    item = inspect.unwrap(item) if inspect.isfunction(item) else item
    return _from_module(finder, module, item)


doctest.DocTestFinder._from_module = _is_from_module


def pytest_collection_finish() -> None:
    """Let the garbage collector skip the objects of all imported libraries.

    Otherwise each automatic collection visits them, a tenth of the time of the suite.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session', autouse=True)
def _torch_in_examples(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace['torch'] = torch
