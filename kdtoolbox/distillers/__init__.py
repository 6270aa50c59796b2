"""Models that train a student under a teacher."""

from kdtoolbox.distillers.classifier_distiller import ClassifierDistiller
from kdtoolbox.distillers.crosskd_distiller import CrossKDDistiller
from kdtoolbox.distillers.distiller import Distiller
from kdtoolbox.distillers.fcfd_distiller import FCFDDistiller
from kdtoolbox.distillers.preactivation_distiller import PreActivationDistiller
from kdtoolbox.distillers.query_distiller import QueryDistiller
from kdtoolbox.distillers.roi_distiller import RoIDistiller
from kdtoolbox.distillers.token_trainer import TokenTrainer

__all__ = [
    'ClassifierDistiller',
    'CrossKDDistiller',
    'Distiller',
    'FCFDDistiller',
    'PreActivationDistiller',
    'QueryDistiller',
    'RoIDistiller',
    'TokenTrainer',
]
