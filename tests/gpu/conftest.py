"""The device of the tests that need a GPU. `make gpu` runs them."""

import sys
from pathlib import Path

import pytest
import torch

# The import mode of the suite leaves sys.path alone; the tests here share modules.
TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / name) for name in ('gpu', 'distributed', 'losses')]


@pytest.fixture(params=['cuda'])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == 'cuda' and not torch.cuda.is_available():
        pytest.skip('needs a GPU; torch.cuda.is_available() is False')
    # TensorFloat32 has 10 bits; a CPU computes with 23.
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    return request.param
