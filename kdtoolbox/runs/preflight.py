"""Check before a training starts what is cheap to know of its data."""

from functools import partial

from mmengine.dataset import BaseDataset
from mmengine.dist import is_main_process
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from kdtoolbox.datasets.annotations import explain_failure
from kdtoolbox.datasets.class_names import check_class_names
from kdtoolbox.datasets.head_labels import check_ignored, class_heads, ignored_by_all
from kdtoolbox.datasets.inspection import check_dataset, leaves
from kdtoolbox.datasets.reading import heed_heads, read_samples
from kdtoolbox.datasets.start_checks import checked_annotations


def check_data(runner: Runner) -> None:
    """Refuse data that would fail, or teach something else, in the middle of a run.

    Builds the data sets for training and validation as the runner would next, looks
    through their wrappers, and opens no image, so that the start stays cheap: what
    only the files tell, such as a photo's orientation, is up to
    ``tools/check_dataset.py``. Data sets of unknown kind pass.

    Args:
        runner: A runner that has not started.

    Raises:
        ValueError: If an annotation file is damaged or has an id twice, a data set is
            empty, files are missing, boxes are no boxes, annotations lack what the
            pipeline loads, or the classes or ignored labels of data, annotation and
            heads differ. It names the place and the line that mends it.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    # Before the loop is asked for, which may start its workers.
    heed_heads(ignored_by_all(model))
    for split in ('train', 'val'):
        root = f'{split}_dataloader.dataset'
        try:
            with checked_annotations():
                loop = getattr(runner, f'{split}_loop')
        except Exception as error:
            loader = runner.cfg.get(f'{split}_dataloader') or {}
            explain_failure(loader.get('dataset'), root, error)
            raise
        if loop is None:
            continue
        dataset = loop.dataloader.dataset
        if split == 'val':
            # Training samples come through `SeededSampler`, which does the same.
            dataset.__getitems__ = partial(read_samples, dataset)
        # The others would repeat it; an error of one process ends the run.
        if is_main_process():
            for where, leaf in leaves(dataset, root):
                check_dataset(leaf, where)
                check_heads(model, leaf, where)
                check_class_names(model, leaf, where)
                if split == 'train':
                    check_ignored(model, leaf, where)


def check_heads(model: nn.Module, dataset: BaseDataset, where: str) -> None:
    """Refuse a model whose heads know another number of classes than the data.

    Args:
        model: The model that trains; of a distiller the student's heads are compared.
        dataset: The data set, without wrappers.
        where: Its place in the config.

    Raises:
        ValueError: If the numbers differ.
    """
    classes = dataset.metainfo.get('classes')
    if classes is None or 'thing_classes' in dataset.metainfo:
        return
    for path, head in class_heads(model):
        count = getattr(head, 'num_classes', None)
        if count in (None, len(classes)):
            continue
        raise ValueError(
            f'{where} has {len(classes)} classes and `model.{path}` {count}; set '
            f'`model.{path}.num_classes={len(classes)}`, or list the {count} classes '
            f'as `{where}.metainfo.classes`'
        )
