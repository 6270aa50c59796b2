"""The distiller, its wires, connectors, losses and sources, and their checks."""

from kdtoolbox.distillers.distiller import Distiller
from kdtoolbox.distillers.pretrainer import Pretrainer
from kdtoolbox.distillers.sources import (
    BridgedRoIs,
    ClassifierWeights,
    CrossHead,
    ObjectQueries,
    PreActivations,
    RoIResponses,
    Source,
)
from kdtoolbox.distillers.token_trainer import TokenTrainer
from kdtoolbox.distillers.wiring import Wiring

__all__ = [
    'BridgedRoIs',
    'ClassifierWeights',
    'CrossHead',
    'Distiller',
    'ObjectQueries',
    'PreActivations',
    'Pretrainer',
    'RoIResponses',
    'Source',
    'TokenTrainer',
    'Wiring',
]
