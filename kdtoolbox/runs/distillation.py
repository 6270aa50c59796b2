"""Build the distiller of a config outside of a Runner."""

from mmengine.config import Config
from mmengine.registry import MODELS

from kdtoolbox.distillers import Distiller, Pretrainer


def build_distiller(cfg: Config, cached: bool = False) -> Distiller:
    """Build the distiller of a config as mmengine's Runner does.

    Args:
        cfg: The config of a run.
        cached: Whether teachers use their caches, which fit the batches of a training.

    Raises:
        ValueError: If the model is no distiller of a whole student, or does not fit
            its config.
    """
    model = dict(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    distiller = MODELS.build(model)
    if not isinstance(distiller, Distiller) or isinstance(distiller, Pretrainer):
        raise ValueError(
            f'model.type: expected a kdtoolbox.Distiller, got '
            f'{type(distiller).__name__}; name the config of a distillation'
        )
    if not cached:
        for teacher in distiller.teachers.values():
            teacher.cache = None
    return distiller
