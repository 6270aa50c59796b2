"""Models that train a student under a teacher."""

from kdtoolbox.distillers.crosskd_distiller import CrossKDDistiller
from kdtoolbox.distillers.distiller import Distiller

__all__ = ['CrossKDDistiller', 'Distiller']
