"""Models that train a student under a teacher."""

from kdtoolbox.distillers.distiller import Distiller

__all__ = ['Distiller']
