"""Distillation losses: one file per method, a pure function and a thin Module."""

from kdtoolbox.losses.crosskd import (
    CrossKDBoxLoss,
    CrossKDCenternessLoss,
    CrossKDClsLoss,
    CrossKDDistributionLoss,
)
from kdtoolbox.losses.cwd import CWDLoss, channel_wise_divergence
from kdtoolbox.losses.fgd import FGDLoss, fgd_terms
from kdtoolbox.losses.ld import LDClsLoss, LDLoss
from kdtoolbox.losses.mgd import MGDLoss
from kdtoolbox.losses.pkd import PKDLoss, pkd_loss

__all__ = [
    'CWDLoss',
    'CrossKDBoxLoss',
    'CrossKDCenternessLoss',
    'CrossKDClsLoss',
    'CrossKDDistributionLoss',
    'FGDLoss',
    'LDClsLoss',
    'LDLoss',
    'MGDLoss',
    'PKDLoss',
    'channel_wise_divergence',
    'fgd_terms',
    'pkd_loss',
]
