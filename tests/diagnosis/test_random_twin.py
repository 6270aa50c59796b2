from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdtoolbox.diagnosis.random_twin import (
    batch_statistics,
    compare_losses,
    random_twin,
    task_loss,
)

# Models are trained and evaluated.
pytestmark = pytest.mark.e2e

CPU = torch.device('cpu')


def test_the_twin_is_random_but_the_same_each_time(toy: SimpleNamespace) -> None:
    config = toy.gfl()
    pretrained = dict(type='Pretrained', checkpoint='https://nowhere.invalid/a.pth')
    config['model']['backbone']['init_cfg'] = pretrained
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first, second = (random_twin(config, CPU) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [next(x.parameters()) for x in (first, second)]
    assert torch.equal(*weights)
    assert weights[0].std() > 0
    assert not first.training
    assert not weights[0].requires_grad


def test_statistics_are_those_of_the_batch(toy: SimpleNamespace) -> None:
    twin = random_twin(toy.segmentor(), CPU)
    with batch_statistics(twin):
        task_loss(twin, toy.seg_data())
    assert not any(module.training for module in twin.modules())
    seen: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, output: torch.Tensor) -> None:
        # The next layer overwrites it.
        seen.append(output.clone())

    twin.backbone.stem[1].register_forward_hook(keep)
    task_loss(twin, toy.seg_data())
    [output] = seen
    assert output.mean((0, 2, 3)).abs().max() < 1e-3


def test_statistics_of_sync_bn_on_a_cpu(toy: SimpleNamespace) -> None:
    config = toy.segmentor()
    for part in ('backbone', 'decode_head', 'auxiliary_head'):
        config['model'][part]['norm_cfg'] = dict(type='SyncBN')
    twin = random_twin(config, CPU)
    with batch_statistics(twin):
        assert task_loss(twin, toy.seg_data()) > 0


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_a_trained_teacher_is_below_its_twin(task: str, toy: SimpleNamespace) -> None:
    config, data = (
        (toy.gfl(), toy.det_data())
        if task == 'det'
        else (toy.segmentor(norm_eval=True), toy.seg_data())
    )
    for sample in data['data_samples'] if task == 'seg' else ():
        # Random labels cannot be learnt.
        sample.gt_sem_seg.data[:] = 2
    torch.manual_seed(0)
    teacher = toy.build(config).train()
    teacher.init_weights()
    optimizer = torch.optim.Adam(teacher.parameters(), 2e-3)
    for _ in range(15):
        batch = teacher.data_preprocessor(data, training=True)
        loss, _ = teacher.parse_losses(teacher(**batch, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with batch_statistics(teacher.eval()):
        task_loss(teacher, data)
    found = compare_losses(teacher, random_twin(config, CPU), [data])
    assert not found.fault
    assert found.teacher < 0.9 * found.random
    assert not found.at_chance(0.9)

    twins: list[Any] = [random_twin(config, CPU) for _ in range(2)]
    with batch_statistics(twins[0]):
        task_loss(twins[0], data)
    assert compare_losses(*twins, [data]).at_chance(0.9)


def test_the_level_of_chance_of_a_deep_network_is_finite_and_low(
    toy: SimpleNamespace,
) -> None:
    twin = random_twin(toy.gfl(base=16, norm_eval=False), CPU)
    teacher = random_twin(toy.gfl(base=16), CPU)
    batches = [toy.det_data(seed=seed) for seed in (0, 50)]
    found = compare_losses(teacher, twin, batches)
    # An untrained detector begins with about 1 to 2 of each of its losses.
    assert 0.5 < found.random < 6


def test_a_teacher_for_other_labels_is_reported(toy: SimpleNamespace) -> None:
    data = toy.seg_data()
    data['data_samples'][0].gt_sem_seg.data += 200
    teacher, twin = (random_twin(toy.segmentor(), CPU) for _ in range(2))
    found = compare_losses(teacher, twin, [data])
    assert found.teacher is None
    assert found.fault
