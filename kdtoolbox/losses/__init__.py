"""Distillation losses: one file per method, a pure function and a thin Module.

All modules below are imported. Exported are the registered losses, and from their
modules the functions whose first two arguments are ``student`` and ``teacher``. Inside
kdtoolbox, import from the module of a loss: ``kdtoolbox.losses.features.cwd``.
"""

from typing import TYPE_CHECKING, Any

from kdtoolbox.discovery import discover
from kdtoolbox.registry import MODELS

_exports = discover(__name__, __path__, MODELS.module_dict.values())
globals().update(_exports)
__all__ = list(_exports)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...
