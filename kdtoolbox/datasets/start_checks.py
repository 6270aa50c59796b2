"""Check annotations while mmdet reads them: afterwards it keeps neither list nor id."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

from mmengine.dataset import BaseDataset

from kdtoolbox.datasets.annotations import AnnotationError, annotation_faults

# Others read, and need, other keys.
_PARSERS = ('CocoDataset.parse_data_info', 'CocoPanopticDataset.parse_data_info')


@contextmanager
def checked_annotations() -> Iterator[None]:
    """Refuse, within the context, COCO annotations that mmdet would misread.

    Of two images, annotations or categories of one id mmdet keeps one, so that a look
    at the built data set comes too late, and to read a large file again takes long.

    Raises:
        AnnotationError: Where a data set is built from such a file.
    """
    plain = BaseDataset.__init__
    met = []

    @wraps(plain)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        parser = getattr(type(self), 'parse_data_info', None)
        if getattr(parser, '__qualname__', None) in _PARSERS:
            self.COCOAPI = partial(_read, type(self).COCOAPI, self)
            met.append(self)
        plain(self, *args, **kwargs)

    BaseDataset.__init__ = init
    try:
        yield
    finally:
        BaseDataset.__init__ = plain
        for dataset in met:
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
