import pytest
import torch
from torch import Tensor

from kdtoolbox.connectors import ChannelMLPConnector
from kdtoolbox.losses import FitNetLoss, MGDLoss


def maps(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()


def test_output_matches_the_formula_at_each_position() -> None:
    connector = ChannelMLPConnector(3, 5, hidden_channels=4).double()
    level = maps(2, 3, 2, 3)
    [output] = connector([level])
    first, last = (x.convs[0].conv for x in (connector.hidden, connector.out))
    assert first.weight.shape == (4, 3, 1, 1)
    for n, y, x in torch.cartesian_prod(*map(torch.arange, (2, 2, 3))):
        hidden = first.weight.flatten(1) @ level[n, :, y, x] + first.bias
        expected = last.weight.flatten(1) @ hidden.clamp(min=0) + last.bias
        torch.testing.assert_close(output[n, :, y, x], expected)


def test_list_creates_one_perceptron_per_level() -> None:
    connector = ChannelMLPConnector([3, 6], 5).double()
    first, second = connector([maps(2, 3, 4, 4), maps(2, 6, 2, 2)])
    assert (first.shape, second.shape) == ((2, 5, 4, 4), (2, 5, 2, 2))
    assert len(list(connector.parameters())) == 8
    shared = ChannelMLPConnector(3, 5).double()
    assert len(shared([maps(2, 3, 4, 4), maps(2, 3, 2, 2)])) == 2
    assert len(list(shared.parameters())) == 4


@pytest.mark.parametrize('loss', [MGDLoss(loss_weight=1.0), FitNetLoss()])
def test_both_layers_get_a_gradient(loss: torch.nn.Module) -> None:
    connector = ChannelMLPConnector(3, 5).double()
    level = maps(2, 3, 4, 4).requires_grad_()
    [output] = connector([level])
    loss(output, maps(2, 5, 4, 4)).backward()
    assert all(weight.grad.any() for weight in connector.parameters())
    assert level.grad.any()


def test_wrong_channels_raise() -> None:
    with pytest.raises(ValueError, match=r'of \[3\] channels.*\[4\].*in_channels=4'):
        ChannelMLPConnector(3, 5)([maps(2, 4, 4, 4).float()])
