import copy

import pytest
import torch
from torch import Tensor, nn

from kdtoolbox.connectors.generator import MGDConnector
from kdtoolbox.registry import MODELS


def build(mask_ratio: float = 0.65, num_levels: int = 2) -> MGDConnector:
    torch.manual_seed(0)
    sizes = dict(channels=4, num_levels=num_levels)
    return MODELS.build(
        dict(type='kdtoolbox.MGDConnector', mask_ratio=mask_ratio, **sizes)
    )


def maps(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, *size, generator=generator) for size in sizes]


def draw(ratio: float, level: Tensor) -> Tensor:
    noise = torch.rand(len(level), 1, *level.shape[2:])
    return torch.ones_like(noise).masked_fill(noise > 1 - ratio, 0)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_output_and_gradients_equal_plain_autograd(dtype: torch.dtype) -> None:
    connector = build().to(dtype)
    plain = copy.deepcopy(connector)
    results = []
    for module in (connector, plain):
        levels = [level.to(dtype).requires_grad_() for level in maps((6, 5), (1, 1))]
        torch.manual_seed(1)
        if module is plain:
            outputs = [
                generator(level * draw(0.65, level))
                for generator, level in zip(plain.generators, levels, strict=True)
            ]
        else:
            outputs = connector(levels)
        sum(output.square().sum() for output in outputs).backward()
        grads = [x.grad for x in (*levels, *module.parameters())]
        results += [[*(x.detach() for x in outputs), *grads]]
    for found, expected in zip(*results, strict=True):
        assert found.any()
        torch.testing.assert_close(found, expected)


def masks_of(connector: MGDConnector, level: Tensor) -> Tensor:
    """Return the masks: with G set to a ReLU, ones in give the masks out."""
    for convolution in connector.generators[0][::2]:
        nn.init.dirac_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    [output] = connector([torch.ones_like(level)])
    return output.detach()


def test_channels_share_a_mask_and_calls_and_images_do_not() -> None:
    connector = build(0.65, num_levels=1)
    [level] = maps((100, 100))
    first, second = masks_of(connector, level), masks_of(connector, level)
    assert first.unique().tolist() == [0, 1]
    assert torch.equal(first, first[:, :1].expand_as(first))
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert first.mean().item() == pytest.approx(0.35, abs=0.02)


def test_same_seed_gives_the_same_masks() -> None:
    connector = build()
    outputs = []
    for _ in range(2):
        torch.manual_seed(5)
        outputs.append(
            torch.cat([x.flatten() for x in connector(maps((6, 5), (3, 3)))])
        )
    assert torch.equal(*outputs)


def test_mask_ratio_0_applies_only_the_generator() -> None:
    connector = build(0.0, num_levels=1)
    [level] = maps((6, 5))
    torch.testing.assert_close(connector([level])[0], connector.generators[0](level))


def test_inputs_are_not_modified() -> None:
    levels = maps((6, 5), (3, 3))
    before = [level.clone() for level in levels]
    for output in build()(levels):
        output.sum().backward()
    assert all(map(torch.equal, levels, before))


def test_autocast() -> None:
    connector = build(num_levels=1)
    results = []
    for enabled in (False, True):
        [level] = (level.requires_grad_() for level in maps((6, 5)))
        connector.zero_grad()
        torch.manual_seed(1)
        with torch.autocast('cpu', torch.bfloat16, enabled):
            [output] = connector([level])
        assert output.dtype == (torch.bfloat16 if enabled else torch.float32)
        output.float().sum().backward()
        grads = [x.grad for x in (level, *connector.parameters())]
        results.append([output.detach().float(), *grads])
    for full, half in zip(*results, strict=True):
        assert half.dtype == torch.float32
        # Two convolutions, ReLU and mask round in the forward and the backward pass.
        atol = 8 * torch.finfo(torch.bfloat16).eps * float(full.abs().max())
        torch.testing.assert_close(half, full, rtol=0, atol=atol)


def test_wrong_levels_or_channels_raise() -> None:
    with pytest.raises(ValueError, match=r'\[4, 4\].*has \[4\]; set num_levels=1'):
        build()(maps((6, 5)))
    with pytest.raises(ValueError, match=r'has \[3, 3\].*ConvConnector before'):
        build()([level[:, :3] for level in maps((6, 5), (3, 3))])
