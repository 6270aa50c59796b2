"""Pictures of a distillation: features, masks, channels, attention, predictions."""

from kdtoolbox.visualization.destinations import paint_into, pictures_in
from kdtoolbox.visualization.grid import Panel, compose, save_panels, save_picture
from kdtoolbox.visualization.maps import draw_map
from kdtoolbox.visualization.pictures import KINDS, Pictures, draw_models, draw_step

__all__ = [
    'KINDS',
    'Panel',
    'Pictures',
    'compose',
    'draw_map',
    'draw_models',
    'draw_step',
    'paint_into',
    'pictures_in',
    'save_panels',
    'save_picture',
]
