"""Each student parameter is optimised as when the student is trained alone."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, DefaultScope
from torch import Tensor, nn

from kdtoolbox.runs.optimizer_groups import group_as_student

CUSTOM = dict(
    custom_keys={
        'backbone': dict(lr_mult=0.1, decay_mult=0.9),
        'head': dict(lr_mult=10.0),
        'backbone.layer1': dict(lr_mult=0.0),
        '.absolute_pos_embed': dict(decay_mult=0.0),
    },
    norm_decay_mult=0.0,
    bias_lr_mult=2.0,
)
LAYERS = dict(decay_rate=0.7, num_layers=6)
KINDS = [
    ('mmdet', 'DefaultOptimWrapperConstructor', None),
    ('mmdet', 'DefaultOptimWrapperConstructor', CUSTOM),
    ('mmseg', 'DefaultOptimWrapperConstructor', CUSTOM),
    ('mmseg', 'ForceDefaultOptimWrapperConstructor', CUSTOM),
    (
        'mmdet',
        'LearningRateDecayOptimizerConstructor',
        dict(LAYERS, decay_type='layer_wise'),
    ),
    (
        'mmdet',
        'LearningRateDecayOptimizerConstructor',
        dict(LAYERS, decay_type='stage_wise'),
    ),
    (
        'mmseg',
        'LearningRateDecayOptimizerConstructor',
        dict(LAYERS, decay_type='layer_wise_vit'),
    ),
    (
        'mmseg',
        'LayerDecayOptimizerConstructor',
        dict(num_layers=6, layer_decay_rate=0.7),
    ),
]

# The model never runs, so its widths do not matter.
CONV = dict(type='ConvConnector', input='student.fpn', in_channels=8, out_channels=8)
LOSS = dict(type='PKDLoss', student='aligned', teacher='teacher.fpn')
CONNECTED = dict(connectors=dict(aligned=CONV), losses=dict(loss_pkd=LOSS))


@MMENGINE_MODELS.register_module()
class TinyConvNeXt(nn.Module):
    """A backbone with module names of ConvNeXt, whose layers the constructors know."""

    def __init__(self) -> None:
        super().__init__()
        self.downsample_layers = nn.ModuleList(
            [nn.Conv2d(3 if not i else 8, 8, 2, 2) for i in range(4)]
        )
        self.stages = nn.ModuleList(
            [
                nn.ModuleList([nn.Conv2d(8, 8, 1) for _ in range(3 if i == 2 else 1)])
                for i in range(4)
            ]
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        levels = []
        for down, blocks in zip(self.downsample_layers, self.stages, strict=True):
            images = down(images)
            for block in blocks:
                images = block(images)
            levels.append(images)
        return tuple(levels)


def student(scope: str, constructor: str, toy: SimpleNamespace) -> dict:
    if constructor.startswith('Learning') and scope == 'mmdet':
        config = toy.gfl()
        config['model']['backbone'] = dict(type='mmengine.TinyConvNeXt')
        config['model']['neck']['in_channels'] = [8] * 4
        return config
    config = toy.gfl() if scope == 'mmdet' else toy.segmentor()
    if 'Layer' in constructor or constructor.startswith('Learning'):
        config['model']['backbone'] = dict(
            type='BEiT', img_size=64, patch_size=16, embed_dims=32, num_layers=2,
            num_heads=2, qv_bias=True, out_indices=(0, 1),
        )  # fmt: skip
        config['model']['decode_head'].update(in_channels=32, in_index=1)
        config['model']['auxiliary_head'].update(in_channels=32, in_index=0)
    return config


def optimizer_config(constructor: str, paramwise: dict | None) -> ConfigDict:
    return ConfigDict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.05),
        constructor=constructor,
        **({} if paramwise is None else dict(paramwise_cfg=dict(paramwise))),
    )


def groups(wrapper: Any, model: nn.Module, prefix: str = '') -> dict[str, tuple]:
    """Return for each parameter its settings and the others of its group."""
    names = {id(p): n.removeprefix(prefix) for n, p in model.named_parameters()}
    found = {}
    for group in wrapper.optimizer.param_groups:
        members = frozenset(names[id(p)] for p in group['params'])
        settings = {
            k: v for k, v in group.items() if k not in ('params', 'param_names')
        }
        found |= {name: (settings, members) for name in members}
    return found


@pytest.fixture
def scoped() -> Iterator[Any]:
    scopes = dict(DefaultScope._instance_dict)
    yield lambda name: DefaultScope.get_instance(name, scope_name=name)
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)


@pytest.mark.parametrize(('scope', 'constructor', 'paramwise'), KINDS)
def test_each_student_parameter_has_the_group_of_a_training_alone(
    scope: str,
    constructor: str,
    paramwise: dict | None,
    toy: SimpleNamespace,
    scoped: Any,
) -> None:
    config = student(scope, constructor, toy)
    alone = toy.build(config)
    distiller = toy.build_distiller(config, **CONNECTED)
    scoped(scope)
    optimizer = optimizer_config(constructor, paramwise)
    expected = groups(build_optim_wrapper(alone, optimizer), alone)

    cfg = Config(dict(optim_wrapper=optimizer))
    group_as_student(cfg)
    group_as_student(cfg)
    wrapper = build_optim_wrapper(distiller, cfg.optim_wrapper)

    found = groups(wrapper, distiller, 'student.')
    assert {name: found.get(name) for name in expected} == expected
    own = {name for name, _ in distiller.named_parameters() if 'student.' not in name}
    assert own == found.keys() - expected.keys()
    assert own
    for name in own:
        settings, members = found[name]
        assert members == own
        assert (settings['lr'], settings['weight_decay']) == (0.01, 0.05)


@pytest.mark.parametrize(('scope', 'constructor', 'paramwise'), KINDS)
def test_each_parameter_of_a_peer_has_a_group_like_the_students(
    scope: str,
    constructor: str,
    paramwise: dict | None,
    toy: SimpleNamespace,
    scoped: Any,
) -> None:
    config = student(scope, constructor, toy)
    distiller = toy.build_distiller(
        config,
        teacher=None,
        peers=dict(other=config),
        recorders=dict(student=dict(fpn='backbone'), other=dict(fpn='backbone')),
        losses=dict(
            loss_pkd=dict(type='PKDLoss', student='student.fpn', teacher='other.fpn')
        ),
    )
    scoped(scope)
    cfg = Config(dict(optim_wrapper=optimizer_config(constructor, paramwise)))
    group_as_student(cfg)
    wrapper = build_optim_wrapper(distiller, cfg.optim_wrapper)
    found = groups(wrapper, distiller)
    assert {name for name, _ in distiller.named_parameters()} == found.keys()
    own = [name for name in found if name.startswith('student.')]
    assert own
    for name in own:
        settings, members = found[name]
        same, others = found[name.replace('student.', 'peers.other.', 1)]
        assert same == settings
        assert {x.replace('peers.other.', 'student.', 1) for x in others} == members


def test_all_constructors_of_the_stack_are_tried() -> None:
    import mmdet.engine  # noqa: F401
    import mmseg.engine  # noqa: F401
    from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS as DETECTION
    from mmseg.registry import OPTIM_WRAPPER_CONSTRUCTORS as SEGMENTATION

    tried = {(scope, name) for scope, name, _ in KINDS}
    for registry in (DETECTION, SEGMENTATION):
        for name in registry.module_dict:
            assert (registry.scope, name) in tried
    assert set(OPTIM_WRAPPER_CONSTRUCTORS.module_dict) <= {name for _, name, _ in KINDS}


def test_a_plain_model_is_grouped_by_its_own_constructor(toy: SimpleNamespace) -> None:
    cfg = Config(dict(optim_wrapper=optimizer_config(KINDS[1][1], CUSTOM)))
    model = toy.build(toy.gfl())
    expected = groups(build_optim_wrapper(model, cfg.optim_wrapper), model)
    group_as_student(cfg)
    assert groups(build_optim_wrapper(model, cfg.optim_wrapper), model) == expected


def test_two_optimizers_are_refused(
    toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Two:
        def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: Any = None) -> None:
            pass

        def __call__(self, model: nn.Module) -> dict:
            return {}

    monkeypatch.setitem(OPTIM_WRAPPER_CONSTRUCTORS.module_dict, 'Two', Two)
    cfg = Config(dict(optim_wrapper=optimizer_config('Two', None)))
    group_as_student(cfg)
    model = toy.build_distiller(toy.gfl(), **CONNECTED)
    with pytest.raises(ValueError, match='expected one optimizer, got a dict'):
        build_optim_wrapper(model, cfg.optim_wrapper)
