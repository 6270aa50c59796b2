"""Average the wires of several teachers."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdtoolbox.registry import MODELS


@MODELS.register_module()
class MeanConnector(nn.Module):
    """Average several wires level by level, as an ensemble of teachers does.

    Logits are averaged as they are, which is the geometric mean of the probabilities.

    Args:
        weights: The weight of each wire; they are divided by their sum. By default all
            wires count the same.

    Raises:
        ValueError: If the weights are no list, one is negative, or all are 0.

    Example:
        >>> first, second = [torch.zeros(1, 2, 4, 4)], [torch.ones(1, 2, 4, 4)]
        >>> MeanConnector(weights=[1, 3])(first, second)[0].mean()
        tensor(0.7500)
    """

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if weights is not None and not _can_weigh(weights):
            raise ValueError(
                'MeanConnector: expected a list of weights of at least 0 and not all '
                f'0, got {weights!r}; write weights=[1, 1]'
            )
        self.weights = weights

    def forward(self, *wires: list[Tensor]) -> list[Tensor]:
        """Return the mean (N, C, H, W) of each level.

        Args:
            wires: For each wire its levels (N, C, H, W), of the same shapes.

        Raises:
            ValueError: If the wires differ in number from the weights, or in levels or
                shapes from each other.
        """
        weights = [1.0] * len(wires) if self.weights is None else self.weights
        shapes = [[tuple(level.shape) for level in wire] for wire in wires]
        if len(weights) != len(wires):
            raise ValueError(
                f'{len(wires)} wires and {len(weights)} weights; give each wire of '
                '`input` one of `weights`'
            )
        if any(other != shapes[0] for other in shapes):
            raise ValueError(
                f'the wires have the shapes {shapes}; bring them to one shape with a '
                'ResizeConnector or ConvConnector each'
            )
        shares = [weight / sum(weights) for weight in weights]
        return [
            torch.stack([s * x for s, x in zip(shares, levels, strict=True)]).sum(0)
            for levels in zip(*wires, strict=True)
        ]


def _can_weigh(weights: Any) -> bool:
    if not isinstance(weights, list | tuple):
        return False
    if not all(isinstance(weight, int | float) and weight >= 0 for weight in weights):
        return False
    return 0 < sum(weights) < math.inf
