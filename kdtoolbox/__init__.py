"""Knowledge distillation for detection and segmentation on mmdet and mmseg."""

from kdtoolbox.version import __version__

__all__ = ['__version__']
