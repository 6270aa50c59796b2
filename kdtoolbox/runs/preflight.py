"""Check the data of a training before it starts, without opening images."""

from functools import partial

from mmengine.dataset import BaseDataset
from mmengine.dist import is_main_process
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from kdtoolbox.datasets.annotations import explain_failure
from kdtoolbox.datasets.class_names import check_class_names
from kdtoolbox.datasets.head_labels import check_ignored, class_heads, ignored_by_all
from kdtoolbox.datasets.image_folder import ImageFolder
from kdtoolbox.datasets.inspection import check_dataset, leaves
from kdtoolbox.datasets.label_maps import set_ignored_by_heads
from kdtoolbox.datasets.reading import read_samples
from kdtoolbox.datasets.start_checks import checked_annotations
from kdtoolbox.distillers import Distiller, Pretrainer


def check_data(runner: Runner) -> None:
    """Check the data sets of a run, so that it does not fail or train wrongly later.

    Builds the data sets for training and validation, as the runner would do next, and
    checks those inside wrappers too. Opens no image, to keep the start fast;
    ``tools/check_dataset.py`` checks the image files. Unknown kinds of data sets are
    not checked.

    Args:
        runner: A runner that has not started.

    Raises:
        ValueError: If an annotation file is damaged or contains an id twice; if a data
            set is empty or its files are missing; if boxes are invalid; if a whole
            student gets images without labels; if annotations lack fields that the
            pipeline loads; if classes or ignored labels differ between data,
            annotations and heads. The message contains the config path and the line
            that mends it.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    # Before `train_loop` is built, which may start the workers of its loader.
    set_ignored_by_heads(ignored_by_all(model))
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
            # For training samples, `SeededSampler` does the same.
            dataset.__getitems__ = partial(read_samples, dataset)
        # One process is enough: its error ends the run.
        if is_main_process():
            for where, leaf in leaves(dataset, root):
                check_dataset(leaf, where)
                check_heads(model, leaf, where)
                check_class_names(model, leaf, where)
                if split == 'train':
                    check_labelled(model, leaf, where)
                    check_ignored(model, leaf, where)


def check_labelled(model: nn.Module, dataset: BaseDataset, where: str) -> None:
    """Raise ValueError if a whole student is to learn from images without labels."""
    whole = isinstance(model, Distiller) and not isinstance(model, Pretrainer)
    if whole and isinstance(dataset, ImageFolder):
        raise ValueError(
            f'{where}: an ImageFolder has no labels, which the losses of the student '
            "need; set `model.type='kdtoolbox.Pretrainer'` to train its backbone and "
            'neck without labels, or use a data set with annotations'
        )


def check_heads(model: nn.Module, dataset: BaseDataset, where: str) -> None:
    """Check that heads and data set have the same number of classes.

    Args:
        model: The model to train. For a distiller, the heads of the student count.
        dataset: The data set, without wrappers.
        where: Config path of the data set.

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
