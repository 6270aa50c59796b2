"""Scale vectors to length 1."""

import math

from torch import Tensor
from torch.linalg import vector_norm


def unit_vectors(values: Tensor, dim: int = 1) -> Tensor:
    """Return vectors of length 1; a vector of zeros stays 0 and gets no gradient.

    Args:
        values: Vectors along ``dim``, such as the features (N, C, H, W) of positions.
        dim: The dimension of the vectors.

    Example:
        >>> import torch
        >>> unit_vectors(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    norms = vector_norm(values, dim=dim, keepdim=True)
    return values / norms.where(norms > 0, math.inf)
