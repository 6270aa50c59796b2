"""A cache that a CPU has filled is read on a GPU."""

from pathlib import Path

import pytest
import torch

from kdtoolbox.teachers.fingerprints import fingerprint
from kdtoolbox.teachers.identity import Identity
from kdtoolbox.teachers.record_cache import RecordCache

pytestmark = pytest.mark.gpu


def test_names_and_records_are_those_of_a_cpu(device: str, tmp_path: Path) -> None:
    images = torch.randn(3, 3, 37, 41)
    on_gpu = images.to(device)
    assert fingerprint(on_gpu) == fingerprint(images)
    some = Identity('digest', {})
    first = RecordCache(str(tmp_path), views=1).observe(
        lambda x, samples: dict(maps=[x * 3, x.mean((2, 3))]), images, [], some
    )
    cache = RecordCache(str(tmp_path), views=1)
    found = cache.observe(lambda *_: pytest.fail('it ran'), on_gpu, [], some)
    assert (cache.read, cache.computed) == (3, 0)
    for one, other in zip(first['maps'], found['maps'], strict=True):
        assert other.device.type == device
        assert torch.equal(one, other.cpu())
