"""Read the images and label maps of a data set and list the faults of each sample."""

import io
from collections.abc import Iterator
from functools import lru_cache

import mmcv
import numpy as np
import torch
from mmengine.dataset import BaseDataset
from PIL import Image
from torch.utils.data import Dataset

from kdtoolbox.datasets.inspection import as_list
from kdtoolbox.datasets.label_maps import (
    ignored_labels,
    truncates_labels,
    wrong_labels,
)
from kdtoolbox.datasets.loaders import missing_input
from kdtoolbox.datasets.pipelines import is_local, transforms_of
from kdtoolbox.datasets.stored_bits import truncated_depth, truncated_labels

ORIENTATION = 0x0112
"""The EXIF tag that says how the pixels of a photo are turned."""

Fault = tuple[str, str]
"""The kind of a fault and its description."""


class SampleFaults(Dataset):
    """The faults of each sample, read by the data set's own loading transforms.

    Args:
        dataset: The data set, without wrappers.
    """

    def __init__(self, dataset: BaseDataset) -> None:
        self.dataset = dataset
        transforms = transforms_of(dataset)
        self.loaders = [t for t in transforms if 'Load' in type(t).__name__]
        self.local = is_local(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> list[Fault]:
        info = self.dataset.get_data_info(index)
        path = info.get('img_path') or f'image {index}'
        results, faults = self._load(info)
        if results is not None:
            faults += [*self._image_faults(info, results), *self._label_faults(results)]
        elif not faults:
            faults.append(('cannot be read', '`ignore_empty` passes it over'))
        return [(kind, f'{path}: {text}') for kind, text in faults]

    def _load(self, info: dict) -> tuple[dict | None, list[Fault]]:
        """Run the loading transforms; the result is None if one of them fails."""
        results: dict | None = dict(info)
        faults: list[Fault] = []
        for loader in self.loaders:
            # Without its input a loader fails or loads nothing.
            missing = missing_input([loader], info, self.dataset.test_mode)
            if missing:
                faults.append(('without what the pipeline loads', missing))
                continue
            try:
                results = loader(results)
            except Exception as error:
                text = ' '.join(f'{type(error).__name__}: {error}'.split())
                faults.append(('cannot be read', text))
                results = None
            if results is None:
                break
        return results, faults

    def _image_faults(self, info: dict, results: dict) -> Iterator[Fault]:
        size = tuple(results.get('ori_shape') or ())
        annotated = info.get('height'), info.get('width')
        if size and None not in annotated and size != annotated:
            yield (
                'of another size than the annotation says',
                f'{size}, not {annotated}',
            )
        for path in map(str, as_list(info.get('img_path')) if self.local else ()):
            yield from self._orientation_faults(path, results, annotated)
            read = getattr(results.get('img'), 'dtype', None)
            if depth := truncated_depth(path, read):
                yield 'of more bits than are read', depth
            if path.lower().endswith(('.jpg', '.jpeg')):
                try:
                    # Some versions of OpenCV fill the missing part with grey.
                    Image.open(path).load()
                except OSError as error:
                    yield 'cut off', str(error)

    def _orientation_faults(
        self, path: str, results: dict, annotated: tuple
    ) -> Iterator[Fault]:
        """Yield a fault for a photo with an EXIF rotation.

        There is none if the sizes prove that image and annotation agree.
        """
        reader = next((t for t in self.loaders if hasattr(t, 'color_type')), None)
        try:
            image = Image.open(path)
        except OSError:
            return
        orientation = image.getexif().get(ORIENTATION, 1)
        if reader is None or orientation not in range(2, 9):
            return
        size = tuple(results['ori_shape'])
        labels = results.get('gt_seg_map')
        expected = annotated if labels is None else labels.shape[:2]
        # Orientations from 5 on swap height and width, so equal sizes are a proof
        # unless the image is square.
        if orientation >= 5 and size == expected and size[0] != size[1]:
            return
        turns = reads_turned(image.format, reader.color_type, reader.imdecode_backend)
        yield (
            'turned by EXIF',
            f'has EXIF orientation {orientation} and is read '
            f'{"turned" if turns else "unturned"} by this pipeline: boxes and label '
            'maps must refer to the image as it is read',
        )

    def _label_faults(self, results: dict) -> Iterator[Fault]:
        labels = results.get('gt_seg_map')
        # Only mmseg sets `reduce_zero_label`. The panoptic maps of mmdet number other
        # classes.
        if labels is None or 'reduce_zero_label' not in results:
            return
        size = tuple(results.get('ori_shape') or labels.shape)
        if labels.shape != size:
            yield 'label map of another size', f'{labels.shape}, not {size}'
        classes = self.dataset.metainfo.get('classes')
        ignored = ignored_labels(self.dataset)
        if classes is not None and ignored is not None:
            values = torch.from_numpy(labels.astype(np.int64))
            wrong = wrong_labels(values, len(classes), ignored)
            if wrong:
                text = f'{wrong[:5]} of {len(classes)} classes, ignored {[*ignored]}'
                yield 'labels without a class', text
        if self.local and truncates_labels(self.dataset):
            fault = truncated_labels(results['seg_map_path'])
            if fault:
                yield 'labels that 8 bits do not hold', fault


@lru_cache
def reads_turned(kind: str, color_type: str, backend: str | None) -> bool:
    """Return whether mmcv turns images of a format as their EXIF tag says.

    The result is measured on a small image, since it depends on the format and on the
    decoder.

    Args:
        kind: Format of the image, as PIL names it.
        color_type: As for `mmcv.imfrombytes`.
        backend: As for `mmcv.imfrombytes`.
    """
    exif, file = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = 6
    # MPO files of phones are JPEG files with several images.
    kind = 'JPEG' if kind == 'MPO' else kind
    Image.new('RGB', (2, 1)).save(file, kind, exif=exif)
    shape = mmcv.imfrombytes(file.getvalue(), flag=color_type, backend=backend).shape
    return shape[0] > shape[1]
