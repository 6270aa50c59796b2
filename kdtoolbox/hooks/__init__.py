"""mmengine hooks of a distillation: the student's export, a loss schedule, resuming."""

from kdtoolbox.hooks.export_student import ExportStudentHook
from kdtoolbox.hooks.loss_weight import LossWeightHook
from kdtoolbox.hooks.random_state import RandomStateHook
from kdtoolbox.hooks.resources import ResourceHook

__all__ = ['ExportStudentHook', 'LossWeightHook', 'ResourceHook', 'RandomStateHook']
