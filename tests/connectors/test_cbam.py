import pytest
import torch
from torch import Tensor

from kdtoolbox.connectors import CBAMConnector, FixedCBAMConnector


def maps(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).double() for shape in shapes]


def build() -> CBAMConnector:
    torch.manual_seed(0)
    return CBAMConnector([4, 6], out_channels=[8, 5], reduction=2).double()


def naive_gates(
    level: Tensor, channel: list, spatial: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute both gates of one image; `channel` is the first, `spatial` a 7x7 kernel.

    Returns the image after the first gate, and the logits (H, W) of the second.
    """
    level = torch.stack(
        [x * torch.sigmoid(g) for x, g in zip(level, channel, strict=True)]
    )
    _, height, width = level.shape
    gates = level.new_zeros(height, width)
    pools = torch.stack([level.max(0).values, level.mean(0)])
    for y in range(height):
        for x in range(width):
            if spatial is None:
                gates[y, x] = pools[:, y, x].sum()
            else:
                gates[y, x] = sum(
                    spatial[p, dy + 3, dx + 3] * pools[p, y + dy, x + dx]
                    for p in range(2)
                    for dy in range(-3, 4)
                    for dx in range(-3, 4)
                    if 0 <= y + dy < height and 0 <= x + dx < width
                )
    return level, gates


def naive_norm(maps: Tensor, norm: torch.nn.Module) -> Tensor:
    """Compute a batch norm in training mode."""
    mean = maps.mean((0, 2, 3), keepdim=True)
    variance = maps.var((0, 2, 3), unbiased=False, keepdim=True)
    normalized = (maps - mean) / (variance + norm.eps).sqrt()
    return normalized * norm.weight[:, None, None] + norm.bias[:, None, None]


def test_fixed_attention_matches_the_formula() -> None:
    [level] = maps((2, 4, 5, 3))
    [found] = FixedCBAMConnector()([level])
    for image, refined in zip(level, found, strict=True):
        channel = [x.mean() + x.max() for x in image]
        gated, gates = naive_gates(image, channel, None)
        torch.testing.assert_close(refined, gated * gates.sigmoid())
    assert not list(FixedCBAMConnector().state_dict())


def test_learned_attention_matches_the_formula() -> None:
    connector = build()
    for _, norm in connector.spatial_gates:
        torch.nn.init.constant_(norm.weight, 1.7)
        torch.nn.init.constant_(norm.bias, -0.6)
    levels = maps((2, 4, 5, 3), (2, 6, 2, 3))
    found = connector(levels)
    assert [tuple(x.shape) for x in found] == [(2, 8, 5, 3), (2, 5, 2, 3)]
    for index, level in enumerate(levels):
        first, _, last = connector.channel_gates[index]
        conv, norm = connector.spatial_gates[index]
        parts = []
        for image in level:
            pools = image.mean((1, 2)), image.amax((1, 2))
            gates = [last(first(pool).relu()) for pool in pools]
            parts.append(naive_gates(image, list(gates[0] + gates[1]), conv.weight[0]))
        gated, gates = (torch.stack(part) for part in zip(*parts, strict=True))
        refined = gated * naive_norm(gates[:, None], norm).sigmoid()
        conv, norm = connector.projections[index]
        expected = torch.einsum('oi,nihw->nohw', conv.weight[..., 0, 0], refined)
        torch.testing.assert_close(found[index], naive_norm(expected, norm))


def test_all_parameters_and_inputs_get_a_gradient() -> None:
    connector = build()
    levels = [level.requires_grad_() for level in maps((2, 4, 5, 3), (2, 6, 2, 3))]
    sum(
        output.square().mul(output.detach()).sum() for output in connector(levels)
    ).backward()
    assert all(x.grad.any() for x in [*levels, *connector.parameters()])


def test_hidden_layer_has_at_least_one_unit() -> None:
    connector = CBAMConnector([8], [8])
    assert connector.channel_gates[0][0].out_features == 1


def test_invalid_inputs_raise() -> None:
    with pytest.raises(ValueError, match=r'got \[4, 6\] and \[8\]; write one width'):
        CBAMConnector([4, 6], [8])
    with pytest.raises(ValueError, match=r'\[4, 6\].*has \[4\]; set in_channels=\[4\]'):
        build()(maps((2, 4, 5, 3)))
