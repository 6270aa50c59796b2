"""Everything that learns or resizes between recorders and losses."""

from kdtoolbox.connectors.conv import ConvConnector
from kdtoolbox.connectors.generator import MGDConnector
from kdtoolbox.connectors.resize import ResizeConnector

__all__ = ['ConvConnector', 'MGDConnector', 'ResizeConnector']
