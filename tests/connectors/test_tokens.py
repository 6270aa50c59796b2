import pytest
import torch
from torch import Tensor

from kdtoolbox.connectors import TokenConnector
from kdtoolbox.recorders import record

SIZES = ((4, 6), (2, 3), (1, 2))


def maps(channels: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, channels, *size, generator=generator) for size in SIZES]


def flatten(level: Tensor) -> Tensor:
    """Flatten a map into tokens as mmdet's transformers do."""
    return level.flatten(2).permute(0, 2, 1)


def test_concatenated_tokens_are_split_into_levels() -> None:
    levels = maps()
    memory = torch.cat([flatten(level) for level in levels], 1)
    found = TokenConnector()([memory], maps(channels=7))
    assert len(found) == 3
    for level, expected in zip(found, levels, strict=True):
        assert torch.equal(level, expected)


def test_one_tensor_per_level() -> None:
    levels = maps()
    found = TokenConnector()([flatten(level) for level in levels], levels)
    for level, expected in zip(found, levels, strict=True):
        assert torch.equal(level, expected)


def test_single_level_that_is_not_square() -> None:
    level = maps()[0]
    [found] = TokenConnector()([flatten(level)], [level])
    assert torch.equal(found, level)


def test_square_maps_need_no_other_wire() -> None:
    level = torch.arange(32.0).reshape(1, 2, 4, 4)
    found = TokenConnector()([flatten(level), flatten(level[..., :2, :2])])
    assert torch.equal(found[0], level)
    assert torch.equal(found[1], level[..., :2, :2])


def test_class_tokens_are_skipped() -> None:
    level = torch.arange(32.0).reshape(1, 2, 4, 4)
    tokens = torch.cat([torch.full((1, 2, 2), -1.0), flatten(level)], 1)
    for like in ([], [[level]]):
        [found] = TokenConnector(skip=2)([tokens], *like)
        assert torch.equal(found, level)


def test_levels_are_selected_in_the_given_order() -> None:
    levels = maps()
    memory = torch.cat([flatten(level) for level in levels], 1)
    found = TokenConnector(levels=[-1, 1])([memory], levels)
    assert len(found) == 2
    assert torch.equal(found[0], levels[2])
    assert torch.equal(found[1], levels[1])


def test_blocks_of_a_swin_and_a_vit() -> None:
    from mmdet.models.backbones import SwinTransformer
    from mmseg.models.backbones import VisionTransformer

    narrow = dict(num_heads=2, mlp_ratio=2)
    swin = SwinTransformer(
        embed_dims=8,
        depths=(1, 1),
        num_heads=(2, 2),
        strides=(4, 2),
        out_indices=(0, 1),
    )
    vit = VisionTransformer(
        img_size=64, patch_size=16, embed_dims=8, num_layers=1, out_indices=0, **narrow
    )
    swin.eval(), vit.eval()
    with record(swin, dict(tokens='stages.*.blocks.0')) as records:
        outputs = swin(torch.randn(1, 3, 64, 96))
    found = TokenConnector()(records['tokens'], list(outputs))
    for index, (level, output) in enumerate(zip(found, outputs, strict=True)):
        # After the stage the backbone applies only a layer norm.
        norm = swin.get_submodule(f'norm{index}')
        normed = norm(level.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(normed, output)
    with record(vit, dict(tokens='layers.0')) as records:
        [output] = vit(torch.randn(1, 3, 64, 64))
    [level] = TokenConnector(skip=1)(records['tokens'])
    assert level.shape == (1, 8, 4, 4)
    assert torch.equal(level, output)


def test_only_tokens_of_the_selected_level_get_a_gradient() -> None:
    memory = torch.zeros(2, 32, 5, requires_grad=True)
    [level] = TokenConnector(levels=[1])([memory], maps())
    level.sum().backward()
    expected = torch.zeros(2, 32, 5)
    expected[:, 24:30] = 1
    assert torch.equal(memory.grad, expected)


def test_invalid_inputs_raise() -> None:
    levels = maps()
    tokens = [flatten(level) for level in levels]
    memory = torch.cat(tokens, 1)
    with pytest.raises(ValueError, match=r'expected tokens .* got \(2, 5, 4, 6\)'):
        TokenConnector()(levels, levels)
    with pytest.raises(ValueError, match=r'32 tokens, .* \(2, 3\)\], 30 positions'):
        TokenConnector()([memory], levels[:2])
    with pytest.raises(ValueError, match=r'tensors of \[24, 6\] .* same levels'):
        TokenConnector()(tokens[:2], levels)
    with pytest.raises(ValueError, match=r'32 tokens do not form a square; .* `skip`'):
        TokenConnector()([memory])
    with pytest.raises(ValueError, match='there is no level 3, the wire has 3'):
        TokenConnector(levels=[3])([memory], levels)
