from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from kdtoolbox.diagnosis.class_ious import ClassIoUs
from kdtoolbox.diagnosis.scoring import best_value, main_metric, score


class _Counting(BaseMetric):
    """Count images; like CocoMetric it has ids and values of classes."""

    def __init__(self, output_dir: str | None = None) -> None:
        super().__init__()
        self.img_ids: Any = None
        self.classwise = False
        self.output_dir = output_dir

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += data_samples

    def compute_metrics(self, results: list) -> dict:
        print('loading annotations into memory...')
        of_class = {'cat_precision': 0.25, 'dog_precision': float('nan')}
        return dict(
            ids=len(self.img_ids),
            mAP=torch.tensor(0.5).numpy()[()],
            moved=float('users' not in str(self.output_dir)),
            **(of_class if self.classwise else {}),
        )


@pytest.fixture(scope='module', autouse=True)
def _metric() -> Any:
    METRICS.register_module(name='Counting', module=_Counting)
    yield
    del METRICS.module_dict['Counting']


def test_only_seen_images_count_and_nothing_is_printed(
    toy: SimpleNamespace, capsys: pytest.CaptureFixture
) -> None:
    model = toy.build(toy.gfl())
    evaluator = dict(type='Counting', output_dir='users')
    batches = [toy.det_data(), toy.det_data(seed=5)]
    found = score(model, batches, evaluator, dict(classes=('cat', 'dog')))
    assert found.metrics == {'ids': 4, 'mAP': 0.5, 'moved': 1}
    assert found.classes == {'cat': 0.25}
    assert capsys.readouterr().out == ''
    # The predictions are on copies.
    assert 'pred_instances' not in batches[0]['data_samples'][0]


def test_classes_of_a_segmentor_come_from_its_maps(toy: SimpleNamespace) -> None:
    model = toy.build(toy.segmentor())
    data = toy.seg_data(((64, 64), (64, 64)))
    found = score(model, [data], dict(type='mmseg.IoUMetric'), dict(classes=[*'abcd']))
    assert found.metrics['mIoU'] == pytest.approx(
        sum(found.classes.values()) / 4, abs=0.01
    )


def test_ious_in_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randint(4, (2, 3, 40), generator=generator)
    labels = torch.where(maps[1] == 3, 255, maps[1])
    ious = ClassIoUs(['a', 'b', 'c', 'never'])
    for predicted, label in zip(maps[0], labels, strict=True):
        ious.add_maps(predicted, label)
    for index, name in enumerate('abc'):
        pairs = [
            (p == index, t == index)
            for p, t in zip(maps[0].flatten(), labels.flatten(), strict=True)
            if t != 255
        ]
        expected = sum(p and t for p, t in pairs) / sum(p or t for p, t in pairs)
        assert ious.values()[name] == pytest.approx(float(100 * expected))


def test_a_class_that_never_occurs_has_no_iou() -> None:
    ious = ClassIoUs(['a', 'b'])
    ious.add_maps(torch.zeros(4), torch.zeros(4))
    assert ious.values() == dict(a=100.0)


def test_main_metric() -> None:
    assert main_metric(['aAcc', 'mIoU']) == 'mIoU'
    assert main_metric(['aAcc', 'mIoU'], wanted='aAcc') == 'aAcc'
    assert main_metric(['aAcc', 'mIoU'], wanted='auto') == 'mIoU'
    assert main_metric(['recall']) == 'recall'
    assert main_metric([]) is None


def test_best_value() -> None:
    assert best_value('coco/bbox_mAP', [0.9]) == 1
    assert best_value('mIoU', [0.3]) == 100
    assert best_value('other', [31.0]) == 100
