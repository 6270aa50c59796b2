"""Tell whether a distillation can help, on a few batches of its own data.

Measures teacher, student, losses and gradients, and lists what looks wrong and the line
that mends it. Trains nothing that is kept, and writes no file but that of --json.
"""

import argparse
import json
import logging
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from rich.console import Console

from kdtoolbox.checkpoints.student_export import select_student
from kdtoolbox.checkpoints.weights import load_checkpoint, load_strictly
from kdtoolbox.checkpoints.writing import write_whole
from kdtoolbox.datasets.head_labels import check_ignored, ignored_by_all
from kdtoolbox.datasets.inspection import check_dataset, leaves
from kdtoolbox.datasets.label_maps import set_ignored_by_heads
from kdtoolbox.diagnosis.examination import Case, examine
from kdtoolbox.diagnosis.finding import Finding
from kdtoolbox.diagnosis.findings import find
from kdtoolbox.diagnosis.measurements import Measurements
from kdtoolbox.diagnosis.report import print_report
from kdtoolbox.diagnosis.some_batches import some_train_batches, some_val_batches
from kdtoolbox.diagnosis.suggestions import (
    DEFAULT_SHARE,
    config_lines,
    suggest_weights,
)
from kdtoolbox.distillers import Distiller
from kdtoolbox.inspection.recipe_checks import check_recipe
from kdtoolbox.runs.brief_errors import all_faults, brief_errors
from kdtoolbox.runs.command_line import run_config, run_parser
from kdtoolbox.runs.distillation import build_distiller
from kdtoolbox.runs.preflight import check_heads
from kdtoolbox.runs.rehearsal import rehearse


def parse_args() -> argparse.Namespace:
    parser = run_parser(__doc__)
    parser.add_argument(
        '--checkpoint', help='weights of a trained student or of a distillation'
    )
    parser.add_argument(
        '--batches',
        type=int,
        default=4,
        help='training batches to measure, and as many validation images as they hold',
    )
    parser.add_argument(
        '--suggest-weights',
        nargs='?',
        const=DEFAULT_SHARE,
        type=float,
        metavar='SHARE',
        help='print the loss_weight that gives each loss this share of the gradient',
    )
    parser.add_argument('--json', metavar='FILE', help='write all numbers to this file')
    args = parser.parse_args()
    if args.launcher != 'none' or args.work_dir:
        parser.error('the doctor runs in one process and has no work dir')
    if args.batches < 1:
        parser.error(f'--batches: expected 1 or more, got {args.batches}')
    if args.suggest_weights is not None and not 0 < args.suggest_weights < 1:
        parser.error('--suggest-weights: expected a share between 0 and 1, as in 0.3')
    if args.json and Path(args.json).exists():
        parser.error(f'--json: {args.json} exists; name another file or remove it')
    if args.json and not Path(args.json).parent.is_dir():
        parser.error(f'--json: there is no folder {Path(args.json).parent}; make it')
    return args


def build(cfg: Config, checkpoint: str | None) -> Distiller:
    """Build the distiller as a training does, with the weights of a checkpoint."""
    model = build_distiller(cfg)
    # As mmengine does for a single process.
    revert_sync_batchnorm(model)
    model.init_weights()
    if checkpoint is None and cfg.get('load_from'):
        model.load_state_dict(
            load_checkpoint(cfg.load_from)['state_dict'], strict=False
        )
    if checkpoint is not None:
        load(model, checkpoint)
    return model.to(get_device())


def load(model: Distiller, checkpoint: str) -> None:
    """Load a student or a whole distillation."""
    state = load_checkpoint(checkpoint)['state_dict']
    load_strictly(model.student, select_student(state), repr(checkpoint))
    # Connectors of a distillation count where the recipe still has them.
    own = model.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    if fitting:
        model.load_state_dict(fitting, strict=False)


def case_of(cfg: Config, model: Distiller, batches: int) -> Case:
    """Return the models and data of a config, ready to be examined."""
    set_ignored_by_heads(ignored_by_all(model))
    seed = (cfg.get('randomness') or {}).get('seed') or 0
    set_random_seed(seed)
    train, dataset = some_train_batches(cfg.train_dataloader, batches, seed)
    found = [*leaves(dataset, 'train_dataloader.dataset')]
    for where, leaf in found:
        check_dataset(leaf, where)
        check_heads(model, leaf, where)
        check_ignored(model, leaf, where)
    rehearse(model)
    images = sum(len(batch['inputs']) for batch in train)
    val, metainfo = some_val_batches(cfg.get('val_dataloader'), images, seed)
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    return Case(
        model,
        cfg.model.teacher.config,
        train,
        val,
        cfg.get('val_evaluator'),
        metainfo,
        found[0][1] if found else None,
        hook.get('save_best'),
    )


def check_teacher(cfg: Config) -> None:
    """Raise ValueError for teachers that the doctor cannot evaluate."""
    teacher = cfg.model.get('teacher') or {}
    # A model without a student is refused when it is built.
    if 'student' in cfg.model and 'config' not in teacher:
        raise ValueError(
            'model.teacher: the doctor evaluates one teacher of mmdet or mmseg, '
            'teacher=dict(config=..., checkpoint=...); of other distillations '
            'tools/inspect_config.py shows the wires'
        )


def prepare(args: argparse.Namespace) -> Case:
    """Return a case that has passed the checks of a training."""
    cfg = run_config(args)
    with all_faults(cfg):
        check_recipe(cfg)
        init_default_scope(cfg.get('default_scope') or 'mmengine')
        set_random_seed((cfg.get('randomness') or {}).get('seed') or 0)
        check_teacher(cfg)
        model = build(cfg, args.checkpoint)
    return case_of(cfg, model, args.batches)


def write(path: str, found: Measurements, findings: list[Finding], **more: Any) -> None:
    content = dict(
        findings=[asdict(finding) for finding in findings], **asdict(found), **more
    )
    with write_whole(path) as file:
        file.write((json.dumps(content, indent=1) + '\n').encode())


def main() -> int:
    args = parse_args()
    # Deprecations inside of the libraries tell a user nothing.
    warnings.filterwarnings('ignore', module='mmcv|mmdet|mmengine|mmseg|torch')
    MMLogger.get_instance('doctor', log_level=logging.WARNING)
    with brief_errors(args.traceback):
        found = examine(prepare(args))
    found.trained = args.checkpoint is not None
    findings = find(found)
    console = Console()
    print_report(found, findings, console)
    weights = suggest_weights(found.losses, args.suggest_weights or DEFAULT_SHARE)
    if args.suggest_weights is not None and weights:
        share = f'{args.suggest_weights:.0%} of the gradient'
        lines = [f'Weights for {share}, each loss against the task alone:']
        for line in lines + config_lines(weights):
            console.print(line, markup=False, soft_wrap=True, highlight=False)
    if args.json:
        write(args.json, found, findings, suggested_weights=weights)
    return int(any(finding.severity == 'serious' for finding in findings))


if __name__ == '__main__':
    sys.exit(main())
