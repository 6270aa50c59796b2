"""The losses and connectors of mmrazor in terms of ours."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Values = dict[str, Any]
RELU = dict(type='ReLU')
STATELESS_NORM = dict(type='BN', affine=False, track_running_stats=False)


@dataclass
class Rule:
    """How to write one type of mmrazor.

    Args:
        kind: Our type.
        names: Our argument for each of mmrazor's that has an equal.
        defaults: mmrazor's defaults of these arguments, where it has one.
        only: The values of mmrazor's other arguments that ours computes. They are
            mmrazor's defaults.
        ignored: mmrazor's arguments that change nothing here.
        extra: Further arguments of ours.
        scale: Factors on arguments of ours.
    """

    kind: str
    names: Mapping[str, str]
    defaults: Values = field(default_factory=dict)
    only: Values = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    extra: Values = field(default_factory=dict)
    scale: Mapping[str, float] = field(default_factory=dict)


WEIGHT = dict(loss_weight='loss_weight')
CONV = Rule(
    'ConvConnector',
    dict(
        in_channel='in_channels',
        out_channel='out_channels',
        kernel_size='kernel_size',
        bias='bias',
        norm_cfg='norm_cfg',
        act_cfg='act_cfg',
    ),
    dict(kernel_size=1, bias='auto', norm_cfg=None, act_cfg=RELU),
    dict(
        stride=1,
        dilation=1,
        groups=1,
        conv_cfg=None,
        with_spectral_norm=False,
        padding_mode='zeros',
        order=('conv', 'norm', 'act'),
        init_cfg=None,
    ),
    ignored=('inplace', 'padding'),
)
MGD = Rule(
    'MGDConnector',
    dict(teacher_channels='channels', lambda_mgd='mask_ratio'),
    dict(lambda_mgd=0.65),
    dict(init_cfg=None),
    ('student_channels',),
    dict(num_levels=1),
)
RULES = dict(
    ChannelWiseDivergence=Rule(
        'CWDLoss', dict(tau='tau') | WEIGHT, dict(tau=1.0, loss_weight=1.0)
    ),
    PKDLoss=Rule('PKDLoss', WEIGHT, dict(loss_weight=1.0), dict(resize_stu=True)),
    MGDLoss=Rule('MGDLoss', dict(alpha_mgd='loss_weight'), dict(alpha_mgd=2e-5)),
    FGDLoss=Rule(
        'FGDLoss',
        dict(
            in_channels='channels',
            temp='tau',
            alpha_fgd='foreground_weight',
            beta_fgd='background_weight',
            gamma_fgd='attention_weight',
            lambda_fgd='relation_weight',
        ),
        dict(temp=0.5, alpha_fgd=1e-3, beta_fgd=5e-4, gamma_fgd=1e-3, lambda_fgd=5e-6),
        extra=dict(num_levels=1, legacy_img_shape=True),
    ),
    ATLoss=Rule('ATLoss', WEIGHT, dict(loss_weight=1.0)),
    ABLoss=Rule(
        'ABLoss',
        dict(margin='margin') | WEIGHT,
        dict(margin=1.0, loss_weight=1.0),
        scale=dict(loss_weight=3e-3),
    ),
    KLDivergence=Rule(
        'KDLoss',
        dict(tau='tau') | WEIGHT,
        dict(tau=1.0, loss_weight=1.0),
        dict(reduction='batchmean', teacher_detach=True),
    ),
    ConvModuleConnector=CONV,
    # The name is misspelled in mmrazor.
    ConvModuleConncetor=CONV,
    NormConnector=Rule(
        'NormConnector',
        {},
        only=dict(norm_cfg=STATELESS_NORM, init_cfg=None),
        ignored=('in_channels',),
    ),
    MGDConnector=MGD,
    MGDConncetor=MGD,
)
_MEAN = 'FitNetLoss, the mean squared error, is the nearest; see configs/fitnet'
_LABELS = 'it reads the label of an image, and here are boxes or pixels'
HINTS = dict(
    L1Loss=_MEAN,
    L2Loss=_MEAN,
    DKDLoss=f'{_LABELS}; see configs/dkd',
    WSLD=f'{_LABELS}; see configs/wsld',
    CRDLoss=f'{_LABELS}; see configs/cirkd for a contrastive loss',
    DISTLoss='it correlates rows (N, C); see configs/dist for pixels and RoIs',
    AngleWiseRKD='write RKDLoss; see configs/rkd',
    DistanceWiseRKD='write RKDLoss; see configs/rkd',
    FTLoss='write FTLoss and a TranslatorConnector; see configs/ft',
    OFDLoss='write OFDLoss and the source PreActivations; see configs/ofd',
    FBKDLoss='our FBKDLoss contains its layers and pools nothing; see configs/fbkd',
    KDSoftCELoss='write KDLoss, which has the same gradient; see configs/kd',
    TorchNNConnector='write a ConvConnector, or take another connector',
    TorchFunctionalConnector='write a ResizeConnector, or take another connector',
)


def name_of(kind: Any) -> str:
    """Return the name of a type without its package."""
    return str(kind).rpartition('.')[2]


def convert(config: Mapping[str, Any], where: str) -> Values:
    """Return our config of a loss or connector of mmrazor.

    Raises:
        ValueError: If it has no equal.
    """
    kind = name_of(config.get('type'))
    if kind not in RULES:
        hint = HINTS.get(kind, 'docs/mmrazor.md lists what has an equal')
        raise ValueError(f'{where}: {kind} has no equal here: {hint}')
    rule = RULES[kind]
    given = {k: v for k, v in config.items() if k not in ('type', '_scope_')}
    for key in sorted(given.keys() - rule.names.keys() - {*rule.ignored}):
        if key not in rule.only:
            raise ValueError(f'{where}: {kind} takes no {key!r}')
        if given[key] != rule.only[key]:
            raise ValueError(
                f'{where}.{key}={given[key]!r} has no equal: {rule.kind} does what '
                f'{kind} does with {key}={rule.only[key]!r}'
            )
    if kind.startswith('ConvModule'):
        _check_padding(given, where)
    values = rule.defaults | {k: v for k, v in given.items() if k in rule.names}
    ours = {rule.names[key]: value for key, value in values.items()}
    for key, factor in rule.scale.items():
        ours[key] *= factor
    # None and 'auto' are our defaults.
    kept = {k: v for k, v in ours.items() if v is not None and v != 'auto'}
    return dict(type=rule.kind, **kept, **rule.extra)


def _check_padding(given: Mapping[str, Any], where: str) -> None:
    size, padding = given.get('kernel_size', 1), given.get('padding', 0)
    if padding != size // 2:
        raise ValueError(
            f'{where}.padding={padding} has no equal: a ConvConnector keeps the size '
            f'of a map, so a kernel of {size} has padding={size // 2}'
        )
