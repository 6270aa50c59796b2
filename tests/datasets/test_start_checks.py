"""A wrong annotation file raises an error of one line before a training starts."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from broken_data import (
    MALFORMED,
    REPEATED,
    build_dataset,
    edit_coco,
    write_coco,
)
from mmengine.dataset import BaseDataset
from mmengine.registry import DefaultScope
from torch import nn

from kdtoolbox.datasets.annotations import AnnotationError
from kdtoolbox.datasets.start_checks import checked_annotations
from kdtoolbox.runs.preflight import check_data


@pytest.fixture
def start() -> Callable[[dict], None]:
    """Return a function that runs the checks before a validation on a data set."""

    class Lazy(SimpleNamespace):
        @property
        def val_loop(self) -> Any:
            dataset = build_dataset(self.cfg['val_dataloader']['dataset'], 'mmdet')
            return SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset))

    def run(config: dict) -> None:
        cfg = dict(val_dataloader=dict(dataset=config))
        runner = Lazy(cfg=cfg, model=nn.Module(), train_loop=None)
        with DefaultScope.overwrite_default_scope('mmdet'):
            check_data(runner)

    return run


def line(start: Callable, config: dict) -> str:
    """Return the message of the error that the checks raise."""
    with pytest.raises(ValueError, match=r'^val_dataloader.dataset') as caught:
        start(config)
    return str(caught.value)


@pytest.mark.parametrize(('edit', 'expected'), REPEATED.values(), ids=REPEATED)
def test_ids_that_occur_twice_are_refused_at_the_start(
    edit: Callable, expected: str, tmp_path: Path, start: Callable
) -> None:
    config = write_coco(tmp_path / 'data')
    start(config)
    edit_coco(config, edit)
    message = line(start, config)
    assert f'{tmp_path}/data/ann.json: {expected}. Correct the file' in message
    assert 'tools/check_dataset.py CONFIG' in message


@pytest.mark.parametrize(('edit', 'expected'), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_annotation_is_reported_in_one_line_with_file_and_id_at_the_start(
    edit: Callable, expected: str, tmp_path: Path, start: Callable
) -> None:
    config = write_coco(tmp_path / 'data')
    edit_coco(config, edit)
    message = line(start, config)
    assert f'{tmp_path}/data/ann.json: {expected}' in message
    assert '\n' not in message


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('null', 'it holds null, not an object with `images`'),
        ('7', 'it holds 7, not an object'),
        ('[[1]]', r'it holds [[1]], not an object'),
        ('[' * 9999 + ']' * 9999, 'are nested too deep to be read'),
    ],
    ids=['null', 'number', 'list', 'deep'],
)
def test_a_json_file_without_an_annotation_is_named(
    text: str, expected: str, tmp_path: Path, start: Callable
) -> None:
    config = write_coco(tmp_path / 'data')
    (tmp_path / 'data' / 'ann.json').write_text(text)
    message = line(start, config)
    assert f'{tmp_path}/data/ann.json' in message
    assert expected in message


def test_ignored_entries_may_lack_the_fields_that_mmdet_does_not_read(
    tmp_path: Path, start: Callable
) -> None:
    config = write_coco(tmp_path / 'data')

    def edit(content: dict) -> None:
        content['annotations'].append(
            dict(id=9, image_id=0, category_id=1, ignore=1, bbox=None)
        )
        # No class has this name.
        content['categories'] += [dict(id=i, name='other') for i in (8, 9)]

    edit_coco(config, edit)
    start(config)


def test_the_config_path_inside_wrappers_is_named(
    tmp_path: Path, start: Callable
) -> None:
    parts = [write_coco(tmp_path / name) for name in ('one', 'two')]
    edit_coco(parts[1], REPEATED['image'][0])
    message = line(start, dict(type='ConcatDataset', datasets=parts))
    assert message.startswith(f'val_dataloader.dataset.datasets[1]: {tmp_path}/two/')


def test_a_data_set_with_lazy_init_is_checked(tmp_path: Path, start: Callable) -> None:
    config = write_coco(tmp_path / 'data')
    edit_coco(config, REPEATED['image'][0])
    with checked_annotations():
        dataset = build_dataset(config | dict(lazy_init=True), 'mmdet')
        with pytest.raises(AnnotationError, match='images id 0 twice'):
            dataset.full_init()


def test_the_check_removes_its_patches(tmp_path: Path) -> None:
    original_init = BaseDataset.__init__
    with checked_annotations():
        dataset = build_dataset(write_coco(tmp_path / 'data'), 'mmdet')
        # Some loops start their workers as soon as they are built.
        pickle.dumps(dataset)
    assert 'COCOAPI' not in vars(dataset)
    assert BaseDataset.__init__ is original_init
    with pytest.raises(RuntimeError, match='stop'), checked_annotations():
        raise RuntimeError('stop')
    assert BaseDataset.__init__ is original_init


def test_subclasses_with_a_parser_of_their_own_are_not_checked(tmp_path: Path) -> None:
    config = write_coco(tmp_path / 'data')
    build_dataset(config, 'mmdet')
    from mmdet.datasets import CocoDataset
    from mmdet.registry import DATASETS

    class OfNames(CocoDataset):
        def parse_data_info(self, raw_data_info: dict) -> dict:
            return dict(img_id=0, width=1, height=1, img_path='a', instances=[])

    edit_coco(config, MALFORMED['box [1, 2, 3]'][0])
    with DATASETS.switch_scope_and_registry('mmdet'), checked_annotations():
        options = {k: v for k, v in config.items() if k not in ('type', 'pipeline')}
        assert len(OfNames(**options)) == 2


def test_an_annotation_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(AnnotationError('a.json', ['x'])))  # noqa: S301
    assert (error.path, error.faults) == ('a.json', ['x'])
    assert json.dumps(str(error)).startswith('"a.json: x. Correct')
