"""Train a distillation, or a model alone with a plain config of mmdet or mmseg.

Without a config, --student, --teacher and --method make a recipe in the work dir.
"""

import argparse

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from kdtoolbox.distillers import Distiller
from kdtoolbox.distillers.finite import NonFiniteError
from kdtoolbox.hooks import (
    BestCheckpointHook,
    CacheReportHook,
    ExportStudentHook,
    FiniteWeightsHook,
    FittingResumeHook,
    FollowStudentHook,
    MissedValidationHook,
    ReadableCheckpointHook,
    SeedHook,
    WholeUpdatesHook,
)
from kdtoolbox.inspection.recipe_checks import check_recipe
from kdtoolbox.recorders import heed_hooks
from kdtoolbox.runs.brief_errors import all_faults, brief_errors
from kdtoolbox.runs.cached_views import seed_samples
from kdtoolbox.runs.command_line import run_config, run_parser
from kdtoolbox.runs.mixed_precision import use_mixed_precision
from kdtoolbox.runs.optimizer_groups import group_as_student
from kdtoolbox.runs.pair_arguments import (
    add_pair_arguments,
    check_pair,
    recipe_in_work_dir,
)
from kdtoolbox.runs.preflight import check_data
from kdtoolbox.runs.rehearsal import rehearse
from kdtoolbox.runs.sync_batch_norm import PortableRunner
from kdtoolbox.runs.work_dir import enter_work_dir
from kdtoolbox.runs.work_dir_lock import end_with_parent, lock_work_dir, unlock_work_dir


def parse_args() -> argparse.Namespace:
    parser = run_parser(__doc__, need_config=False)
    add_pair_arguments(parser)
    parser.add_argument(
        '--amp', action='store_true', help='train in automatic mixed precision'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate by the ratio of this run's batch to the recipe's",
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CKPT',
        help='resume from CKPT, or from the newest whole checkpoint of the work dir',
    )
    parser.add_argument(
        '--resume-partly',
        action='store_true',
        help='resume with a changed recipe: restore the parts that fit and start the '
        'others from the beginning',
    )
    args = parser.parse_args()
    check_pair(parser, args, args.config)
    return args


def configure(args: argparse.Namespace) -> Config:
    cfg = run_config(args)
    if args.amp:
        use_mixed_precision(cfg)
    if cfg.get('compile'):
        heed_hooks()
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError(
                f"--auto-scale-lr needs the recipe's batch size, and {args.config} "
                'does not set it; add '
                '`auto_scale_lr = dict(enable=False, base_batch_size=16)`'
            )
        cfg.auto_scale_lr.enable = True
    return cfg


class StartHook(Hook):
    """Note that the hooks before this one have accepted the run."""

    priority = 'LOWEST'
    reached = False

    def before_train(self, runner: Runner) -> None:
        """Note it."""
        self.reached = True


def add_hooks(runner: Runner, resume_partly: bool) -> None:
    """Add the hooks that every run needs besides those of its config."""
    runner.register_hook(FittingResumeHook(resume_partly))
    for kind in (SeedHook, WholeUpdatesHook, BestCheckpointHook, FiniteWeightsHook):
        runner.register_hook(kind())
    teachers = getattr(bare(runner), 'teachers', {}).values()
    if any(teacher.follows for teacher in teachers):
        runner.register_hook(FollowStudentHook(resume_partly))
    if any(teacher.cache is not None for teacher in teachers):
        runner.register_hook(CacheReportHook())
    exports = runner.cfg.get('export_student', True)
    there = any(isinstance(hook, ExportStudentHook) for hook in runner.hooks)
    if exports and not there and isinstance(bare(runner), Distiller):
        runner.register_hook(ExportStudentHook())
    # After all hooks that add something to a checkpoint.
    runner.register_hook(ReadableCheckpointHook())
    runner.register_hook(StartHook())
    # Last, because it validates, and every other hook has to be ready for that.
    runner.register_hook(MissedValidationHook())


def bare(runner: Runner) -> nn.Module:
    model = runner.model
    return model.module if is_model_wrapper(model) else model


def prepare(args: argparse.Namespace) -> Runner:
    """Return a runner that has passed all checks and has not started."""
    if args.launcher != 'none':
        end_with_parent()
    if args.config is None:
        args.config, args.work_dir = recipe_in_work_dir(args)
    cfg = configure(args)
    with all_faults(cfg):
        check_recipe(cfg)
    lock_work_dir(cfg)
    enter_work_dir(cfg, args.resume)
    seed_samples(cfg)
    if 'student' in cfg.model:
        group_as_student(cfg)
    with all_faults(cfg):
        runner = PortableRunner.from_cfg(cfg)
        add_hooks(runner, args.resume_partly)
        if isinstance(bare(runner), Distiller):
            rehearse(bare(runner))
    check_data(runner)
    return runner


def main() -> None:
    args = parse_args()
    try:
        with brief_errors(args.traceback):
            runner = prepare(args)
        [start] = [hook for hook in runner.hooks if isinstance(hook, StartHook)]
        try:
            with brief_errors(args.traceback, lambda: not start.reached):
                runner.train()
        except NonFiniteError as error:
            error.write(runner.work_dir, runner.iter + 1)
            raise
    finally:
        unlock_work_dir()


if __name__ == '__main__':
    main()
