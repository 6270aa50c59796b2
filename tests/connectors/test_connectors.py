import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kdtoolbox.connectors import ConvConnector, NormConnector, ResizeConnector


def maps(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_one_convolution_is_shared_by_all_levels() -> None:
    connector = ConvConnector(4, 6)
    levels = maps((2, 4, 8, 8), (2, 4, 4, 5))
    projected = connector(levels)
    weight, bias = connector.convs[0].conv.weight, connector.convs[0].conv.bias
    assert len(list(connector.parameters())) == 2
    for level, output in zip(levels, projected, strict=True):
        torch.testing.assert_close(output, functional.conv2d(level, weight, bias))


def test_list_creates_one_convolution_per_level() -> None:
    connector = ConvConnector([4, 8], 6)
    first, second = connector(maps((2, 4, 8, 8), (2, 8, 4, 4)))
    assert first.shape == (2, 6, 8, 8)
    assert second.shape == (2, 6, 4, 4)


def test_list_of_equal_widths_is_not_shared() -> None:
    connector = ConvConnector([4, 4], 6)
    level = maps((1, 4, 2, 2))[0]
    first, second = connector([level, level])
    assert not torch.equal(first, second)


def test_norm_and_activation() -> None:
    connector = ConvConnector(4, 6, dict(type='BN'), dict(type='ReLU'))
    [output] = connector(maps((2, 4, 8, 8)))
    assert output.min() == 0
    assert any(name.endswith('running_mean') for name in connector.state_dict())


def test_plain_connector_is_linear() -> None:
    connector = ConvConnector(4, 6)
    [level] = maps((2, 4, 8, 8))
    zero, one, two = (connector([k * level])[0] for k in range(3))
    torch.testing.assert_close(two - one, one - zero)


@pytest.mark.parametrize(
    ('in_channels', 'shapes', 'cure'),
    [
        (8, [(1, 4, 2, 2), (1, 4, 1, 1)], r'expected levels of \[8, 8\].*s=4$'),
        (8, [(1, 4, 2, 2), (1, 8, 1, 1)], r'set in_channels=\[4, 8\]'),
        ([4, 8], [(1, 8, 2, 2), (1, 4, 1, 1)], r'set in_channels=\[8, 4\]'),
        ([4, 8, 8], [(1, 4, 2, 2), (1, 8, 1, 1)], r'set in_channels=\[4, 8\]'),
    ],
)
def test_error_of_wrong_channels_names_the_value_to_set(
    in_channels: int | list[int], shapes: list[tuple], cure: str
) -> None:
    with pytest.raises(ValueError, match=cure):
        ConvConnector(in_channels, 6)(maps(*shapes))


def test_resize_uses_the_sizes_of_the_other_wire() -> None:
    levels, like = maps((1, 3, 4, 4), (1, 3, 2, 2)), maps((1, 7, 8, 6), (1, 7, 2, 2))
    large, same = ResizeConnector()(levels, like)
    expected = functional.interpolate(levels[0], (8, 6), mode='bilinear')
    torch.testing.assert_close(large, expected)
    assert same is levels[1]


def test_resize_gives_a_gradient_only_to_its_input() -> None:
    [level], [like] = maps((1, 3, 4, 4)), maps((1, 3, 8, 8))
    level.requires_grad_()
    like.requires_grad_()
    ResizeConnector()([level], [like])[0].sum().backward()
    torch.testing.assert_close(level.grad.sum(), torch.tensor(192.0))
    assert like.grad is None


def test_resize_raises_for_different_numbers_of_levels() -> None:
    with pytest.raises(ValueError, match='input has 1 levels, like has 2'):
        ResizeConnector()(maps((1, 3, 4, 4)), maps((1, 3, 4, 4), (1, 3, 2, 2)))


def test_larger_kernel_keeps_the_map_size() -> None:
    connector = ConvConnector(in_channels=4, out_channels=6, kernel_size=3)
    [level] = connector([torch.zeros(2, 4, 5, 7)])
    assert level.shape == (2, 6, 5, 7)
    assert connector.convs[0].conv.weight.shape == (6, 4, 3, 3)


@pytest.mark.filterwarnings('ignore:Unnecessary conv bias')
@pytest.mark.parametrize('norm_cfg', [None, dict(type='BN')])
def test_bias_follows_the_argument_and_by_default_the_norm(
    norm_cfg: dict | None,
) -> None:
    def has_bias(**arguments: bool) -> bool:
        connector = ConvConnector([4, 8], 6, norm_cfg, **arguments)
        [found] = {conv.conv.bias is not None for conv in connector.convs}
        return found

    assert has_bias(bias=True)
    assert not has_bias(bias=False)
    assert has_bias() == (norm_cfg is None)


@pytest.mark.parametrize('training', [True, False])
def test_norm_connector_normalises_each_channel(training: bool) -> None:
    connector = NormConnector().train(training)
    [level] = maps((2, 3, 4, 5))
    scaled = level * torch.tensor([1.0, 5.0, 0.1])[:, None, None] + 7
    # Rounding error of a mean of 40 values near 7, in units of the smallest std of 0.1.
    rounded = 40 * torch.finfo(torch.float32).eps * 7 / 0.1
    # The variance of 0.01 becomes 0.01 / (0.01 + 1e-5).
    stable = 1e-5 / 0.01
    for output in connector([level, scaled]):
        mean, variance = output.mean((0, 2, 3)), output.var((0, 2, 3), unbiased=False)
        torch.testing.assert_close(mean, torch.zeros(3), rtol=0, atol=rounded)
        atol = stable + 2 * rounded
        torch.testing.assert_close(variance, torch.ones(3), rtol=0, atol=atol)
    assert not list(connector.state_dict())


def test_norm_connector_gives_zero_for_a_single_value() -> None:
    [level] = maps((1, 3, 1, 1))
    [output] = NormConnector()([level.requires_grad_()])
    output.sum().backward()
    assert not output.any()
    assert not level.grad.any()
