"""What the tests of all connectors build them with."""

from typing import Any

REQUIRED: dict[str, dict[str, Any]] = {
    'ABFConnector': dict(in_channels=[4, 4], out_channels=[4, 4], mid_channels=2),
    'CBAMConnector': dict(in_channels=[4, 4], out_channels=[4, 4]),
    'ChannelMLPConnector': dict(in_channels=[4, 4], out_channels=4),
    'ConvConnector': dict(in_channels=[4, 4], out_channels=4),
    'LevelsConnector': dict(levels=[0]),
    'MGDConnector': dict(channels=4, num_levels=2, mask_ratio=0.5),
    'RegressorConnector': dict(in_channels=4, out_channels=4),
    'TranslatorConnector': dict(in_channels=4, out_channels=4),
}
"""Required arguments, for two levels of 4 channels; lists where they accept lists."""
