"""Name images by their content, on the device where they are."""

from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_WORD = 8
"""Bytes of the words that are summed."""

_known: dict[torch.device, Tensor] = {}


@torch.no_grad()
def fingerprint(images: Tensor) -> list[str]:
    r"""Return a name of 32 hexadecimal digits for each image of a batch.

    The bits of an image, as 64-bit words v, give two sums modulo 2^64

    .. math:: s_j = \sum_i w_{ij} (v_i - \lfloor v_i / 2^{32} \rfloor)

    with odd pseudo-random weights w; a digest of both sums with shape and type is the
    name. An odd weight makes the change of any single word visible. A product carries
    a change to higher bits only, so the upper half of a word is first taken from the
    lower one. Integer sums do not depend on their order: equal bits give equal names
    on every device, in every batch and in every process.

    Args:
        images: Any tensors of one type and shape (N, ...).

    Example:
        >>> images = torch.arange(48.0).reshape(2, 3, 2, 4)
        >>> fingerprint(images)[1] == fingerprint(images[1:])[0]
        True
        >>> len({*fingerprint(images), *fingerprint(-images)})
        4
    """
    words = _words_of(images)
    mixed = words - (words >> 32)
    weights = _weights(words.shape[1], images.device)
    # One image at a time: the products of a whole batch would not stay in the cache.
    sums = torch.stack([(row * weights).sum(1) for row in mixed]).cpu().numpy()
    suffix = repr((tuple(images.shape[1:]), str(images.dtype))).encode()
    return [blake2b(row.tobytes() + suffix, digest_size=16).hexdigest() for row in sums]


def _words_of(images: Tensor) -> Tensor:
    """Return the bits of the images (N, L); zeros complete the last word."""
    flat = images.contiguous().flatten(1)
    size = flat.shape[1] * flat.element_size()
    if size % _WORD:
        flat = pad(flat.view(torch.uint8), (0, -size % _WORD))
    elif flat.storage_offset() * flat.element_size() % _WORD:
        flat = flat.clone()
    return flat.view(torch.int64)


def _weights(length: int, device: torch.device) -> Tensor:
    """Return the weights (2, length) of the words on a device."""
    if device not in _known or _known[device].shape[1] < length:
        made = _random_odd(np.arange(2 * length, dtype=np.uint64)).view(np.int64)
        # Two words follow each other, so that a longer image has the same weights.
        pairs = torch.from_numpy(made).reshape(length, 2).T.contiguous()
        _known[device] = pairs.to(device)
    return _known[device][:, :length]


def _random_odd(positions: np.ndarray) -> np.ndarray:
    """Return the outputs of SplitMix64 at its positions, with the last bit set."""
    mixed = (positions + np.uint64(1)) * np.uint64(_GOLDEN)
    for shift, factor in _MIX:
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)
