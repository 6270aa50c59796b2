from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from kdtoolbox.teachers.foundation import FoundationModel, build_foundation

pytestmark = pytest.mark.e2e

TINY = dict(embed_dim=32, depth=2, num_heads=2)
VIT = dict(TINY, img_size=56)
RESNET = dict(layers=(1, 1, 1, 1), channels=(8, 8, 16, 16))
SWIN = dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
SAM = dict(TINY, img_size=64, window_size=2, global_attn_indexes=(1,))


def build(name: str, **options: Any) -> FoundationModel:
    options = {'allow_random': True, **options}
    return build_foundation(f'timm::{name}', **options).eval()


@pytest.mark.parametrize(
    ('name', 'prefix'),
    [('vit_small_patch14_dinov2', 1), ('vit_small_patch14_reg4_dinov2', 5)],
)
def test_maps_are_the_tokens_of_the_patches(
    timm: ModuleType, by_hand: Callable, name: str, prefix: int
) -> None:
    model = build(name, arguments=VIT, layers=[0, -1])
    images = torch.randn(2, 3, 42, 70)
    first, last = model(images)
    tokens = model.backbone.forward_features(images)
    assert torch.equal(last, by_hand(tokens, prefix, 3, 5))
    raw = {}
    hook = model.backbone.blocks[0].register_forward_hook(
        lambda module, args, out: raw.update(tokens=out)
    )
    model(images)
    hook.remove()
    assert torch.equal(first, by_hand(raw['tokens'], prefix, 3, 5))


def test_images_of_any_size_fit_the_patches(timm: ModuleType) -> None:
    model = build('vit_small_patch14_dinov2', arguments=VIT)
    assert model.patch_size == 14
    for size, grid in [((40, 72), (3, 5)), ((5, 100), (1, 7)), ((56, 56), (4, 4))]:
        assert model(torch.randn(1, 3, *size))[0].shape == (1, 32, *grid)


@pytest.mark.parametrize(
    ('name', 'arguments', 'shapes'),
    [
        ('resnet18', RESNET, [(8, 13, 18), (16, 2, 3)]),
        ('swin_tiny_patch4_window7_224', SWIN, [(32, 8, 8), (128, 2, 2)]),
        ('samvit_base_patch16', SAM, [(32, 3, 4), (256, 3, 4)]),
    ],
)
def test_other_nets_give_the_maps_of_their_stages(
    timm: ModuleType, name: str, arguments: dict, shapes: list
) -> None:
    layers = [0, -1] if name.startswith('sam') else [1, -1]
    model = build(name, arguments=arguments, layers=layers)
    images = torch.randn(2, 3, 50, 70)
    maps = model(images)
    assert [tuple(level.shape[1:]) for level in maps] == shapes
    if model.patch_size is None:
        assert torch.equal(maps[-1], model.backbone.forward_features(images))


def test_mean_std_and_licence_are_those_of_the_weights(timm: ModuleType) -> None:
    model = build('vit_base_patch16_siglip_224', arguments=dict(TINY, img_size=64))
    preprocessor = model.data_preprocessor
    assert preprocessor.mean.flatten().tolist() == [127.5] * 3
    assert preprocessor.std.flatten().tolist() == [127.5] * 3
    own = build('resnet18', arguments=RESNET, mean=[1, 2, 3]).data_preprocessor
    assert own.mean.flatten().tolist() == [1, 2, 3]
    assert own.std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])


@pytest.mark.parametrize(
    ('name', 'licence'),
    [
        ('vit_small_patch14_dinov2', 'apache-2.0'),
        ('vit_small_patch16_dinov3', 'dinov3-license'),
    ],
)
def test_the_licence_is_that_of_timm(
    timm: ModuleType, name: str, licence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    place = 'kdtoolbox.teachers.foundation.building.print_log'
    monkeypatch.setattr(place, lambda line, logger: lines.append(line))
    build(name, arguments=VIT)
    assert f'licence of its published weights: {licence};' in lines[0]


def test_a_checkpoint_of_another_model_is_refused(
    timm: ModuleType, tmp_path: Path
) -> None:
    model = build('vit_small_patch14_dinov2', arguments=VIT)
    path = str(tmp_path / 'vit.pth')
    torch.save(model.backbone.state_dict(), path)
    same = build('vit_small_patch14_dinov2', arguments=VIT, checkpoint=path)
    images = torch.randn(1, 3, 28, 28)
    assert torch.equal(same(images)[0], model(images)[0])
    with pytest.raises(ValueError, match='does not fit VisionTransformer'):
        build('vit_small_patch14_reg4_dinov2', arguments=VIT, checkpoint=path)
    by_timm = build(
        'vit_small_patch14_dinov2',
        arguments=dict(VIT, pretrained_cfg_overlay=dict(file=path)),
        pretrained=True,
    )
    assert torch.equal(by_timm(images)[0], model(images)[0])


@pytest.mark.parametrize(
    ('overlay', 'message'),
    [
        (dict(file='missing.pth'), 'FileNotFoundError'),
        (dict(hf_hub_id=None, url=None), 'No pretrained weights exist'),
    ],
)
def test_weights_that_timm_cannot_find_are_an_error(
    timm: ModuleType, overlay: dict, message: str
) -> None:
    arguments = dict(VIT, pretrained_cfg_overlay=overlay)
    with pytest.raises(ValueError, match=f"cannot build 'vit_small_.*{message}"):
        build('vit_small_patch14_dinov2', arguments=arguments, pretrained=True)


def test_wrong_names_arguments_and_layers_are_refused(timm: ModuleType) -> None:
    with pytest.raises(ValueError, match='nearest: .*vit_small_patch14_dinov2'):
        build('vit_small_patch14_dino2')
    with pytest.raises(TypeError, match='teacher.arguments: .*embed_dims'):
        build('vit_small_patch14_dinov2', arguments=dict(embed_dims=32))
    with pytest.raises(ValueError, match=r'teacher.layers: .*\[2\]; it has 2'):
        build('vit_small_patch14_dinov2', arguments=VIT, layers=[2])
