"""Import the libraries of foundation models, which are optional."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any


def import_library(name: str, where: str) -> ModuleType:
    """Import timm or transformers.

    Args:
        name: Name of the library.
        where: Config path of the model, for errors.

    Raises:
        ValueError: If the library is missing, or does not import.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        cure = 'pip install kdtoolbox[foundation]'
        if missing.partition('.')[0] == 'torchvision':
            cure = 'install torchvision from where your torch came'
        raise ValueError(f'{where}: {name} needs {missing}; {cure}') from error
    except RuntimeError as error:
        # torchvision raises it if it was built for another torch.
        raise ValueError(
            f'{where}: {name} does not import ({error}); if it names torchvision, '
            'install torchvision from where your torch came, in the version for it'
        ) from error


def from_cache(load: Callable[..., Any], download: bool) -> Any:
    """Call a loader of the Hugging Face hub, offline at first.

    With all files in its cache, it would still ask the hub for newer ones.

    Args:
        load: Takes ``local_files_only``; raises OSError if a file is not there.
        download: Whether it may download missing files.

    Raises:
        OSError: If a file is missing.
    """
    try:
        return load(local_files_only=True)
    except OSError:
        if not download:
            raise
    return load(local_files_only=False)
