from pathlib import Path
from typing import Any

import pytest
import torch

from kdtoolbox.teachers.foundation import FoundationModel, build_foundation

IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
HUBCONF = """
from torch import nn

def patches(pretrained=False, dim=8):
    model = nn.Conv2d(3, dim, 16, 16)
    if pretrained:
        nn.init.ones_(model.weight)
    return model

def weights_only(weights):
    return None
"""


@pytest.fixture(autouse=True)
def _own_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def build(name: str, **options: Any) -> FoundationModel:
    options = dict(IMAGENET, allow_random=True, **options)
    return build_foundation(f'own_backbones.{name}', **options).eval()


@pytest.mark.parametrize('prefix', [0, 1])
def test_tokens_of_an_own_class_become_a_map(prefix: int) -> None:
    model = build('Patches', arguments=dict(dim=6, prefix=prefix), patch_size=16)
    images = torch.randn(2, 3, 32, 48)
    assert torch.equal(model(images)[0], model.backbone.embed(images))
    assert [tuple(level.shape) for level in model(images[..., :41])] == [(2, 6, 2, 3)]


@pytest.mark.parametrize('kind', ['list', 'tuple', 'dict', 'hidden states'])
def test_layers_choose_among_the_outputs(kind: str) -> None:
    model = build('Outputs', arguments=dict(kind=kind), layers=[-1, 0])
    images = torch.randn(2, 3, 32, 48)
    stem = model.backbone.stem(images)
    last, first = model(images)
    assert torch.equal(first, stem)
    assert torch.equal(last, model.backbone.stage(stem))


def test_the_last_output_is_the_default() -> None:
    [only] = build('Outputs')(torch.zeros(1, 3, 32, 48))
    assert only.shape == (1, 6, 4, 6)


def test_a_grid_with_its_channels_last_is_turned() -> None:
    model = build('Outputs', arguments=dict(kind='swin'))
    images = torch.randn(1, 3, 32, 48)
    expected = model.backbone.stage(model.backbone.stem(images))
    assert torch.equal(model(images)[0], expected)


def test_the_interface_of_dino_gives_its_layers() -> None:
    model = build('Dino', layers=[-1, 0])
    images = torch.randn(1, 3, 28, 42)
    first = model.backbone.blocks[0](model.backbone.embed(images))
    end = model.backbone.blocks[2](model.backbone.blocks[1](first))
    found_end, found_first = model(images)
    assert torch.equal(found_first, first)
    tokens = end.flatten(2).transpose(1, 2)
    normed = model.backbone.norm(tokens).transpose(1, 2).reshape(1, 8, 2, 3)
    torch.testing.assert_close(found_end, normed)
    assert model(torch.zeros(1, 3, 30, 40))[0].shape == (1, 8, 2, 3)


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r'teacher.layers: .* no layers \[3\]; it has'):
        build('Dino', layers=[0, 3])
    with pytest.raises(ValueError, match=r'teacher.layers: .* no layers \[-3\]'):
        build('Outputs', layers=[-3])(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        ('own_backbones.Missing', "cannot import 'own_backbones.Missing'"),
        ('no_package.Model', 'with the folder of the package on PYTHONPATH'),
        ('Model', 'write timm::NAME'),
        ('own_backbones.NoModule', 'expected an nn.Module, got NoModule'),
        ('torchhub::a:b', 'expected timm::NAME, .* got '),
        ('hub::patches', "expected 'hub::owner/repository:entry'"),
    ],
)
def test_a_model_that_cannot_be_found_is_refused(model: str, message: str) -> None:
    with pytest.raises(ValueError, match=f'model.teacher.model: .*{message}'):
        build_foundation(model, allow_random=True)


def test_an_unknown_argument_names_its_place() -> None:
    with pytest.raises(TypeError, match='teacher.arguments: .*width'):
        build('Patches', arguments=dict(width=3))


@pytest.mark.parametrize('pretrained', [False, True])
def test_a_folder_with_a_hubconf_is_a_hub(tmp_path: Path, pretrained: bool) -> None:
    (tmp_path / 'hubconf.py').write_text(HUBCONF)
    model = build_foundation(
        f'hub::{tmp_path}:patches',
        arguments=dict(dim=5),
        pretrained=pretrained,
        allow_random=not pretrained,
        **IMAGENET,
    )
    [level] = model(torch.zeros(1, 3, 32, 48))
    assert level.shape == (1, 5, 2, 3)
    assert bool((model.backbone.weight == 1).all()) == pretrained
    with pytest.raises(TypeError, match="teacher.arguments: .*'pretrained'"):
        build_foundation(f'hub::{tmp_path}:weights_only', allow_random=True)


@pytest.mark.parametrize('content', [HUBCONF, None])
def test_an_entry_that_is_not_there_says_what_to_write(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / 'hubconf.py').write_text(content)
    message = r"teacher\.model: torch\.hub cannot load 'patch' of .* write hub::owner"
    with pytest.raises(ValueError, match=message):
        build_foundation(f'hub::{tmp_path}:patch', allow_random=True)
