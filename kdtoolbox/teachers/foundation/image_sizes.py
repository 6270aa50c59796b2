"""Give images a size that a backbone takes."""

from torch import Tensor
from torch.nn.functional import interpolate


def nearest_multiple(side: int, step: int) -> int:
    """Return the multiple of ``step`` nearest to ``side``, at least one ``step``.

    Example:
        >>> [nearest_multiple(side, 14) for side in (3, 20, 21, 512)]
        [14, 14, 28, 518]
    """
    return max(int(side / step + 0.5), 1) * step


def fit_images(
    images: Tensor, patch_size: int | None, image_size: tuple[int, int] | None
) -> Tensor:
    """Resize images (N, C, H, W) for a backbone, bilinear with antialiasing.

    Args:
        images: The images.
        patch_size: Both sides become the nearest multiples of it; None for any size.
        image_size: Height and width of the only size that the backbone takes.
    """
    size = image_size
    if size is None and patch_size is not None:
        height, width = (
            nearest_multiple(side, patch_size) for side in images.shape[2:]
        )
        size = height, width
    if size is None or size == tuple(images.shape[2:]):
        return images
    # Not every device has the half precision kernel.
    resized = interpolate(images.float(), size, mode='bilinear', antialias=True)
    return resized.to(images.dtype)
