"""A plain folder of images without labels."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mmengine.dataset import BaseDataset

from kdtoolbox.datasets.loaders import annotation_loaders
from kdtoolbox.registry import DATASETS

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
"""The suffixes of images, in lower case."""


@DATASETS.register_module()
class ImageFolder(BaseDataset):
    """All images of a folder and of its subfolders, in the order of their paths.

    There are no annotations, so the pipeline loads none: ``LoadImageFromFile``, any
    transforms of images, then ``PackDetInputs`` for a student of mmdet or
    ``PackSegInputs`` for one of mmseg. Links to images and to folders are followed.
    Hidden files and folders, whose names begin with a dot, are left out.

    Args:
        data_root: The folder, relative to the working folder or absolute.
        pipeline: The transforms of each image.
        indices: Take these images only, or the first ones if it is a number.

    Raises:
        ValueError: If the folder does not exist or contains no image, or the pipeline
            loads annotations.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / 'b').mkdir()
        >>> for name in ('b/1.JPG', 'a.png', 'labels.json'):
        ...     _ = (folder / name).write_bytes(b'')
        >>> images = ImageFolder(str(folder))
        >>> [images[index]['img_path'].removeprefix(f'{folder}/') for index in (0, 1)]
        ['a.png', 'b/1.JPG']
    """

    def __init__(
        self,
        data_root: str,
        pipeline: Sequence[dict | Callable] = (),
        indices: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(data_root=data_root, pipeline=list(pipeline), indices=indices)
        loaders = annotation_loaders(self.pipeline.transforms)
        if loaders:
            # mmdet would take each image for one without objects.
            raise ValueError(
                f'ImageFolder has no annotations, and {type(loaders[0]).__name__} in '
                'its pipeline loads some; remove it, or use the data set class of your '
                'annotations'
            )

    def load_data_list(self) -> list[dict]:
        """Return the number and the path of each image."""
        root = Path(self.data_root)
        if not root.is_dir():
            raise ValueError(
                f'ImageFolder: there is no folder {self.data_root!r}, looked for '
                f'{root.absolute()}; set `data_root` to a folder of images'
            )
        paths = sorted(_images(root))
        if not paths:
            raise ValueError(
                f'ImageFolder: {root.absolute()} and its subfolders contain no image, '
                f'a file that ends in one of {", ".join(SUFFIXES)}; set `data_root` to '
                'a folder of images'
            )
        return [dict(img_id=number, img_path=path) for number, path in enumerate(paths)]


def _images(root: Path) -> Iterator[str]:
    # A link may lead to a folder above itself.
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith('.')]
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith('.'):
                yield os.path.join(folder, name)
