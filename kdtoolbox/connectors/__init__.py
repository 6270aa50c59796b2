"""Modules between recorders and losses, which project or resize maps.

All modules below are imported, and the registered connectors are exported.
"""

from typing import TYPE_CHECKING, Any

from kdtoolbox.discovery import discover
from kdtoolbox.registry import MODELS

_exports = discover(__name__, __path__, MODELS.module_dict.values())
globals().update(_exports)
__all__ = list(_exports)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...
