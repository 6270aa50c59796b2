import pytest
import torch
from torch.nn.functional import interpolate

from kdtoolbox.teachers.foundation.image_sizes import fit_images, nearest_multiple


@pytest.mark.parametrize('step', [1, 14, 16])
def test_no_multiple_is_nearer(step: int) -> None:
    for side in range(1, 100):
        found = nearest_multiple(side, step)
        assert found % step == 0
        others = [abs(side - step * count) for count in range(1, 120)]
        assert abs(side - found) == min(others)


@pytest.mark.parametrize(
    ('patch', 'only', 'size'),
    [(14, None, (42, 70)), (None, (64, 64), (64, 64)), (14, (64, 64), (64, 64))],
)
def test_images_get_the_size_of_the_backbone(
    patch: int, only: tuple[int, int], size: tuple[int, int]
) -> None:
    images = torch.randn(2, 3, 40, 72)
    expected = interpolate(images, size, mode='bilinear', antialias=True)
    assert torch.equal(fit_images(images, patch, only), expected)


def test_images_of_a_fitting_size_stay_as_they_are() -> None:
    images = torch.randn(2, 3, 28, 42)
    assert fit_images(images, 14, None) is images
    assert fit_images(images, None, None) is images


def test_halves_keep_their_type() -> None:
    assert fit_images(torch.zeros(1, 3, 9, 9).half(), 4, None).dtype == torch.half
