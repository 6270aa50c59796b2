"""Distillation losses: one file per method, a pure function and a thin Module."""

from kdtoolbox.losses.ab import ABLoss
from kdtoolbox.losses.affinity import AdaptationLoss, AffinityLoss
from kdtoolbox.losses.at import ATLoss, attention_transfer
from kdtoolbox.losses.attnfd import AttnFDLoss
from kdtoolbox.losses.bpkd import BPKDLoss
from kdtoolbox.losses.cc import CCLoss
from kdtoolbox.losses.channel_distillation import ChannelDistillationLoss, GuidedKDLoss
from kdtoolbox.losses.cirkd import CIRKDMiniBatchLoss
from kdtoolbox.losses.cirkd_memory import CIRKDMemoryLoss
from kdtoolbox.losses.crosskd import (
    CrossKDBoxLoss,
    CrossKDCenternessLoss,
    CrossKDClsLoss,
    CrossKDDistributionLoss,
)
from kdtoolbox.losses.ctkd import CTKDLoss
from kdtoolbox.losses.cwd import CWDLoss, channel_wise_divergence
from kdtoolbox.losses.defeat import DeFeatLoss, DeFeatRoILoss
from kdtoolbox.losses.diffkd import DiffKDLoss
from kdtoolbox.losses.dist import DISTLoss
from kdtoolbox.losses.dkd import DKDLoss
from kdtoolbox.losses.dsd import DSDCategoryLoss, DSDPixelLoss
from kdtoolbox.losses.fakd import FAKDLoss
from kdtoolbox.losses.fbkd import FBKDLoss
from kdtoolbox.losses.fcfd import FCFDRegressionLoss
from kdtoolbox.losses.fgd import FGDLoss, fgd_terms
from kdtoolbox.losses.fgfi import FGFILoss
from kdtoolbox.losses.fitnet import FitNetLoss
from kdtoolbox.losses.frs import FRSFeatureLoss, FRSLogitLoss
from kdtoolbox.losses.fsp import FSPLoss
from kdtoolbox.losses.ft import FTLoss
from kdtoolbox.losses.gid import GIDLoss
from kdtoolbox.losses.ickd import ICKDLoss
from kdtoolbox.losses.idd import IDDLoss
from kdtoolbox.losses.ifvd import IFVDLoss
from kdtoolbox.losses.kd import KDLoss, kd_loss
from kdtoolbox.losses.ld import LDClsLoss, LDLoss
from kdtoolbox.losses.lskd import LSKDLoss
from kdtoolbox.losses.mask_queries import MaskQueryLoss
from kdtoolbox.losses.maskd import MasKDLoss
from kdtoolbox.losses.mgd import MGDLoss
from kdtoolbox.losses.nfd import AngularLoss, NFDLoss
from kdtoolbox.losses.nkd import NKDLoss
from kdtoolbox.losses.norm import NORMLoss
from kdtoolbox.losses.normkd import NormKDLoss
from kdtoolbox.losses.nst import NSTLoss
from kdtoolbox.losses.ofd import OFDLoss
from kdtoolbox.losses.pfi import PFILoss
from kdtoolbox.losses.pgd import PGDClsLoss, PGDRegLoss
from kdtoolbox.losses.pkd import PKDLoss, pkd_loss
from kdtoolbox.losses.pkt import PKTLoss
from kdtoolbox.losses.query_boxes import QueryBoxLoss
from kdtoolbox.losses.query_classes import QueryClassLoss
from kdtoolbox.losses.response import ObjectnessLoss, RoIRegressionLoss
from kdtoolbox.losses.reviewkd import HCLLoss
from kdtoolbox.losses.rkd import RKDLoss
from kdtoolbox.losses.rm import RMLoss
from kdtoolbox.losses.sdd import SDDLoss
from kdtoolbox.losses.semckd import SemCKDLoss
from kdtoolbox.losses.skd import SKDPairwiseLoss
from kdtoolbox.losses.skd_holistic import SKDHolisticLoss
from kdtoolbox.losses.sp import SPLoss
from kdtoolbox.losses.spherical import SphericalKDLoss
from kdtoolbox.losses.srd import SRDLoss
from kdtoolbox.losses.ssim import SSIMLoss
from kdtoolbox.losses.ttm import TTMLoss
from kdtoolbox.losses.vid import VIDLoss
from kdtoolbox.losses.vitkd import ViTKDLoss
from kdtoolbox.losses.wsld import WSLDLoss

__all__ = [
    'ABLoss',
    'ATLoss',
    'AdaptationLoss',
    'AffinityLoss',
    'AngularLoss',
    'AttnFDLoss',
    'BPKDLoss',
    'CCLoss',
    'CIRKDMemoryLoss',
    'CIRKDMiniBatchLoss',
    'CTKDLoss',
    'CWDLoss',
    'ChannelDistillationLoss',
    'CrossKDBoxLoss',
    'CrossKDCenternessLoss',
    'CrossKDClsLoss',
    'CrossKDDistributionLoss',
    'DISTLoss',
    'DKDLoss',
    'DSDCategoryLoss',
    'DSDPixelLoss',
    'DeFeatLoss',
    'DeFeatRoILoss',
    'DiffKDLoss',
    'FAKDLoss',
    'FBKDLoss',
    'FCFDRegressionLoss',
    'FGDLoss',
    'FGFILoss',
    'FRSFeatureLoss',
    'FRSLogitLoss',
    'FSPLoss',
    'FTLoss',
    'FitNetLoss',
    'GIDLoss',
    'GuidedKDLoss',
    'HCLLoss',
    'ICKDLoss',
    'IDDLoss',
    'IFVDLoss',
    'KDLoss',
    'LDClsLoss',
    'LDLoss',
    'LSKDLoss',
    'MGDLoss',
    'MasKDLoss',
    'MaskQueryLoss',
    'NFDLoss',
    'NKDLoss',
    'NORMLoss',
    'NSTLoss',
    'NormKDLoss',
    'OFDLoss',
    'ObjectnessLoss',
    'PFILoss',
    'PGDClsLoss',
    'PGDRegLoss',
    'PKDLoss',
    'PKTLoss',
    'QueryBoxLoss',
    'QueryClassLoss',
    'RKDLoss',
    'RMLoss',
    'RoIRegressionLoss',
    'SDDLoss',
    'SKDHolisticLoss',
    'SKDPairwiseLoss',
    'SPLoss',
    'SRDLoss',
    'SSIMLoss',
    'SemCKDLoss',
    'SphericalKDLoss',
    'TTMLoss',
    'VIDLoss',
    'ViTKDLoss',
    'WSLDLoss',
    'attention_transfer',
    'channel_wise_divergence',
    'fgd_terms',
    'kd_loss',
    'pkd_loss',
]
