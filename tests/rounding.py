"""Bounds on rounding errors that hold on every machine."""

import torch


def rounding(dtype: torch.dtype, terms: int) -> float:
    """Return how far two sums of the same terms may be apart, in whatever order.

    An addition rounds by at most eps / 2 of its result, and no partial sum exceeds the
    sum of the magnitudes; so each of the two errs by at most terms * eps / 2 of that
    sum (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2). The
    order, blocks and fused multiply-adds that a processor prefers change nothing.

    Args:
        dtype: What the sums are kept in.
        terms: How many roundings a result went through: terms of a sum, layers of a
            network.

    Returns:
        The bound, relative to the sum of the terms' magnitudes.
    """
    return terms * torch.finfo(dtype).eps
