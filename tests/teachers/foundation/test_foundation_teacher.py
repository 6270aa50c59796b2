from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from kdtoolbox.teachers import FoundationTeacher, build_teacher

CONV = dict(
    type='FoundationTeacher',
    model='torch.nn.Conv2d',
    arguments=dict(in_channels=3, out_channels=8, kernel_size=16, stride=16),
    mean=[10.0, 20.0, 30.0],
    std=[1.0, 2.0, 4.0],
    allow_random=True,
)
DINO = dict(
    type='FoundationTeacher',
    model='transformers::dinov2',
    arguments=dict(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, patch_size=16
    ),
    layers=[0, 1],
    allow_random=True,
)


def test_a_detector_learns_from_maps_of_its_own_images(toy: SimpleNamespace) -> None:
    distiller = toy.build_distiller(
        toy.gfl(),
        teacher=CONV,
        recorders=dict(student=dict(fpn='neck.fpn_convs[1]'), teacher=dict(fpn='maps')),
    )
    data = toy.det_data()
    [teacher] = distiller.teachers.values()
    assert isinstance(teacher, FoundationTeacher)
    batch = distiller.data_preprocessor(data, training=True)
    records = teacher.observe({'maps': 'maps'}, batch['inputs'], batch['data_samples'])
    # The images of the data are BGR, the model expects RGB.
    pixels = data['inputs'][0].flip(0).float()
    mean, std = (torch.tensor(CONV[key]).view(3, 1, 1) for key in ('mean', 'std'))
    expected = teacher.model.backbone(((pixels - mean) / std)[None])
    torch.testing.assert_close(records['maps'][0][:1], expected, rtol=1e-4, atol=1e-3)
    losses = distiller(**batch, mode='loss')
    assert torch.isfinite(losses['loss_cwd'])
    losses['loss_cwd'].backward()
    assert distiller.student.neck.fpn_convs[1].conv.weight.grad.abs().sum() > 0
    assert not any('maps' in key for key in distiller.state_dict())


@pytest.mark.e2e
@pytest.mark.parametrize(
    ('options', 'size'),
    [
        ({}, (3, 5)),
        (dict(dtype='bfloat16'), (3, 5)),
        (dict(view=dict(scale=2.0)), (6, 10)),
        (dict(channels_last=True), (3, 5)),
    ],
)
def test_it_takes_the_options_of_all_teachers(
    transformers: ModuleType, options: dict[str, Any], size: tuple[int, int]
) -> None:
    teacher = build_teacher({**DINO, **options})
    found = teacher.observe({'maps': 'maps'}, torch.randn(2, 3, 48, 80), [])['maps']
    assert [tuple(level.shape) for level in found] == [(2, 8, *size)] * 2
    assert {level.dtype for level in found} == {torch.float32}
    assert not any(p.requires_grad for p in teacher.model.parameters())
