"""A run of several processes starts on GPUs; one process needs only one of them."""

from pathlib import Path

import pytest
import torch
from launching import ROOT, launch

from kdtoolbox.datasets import PRESETS, make_digit_scenes

pytestmark = [pytest.mark.gpu, pytest.mark.e2e]
BACKENDS = dict(cuda='nccl', cpu='gloo')


@pytest.mark.parametrize('flags', [[], ['--amp']], ids=['float32', 'amp'])
def test_a_process_trains_over_nccl(
    device: str, flags: list[str], tmp_path: Path, seg_mend: str
) -> None:
    data, work_dir = tmp_path / 'digits', tmp_path / 'run'
    make_digit_scenes(data, PRESETS['seg'], train=8, val=4, workers=1)
    config = tmp_path / 'recipe.py'
    config.write_text(
        f"_base_ = '{ROOT}/configs/digits/seg_distilled.py'\n"
        "custom_imports = dict(imports=['telling'])\n"
        "custom_hooks = [dict(type='TellingHook')]\n"
        'val_cfg = val_dataloader = val_evaluator = None\n'
        'train_cfg = dict(max_iters=4)\n'
        'train_dataloader = dict(\n'
        '    batch_size=2, num_workers=0, persistent_workers=False,\n'
        f"    dataset=dict(data_root='{data}/'),\n)\n" + seg_mend
    )
    command = ['bash', 'tools/dist_train.sh', config, '1', '--work-dir', work_dir]
    code, output = launch(*command, *flags, PYTHONPATH=str(Path(__file__).parent))
    assert code == 0, output[-4000:]
    assert f'MMDistributedDataParallel on {device} over {BACKENDS[device]}' in output
    weights = torch.load(work_dir / 'iter_4.pth', weights_only=False)['state_dict']
    assert all(weight.isfinite().all() for weight in weights.values())
