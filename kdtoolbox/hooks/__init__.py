"""mmengine hooks: export, loss weights, checks of weights, resuming, pictures."""

from kdtoolbox.hooks.best_checkpoint import BestCheckpointHook
from kdtoolbox.hooks.cache_report import CacheReportHook
from kdtoolbox.hooks.export_student import ExportStudentHook
from kdtoolbox.hooks.finite_weights import FiniteWeightsHook
from kdtoolbox.hooks.fitting_resume import FittingResumeHook
from kdtoolbox.hooks.follow_student import FollowStudentHook
from kdtoolbox.hooks.loss_balance import LossBalanceHook
from kdtoolbox.hooks.loss_weight import LossWeightHook
from kdtoolbox.hooks.missed_validation import MissedValidationHook
from kdtoolbox.hooks.readable_checkpoint import ReadableCheckpointHook
from kdtoolbox.hooks.resources import ResourceHook
from kdtoolbox.hooks.seeding import SeedHook
from kdtoolbox.hooks.visualize import DistillationVisualizationHook
from kdtoolbox.hooks.whole_updates import WholeUpdatesHook

__all__ = [
    'BestCheckpointHook',
    'CacheReportHook',
    'DistillationVisualizationHook',
    'ExportStudentHook',
    'FittingResumeHook',
    'FiniteWeightsHook',
    'FollowStudentHook',
    'LossBalanceHook',
    'LossWeightHook',
    'MissedValidationHook',
    'ReadableCheckpointHook',
    'ResourceHook',
    'SeedHook',
    'WholeUpdatesHook',
]
