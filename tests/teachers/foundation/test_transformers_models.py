import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from kdtoolbox.teachers.foundation import FoundationModel, build_foundation

pytestmark = pytest.mark.e2e

TINY = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
DINO = dict(TINY, image_size=56, patch_size=14)
SIXTEEN = dict(TINY, image_size=64, patch_size=16)
REGISTERS = dict(num_register_tokens=4)
SIGLIP = dict(SIXTEEN, intermediate_size=64)
SAM = dict(
    SIXTEEN, output_channels=16, window_size=2, global_attn_indexes=[1], mlp_dim=64
)
CONVNEXT = dict(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
PYRAMID = dict(num_attention_heads=[1, 1, 2, 2])
SMALL_NET = dict(width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128)
PIXELS = dict(mean=[0, 0, 0], std=[255, 255, 255])


def build(name: str, arguments: dict | None = None, **options: Any) -> FoundationModel:
    options = {'allow_random': not options.get('pretrained'), **options}
    model = build_foundation(f'transformers::{name}', arguments=arguments, **options)
    return model.eval()


@pytest.mark.parametrize(
    ('family', 'arguments', 'prefix'),
    [
        ('dinov2', DINO, 1),
        ('dinov2_with_registers', dict(DINO, **REGISTERS), 5),
        ('dinov3_vit', dict(SIXTEEN, intermediate_size=64, **REGISTERS), 5),
        ('siglip_vision_model', SIGLIP, 0),
    ],
)
def test_maps_are_the_tokens_of_the_patches(
    transformers: ModuleType,
    by_hand: Callable,
    family: str,
    arguments: dict,
    prefix: int,
) -> None:
    model = build(family, arguments, layers=[0, -1])
    patch = arguments['patch_size']
    images = torch.randn(2, 3, 3 * patch, 5 * patch)
    first, last = model(images)
    more = {'interpolate_pos_encoding': True} if prefix == 0 else {}
    output = model.backbone(images, output_hidden_states=True, **more)
    assert torch.equal(last, by_hand(output.last_hidden_state, prefix, 3, 5))
    assert torch.equal(first, by_hand(output.hidden_states[1], prefix, 3, 5))
    [again] = build(family, arguments)(torch.randn(1, 3, 3 * patch + 2, 5 * patch - 2))
    assert again.shape == (1, 32, 3, 5)


def test_sam_gets_images_of_its_size(transformers: ModuleType) -> None:
    model = build('sam_vision_model', SAM, layers=[0, -1])
    images = torch.randn(2, 3, 64, 64)
    first, last = model(images)
    output = model.backbone(images, output_hidden_states=True)
    assert torch.equal(last, output.last_hidden_state)
    assert torch.equal(first, output.hidden_states[1].permute(0, 3, 1, 2))
    shapes = [tuple(level.shape) for level in model(torch.randn(1, 3, 40, 70))]
    assert shapes == [(1, 32, 4, 4), (1, 16, 4, 4)]


def test_the_convnext_of_dinov3_gives_the_maps_of_its_stages(
    transformers: ModuleType, by_hand: Callable
) -> None:
    model = build('dinov3_convnext', CONVNEXT, layers=[0, 1, 2, 3])
    images = torch.randn(1, 3, 64, 96)
    maps = model(images)
    output = model.backbone(images, output_hidden_states=True)
    for level, state in zip(maps[:3], output.hidden_states[1:4], strict=True):
        assert torch.equal(level, state)
    assert torch.equal(maps[3], by_hand(output.last_hidden_state, 1, 2, 3))


@pytest.mark.parametrize('family', ['segformer', 'pvt_v2', 'resnet'])
def test_stages_are_counted_alike_with_and_without_an_embedding(
    transformers: ModuleType, family: str
) -> None:
    more = {'embedding_size': 8} if family == 'resnet' else PYRAMID
    model = build(family, dict(CONVNEXT, **more), layers=[0, 1, 2, 3], **PIXELS)
    maps = model(torch.randn(1, 3, 64, 96))
    assert [tuple(level.shape[1:]) for level in maps] == [
        (8, 16, 24),
        (16, 8, 12),
        (24, 4, 6),
        (32, 2, 3),
    ]
    states = model.backbone(torch.randn(1, 3, 64, 96), output_hidden_states=True)
    assert len(states.hidden_states) == (5 if family == 'resnet' else 4)


def test_models_whose_outputs_are_no_layers_are_refused(
    transformers: ModuleType,
) -> None:
    with pytest.raises(ValueError, match=r'shuffles its patches .*patch16_224\.mae'):
        build('vit_mae', dict(TINY, mask_ratio=0.0), **PIXELS)
    model = build('efficientnet', SMALL_NET, layers=[0], **PIXELS)
    with pytest.raises(ValueError, match=r'layers: .* cannot be told apart; remove'):
        model(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize(
    ('family', 'arguments', 'mean', 'licence'),
    [
        ('dinov2', DINO, 123.675, 'Apache-2.0'),
        ('dinov3_vit', SIXTEEN, 123.675, 'DINOv3 License'),
        ('sam_vision_model', SAM, 123.675, 'Apache-2.0'),
        ('siglip_vision_model', SIGLIP, 127.5, 'Apache-2.0'),
    ],
)
def test_families_have_a_normalisation_and_a_licence(
    transformers: ModuleType,
    family: str,
    arguments: dict,
    mean: float,
    licence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[str] = []
    place = 'kdtoolbox.teachers.foundation.building.print_log'
    monkeypatch.setattr(place, lambda line, logger: lines.append(line))
    model = build(family, arguments)
    assert model.data_preprocessor.mean[0].item() == pytest.approx(mean)
    assert f'weights: {licence} (' in lines[0]


def test_a_folder_has_weights_and_normalisation(
    transformers: ModuleType, by_hand: Callable, tmp_path: Path
) -> None:
    text = dict(TINY, intermediate_size=64, vocab_size=50, max_position_embeddings=8)
    config = transformers.SiglipConfig(text_config=text, vision_config=SIGLIP)
    whole = transformers.SiglipModel(config).eval()
    whole.save_pretrained(tmp_path)
    transformers.SiglipImageProcessor(
        image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.5, 1.0]
    ).save_pretrained(tmp_path)
    model = build(str(tmp_path), pretrained=True)
    images = torch.randn(1, 3, 64, 64)
    tokens = whole.vision_model(images).last_hidden_state
    torch.testing.assert_close(model(images)[0], by_hand(tokens, 0, 4, 4))
    preprocessor = model.data_preprocessor
    assert preprocessor.mean.flatten().tolist() == pytest.approx([25.5, 51, 76.5])
    assert preprocessor.std.flatten().tolist() == pytest.approx([127.5, 127.5, 255])
    with pytest.raises(ValueError, match='do not fit .*missing .*layers.2'):
        build(str(tmp_path), dict(num_hidden_layers=3), pretrained=True)
    random = build(str(tmp_path))
    assert not torch.equal(random(images)[0], model(images)[0])


def test_a_name_on_the_hub_is_read_from_the_cache(
    transformers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = importlib.import_module('huggingface_hub.constants')
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    place = tmp_path / 'models--nobody--dino'
    (place / 'refs').mkdir(parents=True)
    (place / 'refs/main').write_text('0')
    whole = transformers.Dinov2Model(transformers.Dinov2Config(**DINO)).eval()
    whole.save_pretrained(place / 'snapshots/0')
    transformers.BitImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(
        place / 'snapshots/0'
    )
    model = build('nobody/dino', pretrained=True)
    for key, tensor in whole.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[key], tensor)
    mean = model.data_preprocessor.mean.flatten().tolist()
    assert mean == pytest.approx([25.5, 51, 76.5])


def test_a_checkpoint_is_loaded_strictly(
    transformers: ModuleType, tmp_path: Path
) -> None:
    model = build('dinov2', DINO)
    path = str(tmp_path / 'weights.pth')
    torch.save(model.backbone.state_dict(), path)
    images = torch.randn(1, 3, 28, 42)
    assert torch.equal(
        build('dinov2', DINO, checkpoint=path)(images)[0], model(images)[0]
    )
    with pytest.raises(ValueError, match='does not fit Dinov2Model'):
        build('dinov2', dict(DINO, num_hidden_layers=3), checkpoint=path)


def test_weights_are_float_whatever_the_type_of_the_published_ones(
    transformers: ModuleType,
) -> None:
    [level] = build('dinov2', dict(DINO, dtype='bfloat16'))(torch.randn(1, 3, 28, 28))
    assert level.dtype == torch.float32


def test_wrong_names_and_arguments_are_refused(
    transformers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(ValueError, match="Dinov2Config has no 'hidden'; it has"):
        build('dinov2', dict(hidden=32))
    with pytest.raises(ValueError, match=r'teacher\.model: transformers cannot load'):
        build('nobody/has-such-a-model')
    with pytest.raises(ValueError, match=r"folder as `model`; did .* type 'dinov2'\?"):
        build('dinov22')
    with pytest.raises(ValueError, match='which has no weights; name a model of it'):
        build('dinov2', pretrained=True)
    with pytest.raises(ValueError, match=r"teacher\.arguments: .*'hidden_size'"):
        build('dinov2', dict(hidden_size='x'))
    with pytest.raises(ValueError, match='mean and std of its images are unknown'):
        build('clip_vision_model', SIGLIP)
    with pytest.raises(ValueError, match=r'no layers \[-3\]; it has 2'):
        build('dinov2', DINO, layers=[-3])
