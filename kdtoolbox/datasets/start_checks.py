"""Check annotations while mmdet reads them; it does not keep their lists and ids."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

from mmengine.dataset import BaseDataset

from kdtoolbox.datasets.annotations import AnnotationError, annotation_faults

# Subclasses that override the parser may need other keys.
_PARSERS = ('CocoDataset.parse_data_info', 'CocoPanopticDataset.parse_data_info')


@contextmanager
def checked_annotations() -> Iterator[None]:
    """Check the COCO annotation of each data set that is built within the context.

    The check has to run during the build: mmdet silently keeps only one of two entries
    that share an id, and a second read of a large file takes long.

    Raises:
        AnnotationError: If mmdet would misread the annotation of a data set.
    """
    original_init = BaseDataset.__init__
    patched = []

    @wraps(original_init)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        parser = getattr(type(self), 'parse_data_info', None)
        if getattr(parser, '__qualname__', None) in _PARSERS:
            self.COCOAPI = partial(_read, type(self).COCOAPI, self)
            patched.append(self)
        original_init(self, *args, **kwargs)

    BaseDataset.__init__ = init
    try:
        yield
    finally:
        BaseDataset.__init__ = original_init
        for dataset in patched:
            del dataset.COCOAPI


def _read(reader: type, dataset: Any, path: str) -> Any:
    class Checked(reader):
        def createIndex(self) -> None:  # noqa: N802 - pycocotools' name
            classes = dataset.metainfo.get('classes')
            faults = annotation_faults(self.dataset, type(dataset), classes)
            if faults:
                raise AnnotationError(dataset.ann_file, faults)
            super().createIndex()

    return Checked(path)
