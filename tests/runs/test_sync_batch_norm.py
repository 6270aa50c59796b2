from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmcv.ops import SyncBatchNorm
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdtoolbox.runs.sync_batch_norm import use_plain_batch_norm

KINDS = (nn.SyncBatchNorm, SyncBatchNorm)


def synchronised(config: dict) -> dict:
    """Return the toy segmentor's config with SyncBN, as in recipes of mmseg."""
    norm = dict(type='SyncBN', requires_grad=True)
    for part in ('backbone', 'decode_head', 'auxiliary_head'):
        config['model'][part] |= dict(norm_cfg=norm)
    return config


def norms(model: nn.Module) -> list[type]:
    return [type(x) for x in model.modules() if isinstance(x, (_BatchNorm, *KINDS))]


def test_each_part_that_trains_gets_plain_norms(toy: SimpleNamespace) -> None:
    config = toy.distiller(
        synchronised(toy.segmentor()),
        connectors=dict(
            aligned=dict(
                type='ConvConnector', input='student.fpn', in_channels=64,
                out_channels=64, norm_cfg=dict(type='SyncBN'),
            )
        ),
    )  # fmt: skip
    config['losses']['loss_cwd']['student'] = 'aligned'
    model = MODELS.build(config)
    before = dict(model.named_parameters()) | dict(model.named_buffers())
    names = list(model.state_dict())
    found = norms(model)
    assert all(issubclass(kind, KINDS) for kind in found)
    assert norms(model.connectors)
    assert use_plain_batch_norm(model) == len(found)
    assert not any(issubclass(kind, KINDS) for kind in norms(model))
    assert len(norms(model)) == len(found)
    assert list(model.state_dict()) == names
    after = dict(model.named_parameters()) | dict(model.named_buffers())
    assert all(after[name] is tensor for name, tensor in before.items())
    assert use_plain_batch_norm(model) == 0


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    store = f'file://{tmp_path}/store'
    torch.distributed.init_process_group('gloo', store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures('group')
@pytest.mark.parametrize('kind', KINDS)
def test_a_sync_layer_in_eval_mode_equals_a_plain_norm(kind: type) -> None:
    """This is why a teacher may keep its layers."""
    layer, plain = kind(3).eval(), nn.BatchNorm2d(3).eval()
    state = {key: torch.rand(3) for key in ('weight', 'bias', 'running_mean')}
    for model in (layer, plain):
        model.load_state_dict(state, strict=False)
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(layer(images), plain(images))
    with pytest.raises((ValueError, RuntimeError)):
        layer.train()(images)
