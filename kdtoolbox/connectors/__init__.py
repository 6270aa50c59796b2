"""Everything that learns or resizes between recorders and losses."""

from kdtoolbox.connectors.conv import ConvConnector
from kdtoolbox.connectors.resize import ResizeConnector

__all__ = ['ConvConnector', 'ResizeConnector']
