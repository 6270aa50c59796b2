"""mmengine hooks of a distillation: the student's export, the schedule of a loss."""

from kdtoolbox.hooks.export_student import ExportStudentHook
from kdtoolbox.hooks.loss_weight import LossWeightHook

__all__ = ['ExportStudentHook', 'LossWeightHook']
