import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kdtoolbox.connectors import RegressorConnector, TranslatorConnector


def maps(channels: int = 4, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, 3, 5, generator=generator)


def test_translator_is_three_convolutions_with_norm_and_leaky_relu() -> None:
    connector, expected = TranslatorConnector(4, 6), maps()
    for conv in connector.layers[::3]:
        expected = functional.conv2d(expected, conv.weight, conv.bias, padding=1)
        expected = functional.batch_norm(expected, None, None, training=True)
        expected = torch.where(expected > 0, expected, 0.1 * expected)
    widths = [conv.out_channels for conv in connector.layers[::3]]
    assert widths == [4, 6, 6]
    torch.testing.assert_close(connector([maps()])[0], expected)


def test_translator_accepts_a_single_value_per_channel() -> None:
    connector = TranslatorConnector(4, 6)
    [factor] = connector([maps(count=1)[..., :1, :1]])
    assert factor.shape == (1, 6, 1, 1)
    assert factor.isfinite().all()


def test_regressor_is_three_convolutions_with_relus_between() -> None:
    connector, expected = RegressorConnector(4, 6), maps()
    for index, conv in enumerate(connector.layers[::2]):
        expected = functional.conv2d(
            expected.relu() if index else expected, conv.weight
        )
    assert len(list(connector.parameters())) == 3
    torch.testing.assert_close(connector([maps()])[0], expected)


@pytest.mark.parametrize('kind', [TranslatorConnector, RegressorConnector])
def test_error_of_wrong_channels_names_the_value_to_set(kind: type) -> None:
    with pytest.raises(
        ValueError, match=r'levels of 5 .*has \[4, 4\]; set in_chan.*=4'
    ):
        kind(5, 6)([maps(), maps()])
