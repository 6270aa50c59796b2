"""The registries of kdtoolbox, children of mmengine's.

A type with this scope in a config (``kdtoolbox.Distiller``) imports this module. The
registries then import the modules in ``locations``, which register the types, so no
config needs ``custom_imports``.
"""

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import (
    OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
)
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import Registry

MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='kdtoolbox',
    locations=[
        'kdtoolbox.losses',
        'kdtoolbox.connectors',
        'kdtoolbox.distillers',
        'kdtoolbox.teachers',
    ],
)
TEACHERS = Registry('teacher', scope='kdtoolbox', locations=['kdtoolbox.teachers'])
HOOKS = Registry(
    'hook', parent=MMENGINE_HOOKS, scope='kdtoolbox', locations=['kdtoolbox.hooks']
)
DATASETS = Registry(
    'dataset',
    parent=MMENGINE_DATASETS,
    scope='kdtoolbox',
    locations=[
        'kdtoolbox.datasets.digit_segmentation',
        'kdtoolbox.datasets.image_folder',
    ],
)
DATA_SAMPLERS = Registry(
    'data sampler',
    parent=MMENGINE_DATA_SAMPLERS,
    scope='kdtoolbox',
    locations=['kdtoolbox.datasets.seeded_sampler'],
)
OPTIM_WRAPPERS = Registry(
    'optimizer wrapper',
    parent=MMENGINE_OPTIM_WRAPPERS,
    scope='kdtoolbox',
    locations=['kdtoolbox.runs.mixed_precision'],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='kdtoolbox',
    locations=['kdtoolbox.runs.optimizer_groups'],
)
