"""Data sets: checks before a training, and embedded data that need no download."""

from kdtoolbox.datasets.digit_drawing import CLASSES, PRESETS, SceneStyle
from kdtoolbox.datasets.digit_scenes import make_digit_scenes

__all__ = ['CLASSES', 'PRESETS', 'SceneStyle', 'make_digit_scenes']
