"""Everything that learns or resizes between recorders and losses."""

from kdtoolbox.connectors.cbam import CBAMConnector, FixedCBAMConnector
from kdtoolbox.connectors.channel_mlp import ChannelMLPConnector
from kdtoolbox.connectors.conv import ConvConnector
from kdtoolbox.connectors.generator import MGDConnector
from kdtoolbox.connectors.norm import NormConnector
from kdtoolbox.connectors.query_masks import QueryMaskConnector
from kdtoolbox.connectors.regressor import RegressorConnector
from kdtoolbox.connectors.resize import ResizeConnector
from kdtoolbox.connectors.review import ABFConnector
from kdtoolbox.connectors.tokens import TokenConnector
from kdtoolbox.connectors.translator import TranslatorConnector

__all__ = [
    'ABFConnector',
    'CBAMConnector',
    'ChannelMLPConnector',
    'ConvConnector',
    'FixedCBAMConnector',
    'MGDConnector',
    'NormConnector',
    'QueryMaskConnector',
    'RegressorConnector',
    'ResizeConnector',
    'TokenConnector',
    'TranslatorConnector',
]
