import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.model import ImgDataPreprocessor
from torch import nn

from kdtoolbox.recorders import record
from kdtoolbox.teachers.foundation import FoundationModel, build_foundation
from kdtoolbox.teachers.normalization import Renormalization

CONV = 'torch.nn.Conv2d'
SHAPE = dict(in_channels=3, out_channels=4, kernel_size=8, stride=8)
NORM = dict(mean=[10.0, 20.0, 30.0], std=[1.0, 2.0, 4.0])


def build(**options: Any) -> FoundationModel:
    options = {**NORM, 'arguments': SHAPE, **options}
    return build_foundation(CONV, **options)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({}, 'model.teacher has no weights, and random ones teach nothing'),
        (dict(checkpoint='a.pth', pretrained=True), 'both give it weights'),
    ],
)
def test_exactly_one_source_of_weights_is_needed(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(layers=2), r'layers: expected a list of whole .* got 2; write layers='),
        (dict(layers=['2']), r"layers: .* got \['2'\]; write"),
        (dict(layers=[]), r'layers: .* got \[\]; write'),
        (dict(patch_size=0), r'patch_size: .* above 0, got 0; write patch_size=14'),
        (dict(patch_size=(14, 14)), r'patch_size: .* got \(14, 14\)'),
        (dict(mean='imagenet'), r"mean: expected 3 numbers .* got 'imagenet'; write"),
        (dict(std=[1.0, 2.0]), r'std: expected 3 numbers .* got \[1.0, 2.0\]; write'),
        (dict(std=[0, 1, 1]), r'std: expected numbers above 0, got \[0, 1, 1\]'),
        (
            dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
            r'std: expected pixel units, .*by 255: std=\[58.395, 57.12, 57.375\]',
        ),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf'^model\.teacher\.{message}'):
        build(allow_random=True, **options)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_checkpoint_is_loaded_strictly(tmp_path: Path, suffix: str) -> None:
    from safetensors.torch import save_file

    path = tmp_path / f'weights{suffix}'
    save = save_file if suffix == '.safetensors' else torch.save
    state = nn.Conv2d(3, 4, 8, 8).state_dict()
    save(state, str(path))
    model = build(checkpoint=str(path))
    assert torch.equal(model.backbone.weight, state['weight'])
    save({'weight': state['weight']}, str(path))
    with pytest.raises(ValueError, match='does not fit Conv2d') as caught:
        build(checkpoint=str(path))
    assert 'bias' in str(caught.value)


@pytest.mark.parametrize('prefix', ['backbone.', 'teacher.backbone.', 'dinov2.'])
def test_of_a_larger_model_only_the_backbone_is_loaded(
    tmp_path: Path, prefix: str
) -> None:
    path = str(tmp_path / 'weights.pth')
    state = nn.Conv2d(3, 4, 8, 8).state_dict()
    around = {'teacher.head.weight': torch.ones(2), 'classifier.bias': torch.ones(2)}
    torch.save({**{prefix + key: state[key] for key in state}, **around}, path)
    model = build(checkpoint=path)
    for key, tensor in state.items():
        assert torch.equal(model.backbone.state_dict()[key], tensor)


def test_of_two_copies_none_is_chosen_by_chance(tmp_path: Path) -> None:
    path = str(tmp_path / 'weights.pth')
    state = nn.Conv2d(3, 4, 8, 8).state_dict()
    copies = [
        f'{name}.backbone.{key}' for name in ('student', 'teacher') for key in state
    ]
    torch.save(dict.fromkeys(copies, torch.ones(1)), path)
    with pytest.raises(ValueError, match='does not fit Conv2d'):
        build(checkpoint=path)


def test_images_that_the_backbone_cannot_take_are_named() -> None:
    model = build_foundation(
        'torch.nn.Linear',
        arguments=dict(in_features=9, out_features=2),
        allow_random=True,
        **NORM,
    )
    with pytest.raises(ValueError, match=r'^model\.teacher: Linear fails on .*16 x 24'):
        model(torch.zeros(1, 3, 16, 24))


def test_pickles_that_could_run_code_are_refused(tmp_path: Path) -> None:
    path = tmp_path / 'whole.pth'
    torch.save(nn.Conv2d(3, 4, 8, 8), path)
    with pytest.raises(ValueError, match='unpickling it could run code'):
        build(checkpoint=str(path))


def test_images_come_in_the_normalisation_of_the_model() -> None:
    student = ImgDataPreprocessor(mean=[1, 2, 3], std=[5, 6, 7], bgr_to_rgb=False)
    pixels = torch.randint(0, 256, (1, 3, 8, 8)).float()
    teacher = build(allow_random=True).data_preprocessor
    seen = Renormalization(student, teacher)(
        (pixels - student.mean) / student.std, data_samples=[]
    )
    # The student gets BGR, the model RGB.
    expected = pixels.flip(1) - torch.tensor(NORM['mean']).view(3, 1, 1)
    expected /= torch.tensor(NORM['std']).view(3, 1, 1)
    torch.testing.assert_close(seen, expected)
    bgr = build(allow_random=True, bgr=True).data_preprocessor
    seen = Renormalization(student, bgr)((pixels - student.mean) / student.std, [])
    expected = pixels - torch.tensor(NORM['mean']).view(3, 1, 1)
    expected /= torch.tensor(NORM['std']).view(3, 1, 1)
    torch.testing.assert_close(seen, expected)


@pytest.mark.parametrize('given', [{}, dict(mean=[1.0, 2.0, 3.0])])
def test_an_unknown_normalisation_is_asked_for(given: dict) -> None:
    with pytest.raises(ValueError, match=r'unknown; set both .* mean=\[123.675'):
        build_foundation(CONV, arguments=SHAPE, allow_random=True, **given)


def test_the_log_names_the_licence(caplog: pytest.LogCaptureFixture) -> None:
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        build(allow_random=True)
    finally:
        logger.removeHandler(caplog.handler)
    [line] = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    assert f'{CONV}, licence of its published weights: your own' in line
    assert line.endswith('mean and std of its RGB images: 10, 20, 30, 1, 2, 4')


def test_all_maps_and_raw_modules_can_be_recorded() -> None:
    model = build(allow_random=True)
    images = torch.randn(2, 3, 16, 24)
    with record(model, dict(maps='maps', raw='backbone')) as records:
        returned = model(images)
    assert [tuple(level.shape) for level in records['maps']] == [(2, 4, 2, 3)]
    assert torch.equal(records['maps'][0], returned[0])
    assert torch.equal(records['raw'][0], model.backbone(images))


@pytest.mark.parametrize('library', ['timm', 'transformers'])
def test_a_missing_library_says_how_to_get_it(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__('sys').modules, library, None)
    with pytest.raises(ValueError, match=r'pip install kdtoolbox\[foundation\]'):
        build_foundation(f'{library}::any', pretrained=True)
