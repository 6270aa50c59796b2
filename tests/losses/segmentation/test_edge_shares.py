import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kdtoolbox.losses.logits.pixel_labels import IGNORED
from kdtoolbox.losses.segmentation import edge_shares as module
from kdtoolbox.losses.segmentation.edge_shares import edge_shares


def dense(labels: Tensor, num_classes: int, size: tuple, radius: int) -> Tensor:
    """Compute the shares with a map of floats for each class."""
    valid = (labels != IGNORED)[:, None]
    classes = torch.arange(num_classes + 1)[:, None, None]
    masks = labels[:, None].where(valid, num_classes) == classes
    near = functional.max_pool2d(masks.double(), 2 * radius + 1, 1, radius)
    edges = near[:, :-1] * (near.sum(1, keepdim=True) > 1) * valid
    means, valid_means = (
        functional.adaptive_avg_pool2d(x.double(), size) for x in (edges, valid)
    )
    return means / valid_means.where(valid_means > 0, 1)


def blocks_of(values: Tensor, size: tuple) -> Tensor:
    return functional.interpolate(values[:, None].float(), size)[:, 0].long()


@pytest.mark.parametrize('block', [1, 200, 2**18])
@pytest.mark.parametrize('num_classes', [2, 31, 32, 33, 80])
@pytest.mark.parametrize('size', [(5, 4), (7, 9), (1, 1), (23, 31), (30, 40)], ids=str)
def test_equals_a_map_for_each_class(
    monkeypatch: pytest.MonkeyPatch, size: tuple, num_classes: int, block: int
) -> None:
    monkeypatch.setattr(module, 'BLOCK', block)
    generator = torch.Generator().manual_seed(0)
    least, most = IGNORED, num_classes
    noise = torch.randint(least, most, (1, 23, 31), generator=generator)
    coarse = torch.randint(least, most, (1, 4, 5), generator=generator)
    labels = torch.cat([noise, blocks_of(coarse, (23, 31))])
    for radius in (1, 3):
        shares = edge_shares(labels, num_classes, size, radius)
        assert shares.dtype == torch.float32
        expected = dense(labels, num_classes, size, radius)
        torch.testing.assert_close(shares.double(), expected, rtol=1e-6, atol=1e-7)


def test_radius_may_be_larger_than_the_image() -> None:
    labels = torch.tensor([[[0, 0, 1]]])
    assert (edge_shares(labels, 2, (1, 3), radius=9) == 1).all()


def test_empty_batches_and_ignored_images_have_no_edges() -> None:
    assert edge_shares(torch.zeros(0, 8, 8).long(), 3, (2, 2)).shape == (0, 3, 2, 2)
    assert not edge_shares(torch.full((1, 8, 8), IGNORED), 3, (2, 2)).any()
