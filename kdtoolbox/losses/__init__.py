"""Distillation losses: one file per method, a pure function and a thin Module."""

from kdtoolbox.losses.detection.crosskd import (
    CrossKDBoxLoss,
    CrossKDCenternessLoss,
    CrossKDClsLoss,
    CrossKDDistributionLoss,
)
from kdtoolbox.losses.detection.defeat import DeFeatLoss, DeFeatRoILoss
from kdtoolbox.losses.detection.fcfd import FCFDRegressionLoss
from kdtoolbox.losses.detection.fgd import FGDLoss, fgd_terms
from kdtoolbox.losses.detection.fgfi import FGFILoss
from kdtoolbox.losses.detection.frs import FRSFeatureLoss, FRSLogitLoss
from kdtoolbox.losses.detection.gid import GIDLoss
from kdtoolbox.losses.detection.kd_detr import QueryBoxLoss, QueryClassLoss
from kdtoolbox.losses.detection.ld import LDClsLoss, LDLoss
from kdtoolbox.losses.detection.pfi import PFILoss
from kdtoolbox.losses.detection.pgd import PGDClsLoss, PGDRegLoss
from kdtoolbox.losses.detection.response import ObjectnessLoss, RoIRegressionLoss
from kdtoolbox.losses.detection.rm import RMLoss
from kdtoolbox.losses.features.ab import ABLoss
from kdtoolbox.losses.features.affinity import AdaptationLoss, AffinityLoss
from kdtoolbox.losses.features.at import ATLoss, attention_transfer
from kdtoolbox.losses.features.attnfd import AttnFDLoss
from kdtoolbox.losses.features.channel_distillation import (
    ChannelDistillationLoss,
    GuidedKDLoss,
)
from kdtoolbox.losses.features.cwd import CWDLoss, channel_wise_divergence
from kdtoolbox.losses.features.diffkd import DiffKDLoss
from kdtoolbox.losses.features.fbkd import FBKDLoss
from kdtoolbox.losses.features.fitnet import FitNetLoss
from kdtoolbox.losses.features.fsp import FSPLoss
from kdtoolbox.losses.features.ft import FTLoss
from kdtoolbox.losses.features.ickd import ICKDLoss
from kdtoolbox.losses.features.maskd import MasKDLoss
from kdtoolbox.losses.features.mgd import MGDLoss
from kdtoolbox.losses.features.nfd import AngularLoss, NFDLoss
from kdtoolbox.losses.features.norm import NORMLoss
from kdtoolbox.losses.features.nst import NSTLoss
from kdtoolbox.losses.features.ofd import OFDLoss
from kdtoolbox.losses.features.pkd import PKDLoss, pkd_loss
from kdtoolbox.losses.features.reviewkd import HCLLoss
from kdtoolbox.losses.features.semckd import SemCKDLoss
from kdtoolbox.losses.features.srd import SRDLoss
from kdtoolbox.losses.features.ssim import SSIMLoss
from kdtoolbox.losses.features.vid import VIDLoss
from kdtoolbox.losses.features.vitkd import ViTKDLoss
from kdtoolbox.losses.logits.ctkd import CTKDLoss
from kdtoolbox.losses.logits.dist import DISTLoss
from kdtoolbox.losses.logits.dkd import DKDLoss
from kdtoolbox.losses.logits.kd import KDLoss, kd_loss
from kdtoolbox.losses.logits.lskd import LSKDLoss
from kdtoolbox.losses.logits.nkd import NKDLoss
from kdtoolbox.losses.logits.normkd import NormKDLoss
from kdtoolbox.losses.logits.sdd import SDDLoss
from kdtoolbox.losses.logits.spherical import SphericalKDLoss
from kdtoolbox.losses.logits.ttm import TTMLoss
from kdtoolbox.losses.logits.wsld import WSLDLoss
from kdtoolbox.losses.relations.cc import CCLoss
from kdtoolbox.losses.relations.pkt import PKTLoss
from kdtoolbox.losses.relations.rkd import RKDLoss
from kdtoolbox.losses.relations.sp import SPLoss
from kdtoolbox.losses.segmentation.bpkd import BPKDLoss
from kdtoolbox.losses.segmentation.cirkd import CIRKDMiniBatchLoss
from kdtoolbox.losses.segmentation.cirkd_memory import CIRKDMemoryLoss
from kdtoolbox.losses.segmentation.dsd import DSDCategoryLoss, DSDPixelLoss
from kdtoolbox.losses.segmentation.fakd import FAKDLoss
from kdtoolbox.losses.segmentation.idd import IDDLoss
from kdtoolbox.losses.segmentation.ifvd import IFVDLoss
from kdtoolbox.losses.segmentation.mask_queries import MaskQueryLoss
from kdtoolbox.losses.segmentation.skd import SKDPairwiseLoss
from kdtoolbox.losses.segmentation.skd_holistic import SKDHolisticLoss

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
