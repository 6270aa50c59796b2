"""Compute the records of an image once, and read them from a file afterwards."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from kdtoolbox.checkpoints.writing import write_whole
from kdtoolbox.recorders import Records
from kdtoolbox.teachers.fingerprints import fingerprint
from kdtoolbox.teachers.identity import Identity
from kdtoolbox.teachers.record_files import (
    Layout,
    find_layout,
    read_entries,
    records_in,
    write_entries,
)

DTYPES = {
    'float16': torch.float16,
    'bfloat16': torch.bfloat16,
    'float32': torch.float32,
}

Run = Callable[[Tensor, Sequence], Records]
"""Computes the records (N, ...) of images (N, C, H, W) with their samples."""

_uncached: ContextVar[bool] = ContextVar('uncached', default=False)


@contextmanager
def uncached() -> Iterator[None]:
    """Let all caches compute and write nothing in the block, as for made-up images."""
    token = _uncached.set(True)
    try:
        yield
    finally:
        _uncached.reset(token)


class RecordCache:
    """Files with the records of a teacher, one for each image.

    The name of a file is the content of the image, so an entry is never that of another
    image, crop or flip. The folder has the name of everything else that the records
    depend on. Records are rounded to ``dtype`` before they are used for the first time:
    a step gets the same numbers from the teacher as from the file.

    Args:
        path: The folder of all entries.
        views: The number of augmentations of each image, which ``tools/train.py``
            repeats in turn. There is no default, since it limits the augmentation.
        dtype: The type in the files: 'float16', 'bfloat16' with the range of float32,
            or 'float32'.
        where: Config path, for errors.

    Attributes:
        computed: The number of images whose records were computed.
        read: The number of images whose records were in a file.

    Raises:
        ValueError: If an argument has another value.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> images = torch.ones(2, 3, 4, 4)
        >>> run = lambda images, samples: dict(mean=[images.mean((2, 3))])
        >>> with TemporaryDirectory() as folder:
        ...     cache = RecordCache(folder, views=1)
        ...     for _ in range(3):
        ...         records = cache.observe(run, images, [], Identity('mean', {}))
        >>> records['mean'][0].shape, cache.computed, cache.read
        (torch.Size([2, 3]), 2, 4)
    """

    def __init__(
        self,
        path: str,
        views: int,
        dtype: str = 'float16',
        where: str = 'model.teacher.cache',
    ) -> None:
        if not isinstance(path, str) or not path:
            raise ValueError(f'{where}.path: expected a folder, got {path!r}')
        check_views(views, where)
        if dtype not in DTYPES:
            raise ValueError(
                f'{where}.dtype: expected one of {[*DTYPES]}, got {dtype!r}'
            )
        self.path, self.views, self.where = Path(path), views, where
        self.dtype = DTYPES[dtype]
        self.computed = self.read = 0
        self._layouts: dict[tuple, Layout] = {}
        self._checked: set[Path] = set()

    def observe(
        self,
        run: Run,
        inputs: Tensor,
        data_samples: Sequence,
        identity: Identity,
    ) -> Records:
        """Return the records of a batch from files; compute and write missing ones.

        Args:
            run: Computes records.
            inputs: Images (N, C, H, W).
            data_samples: The samples of the batch.
            identity: What the records depend on besides the batch.

        Returns:
            The records (N, ...) on the device of the images. Floating-point numbers
            have their type.

        Raises:
            ValueError: If the first dimension of a record is not that of the batch, or
                a value is outside the range of ``dtype``.
            OSError: If a file cannot be read or written.
        """
        if _uncached.get():
            return run(inputs, data_samples)
        folder = self.folder(identity)
        paths = [folder / name[:2] / name for name in names_of(inputs, data_samples)]
        key = (folder, tuple(inputs.shape[1:]))
        buffer, wanted = self._read(paths, key, inputs.is_cuda)
        if wanted:
            if not self._fill(run, inputs, data_samples, paths, wanted, identity):
                # NaN and infinite numbers are for the checks of the step, not for a
                # file.
                return run(inputs, data_samples)
            buffer, lost = self._read(paths, key, inputs.is_cuda)
            if lost:
                raise OSError(
                    f'{self.where}: {paths[lost[0]]} cannot be read after it was '
                    'written; check the disk, or name another folder as `path`'
                )
        self.computed += len(wanted)
        self.read += len(paths) - len(wanted)
        loaded = buffer.to(inputs.device, non_blocking=True)
        # Views of a file's bytes are not contiguous.
        return {
            name: [
                x.to(inputs.dtype if x.is_floating_point() else x.dtype).contiguous()
                for x in levels
            ]
            for name, levels in records_in(loaded, self._layouts[key]).items()
        }

    def folder(self, identity: Identity) -> Path:
        """Return the folder of the entries of a teacher."""
        return self.path / f'{identity.digest}-{str(self.dtype)[6:]}'

    def _read(
        self, paths: list[Path], key: tuple, pin: bool
    ) -> tuple[Tensor, list[int]]:
        """Return a buffer with the entries, and the indices of those without one."""
        if key not in self._layouts:
            layout = next(filter(None, map(find_layout, paths)), None)
            if layout is None:
                return torch.empty(0), [*range(len(paths))]
            self._layouts[key] = layout
        buffer, missing, damaged = read_entries(paths, self._layouts[key], pin)
        for index in damaged:
            print_log(
                f'{self.where}: {paths[index]} is damaged and gets replaced',
                'current',
                logging.WARNING,
            )
        return buffer, sorted(missing + damaged)

    def _fill(
        self,
        run: Run,
        inputs: Tensor,
        data_samples: Sequence,
        paths: list[Path],
        wanted: list[int],
        identity: Identity,
    ) -> bool:
        """Compute and write entries; return False if a value is not finite."""
        part, samples = inputs, data_samples
        if len(wanted) < len(paths):
            part = inputs[wanted]
            samples = [data_samples[index] for index in wanted if data_samples]
        records = run(part, samples)
        self._check_batch(run, part, samples, records, paths[0].parents[1])
        if not all(
            torch.isfinite(x).all() for levels in records.values() for x in levels
        ):
            return False
        stored = self._stored(records)
        try:
            _prepare(paths[0].parents[1], dict(identity.about, stored_as=self.dtype))
            write_entries([paths[index] for index in wanted], stored)
        except OSError as error:
            raise OSError(
                error.errno,
                f'{self.where}: {error.strerror}. Make room, name another folder as '
                '`path` or remove `cache`, and continue with --resume',
                error.filename,
            ) from error
        return True

    def _check_batch(
        self,
        run: Run,
        inputs: Tensor,
        samples: Sequence,
        records: Records,
        folder: Path,
    ) -> None:
        """Raise ValueError unless the first dimension of all records is the batch."""
        self._compare(records, len(inputs))
        if len(inputs) > 1 and folder not in self._checked:
            # Another dimension may have the size of the batch by chance.
            self._compare(run(inputs[:1], samples[:1]), 1)
            self._checked.add(folder)

    def _compare(self, records: Records, count: int) -> None:
        for name, levels in records.items():
            for level in levels:
                if not level.dim() or len(level) != count:
                    raise ValueError(
                        f'{self.where}: the record {name!r} of {count} images has the '
                        f'shape {tuple(level.shape)}; a cache needs (N, ...), a row '
                        'for each image. Record another module, such as the one '
                        f'before it, or remove {self.where}'
                    )

    def _stored(self, records: Records) -> Records:
        """Return the records in the type of the files."""
        stored: Records = {}
        for name, levels in records.items():
            stored[name] = [
                x.to(self.dtype) if x.is_floating_point() else x for x in levels
            ]
            for old, new in zip(levels, stored[name], strict=True):
                if not torch.isfinite(new).all():
                    raise ValueError(
                        f'{self.where}.dtype: the record {name!r} contains '
                        f'{old.abs().max().item():.3g}, beyond the range of '
                        f"{str(self.dtype)[6:]}; set {self.where}.dtype='bfloat16'"
                    )
        return stored


def check_views(views: Any, where: str) -> None:
    """Raise ValueError if a number of augmentations is not an integer above 0."""
    if not isinstance(views, int) or isinstance(views, bool) or views < 1:
        raise ValueError(
            f'{where}.views: expected the number of augmentations of each image, 1 or '
            f'more, got {views!r}; write cache=dict(path=..., views=4)'
        )


def names_of(inputs: Tensor, data_samples: Sequence) -> list[str]:
    """Return the name of the entry of each image.

    A model may read the size of the image within the padding, so it is in the name.
    A sample that lacks it tells no model.
    """
    shapes = [getattr(some, 'img_shape', ('all',)) for some in data_samples]
    sizes = ['x'.join(map(str, shape[:2])) for shape in shapes]
    sizes = sizes or ['all'] * len(inputs)
    return [
        f'{name}-{size}.safetensors'
        for name, size in zip(fingerprint(inputs), sizes, strict=True)
    ]


def _prepare(folder: Path, about: Mapping[str, Any]) -> None:
    """Make the folder of a teacher and the file that says what is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / 'cache.json'
    if not note.exists():
        with write_whole(note) as file:
            file.write((json.dumps(about, indent=1, default=str) + '\n').encode())
