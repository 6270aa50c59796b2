"""Digests that reveal a damaged file, in its name or in its metadata."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

DIGEST_KEY = 'kdtoolbox_sha256'
"""The metadata entry of a `.safetensors` file with the digest of its tensors."""

# Excludes dates and counters, such as -20240131 and -00050000.
_FILE_HASH = re.compile(
    r'-(?!000|(?:19|20)\d\d(?:0[1-9]|1[0-2])[0-3]\d)'
    r'([a-f0-9]{8}|[a-f0-9]{10}|[a-f0-9]{64})\.(?:pth|pt|safetensors)$'
)


def hash_in_name(name: str) -> str | None:
    """Return the first digits of the SHA-256 at the end of an OpenMMLab file name.

    Example:
        >>> hash_in_name('gfl_r50_fpn_1x_coco_20200629_121244-25944287.pth')
        '25944287'
        >>> hash_in_name('gfl-20240131.pth'), hash_in_name('gfl-00050000.pth')
        (None, None)
    """
    found = _FILE_HASH.search(name)
    return found.group(1) if found else None


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def tensor_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of CPU tensors with their names, types and shapes.

    The digest does not depend on the order of the names, so it stays valid if another
    program rewrites a file with the same tensors.

    Example:
        >>> a, b = torch.ones(2), torch.zeros(2)
        >>> tensor_digest(dict(a=a, b=b)) == tensor_digest(dict(b=b, a=a))
        True
        >>> tensor_digest(dict(a=a, b=b)) == tensor_digest(dict(a=b, b=a))
        False
    """
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().contiguous()
        digest.update(repr((key, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
