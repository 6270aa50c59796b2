"""Sources of wires that no recorder makes."""

from kdtoolbox.distillers.sources.bridged_rois import BridgedRoIs
from kdtoolbox.distillers.sources.classifier_weights import ClassifierWeights
from kdtoolbox.distillers.sources.cross_head import CrossHead
from kdtoolbox.distillers.sources.object_queries import ObjectQueries
from kdtoolbox.distillers.sources.pre_activations import PreActivations
from kdtoolbox.distillers.sources.roi_responses import RoIResponses
from kdtoolbox.distillers.sources.source import Models, Source

__all__ = [
    'BridgedRoIs',
    'ClassifierWeights',
    'CrossHead',
    'Models',
    'ObjectQueries',
    'PreActivations',
    'RoIResponses',
    'Source',
]
