"""timm and transformers, which the set-up keeps apart from the other packages."""

import importlib.util
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn

PLACE = str(Path(sys.prefix, 'foundation'))
"""Where `tools/set_up.sh` installs them."""

STANDINS = (
    'ops',
    'ops.misc',
    'transforms',
    'transforms.functional',
    'datasets',
)
"""The modules of torchvision that timm imports."""


@pytest.fixture(scope='module')
def site() -> Iterator[None]:
    """Let this process import the libraries."""
    path = sysconfig.get_path('purelib', vars=dict(base=PLACE, platbase=PLACE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'path', [*sys.path, path])
        yield


@pytest.fixture(scope='module')
def timm(site: None) -> ModuleType:
    """Return timm, imported with a stand-in for torchvision if that is missing.

    The PyPI wheel of torchvision does not import beside the CPU build of torch. timm
    needs it to prepare images, which these tests do not do.
    """
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec('torchvision') is None:
            torchvision = MagicMock()
            torchvision.ops.misc.FrozenBatchNorm2d = type('Frozen', (nn.Module,), {})
            patch.setitem(sys.modules, 'torchvision', torchvision)
            for name in STANDINS:
                part = torchvision
                for step in name.split('.'):
                    part = getattr(part, step)
                patch.setitem(sys.modules, f'torchvision.{name}', part)
        return pytest.importorskip('timm')


@pytest.fixture(scope='module')
def transformers(site: None) -> ModuleType:
    return pytest.importorskip('transformers')


@pytest.fixture(scope='session')
def by_hand() -> Callable[[Tensor, int, int, int], Tensor]:
    """Return a function that lays tokens (N, L, C) out as a map, one by one."""

    def lay_out(tokens: Tensor, prefix: int, height: int, width: int) -> Tensor:
        rows = [
            torch.stack([tokens[:, prefix + y * width + x] for x in range(width)], -1)
            for y in range(height)
        ]
        return torch.stack(rows, -2)

    return lay_out
