"""Evaluate a student, or any model of mmdet or mmseg, with the metric of its config.

With the config of a distillation, the checkpoint may be that of the distillation or an
exported student. The teacher is not built.
"""

import argparse
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import METRICS
from mmengine.runner import Runner

from kdtoolbox.checkpoints.weights import load_checkpoint, load_strictly
from kdtoolbox.runs.brief_errors import brief_errors
from kdtoolbox.runs.command_line import run_config, run_parser
from kdtoolbox.runs.student_config import student_config
from kdtoolbox.runs.sync_batch_norm import PortableRunner
from kdtoolbox.visualization import paint_into, pictures_in


def parse_args() -> argparse.Namespace:
    parser = run_parser(__doc__)
    parser.add_argument('checkpoint', help='.pth or .safetensors, a path or https URL')
    parser.add_argument('--out', help='write the predictions to this .pkl file')
    parser.add_argument('--show', action='store_true', help='show the predictions')
    parser.add_argument(
        '--show-dir',
        metavar='DIR',
        help='write each image with its predictions into DIR, a path relative to the '
        'current folder',
    )
    parser.add_argument('--wait-time', type=float, default=2, help='seconds per image')
    parser.add_argument('--tta', action='store_true', help='use test-time augmentation')
    args = parser.parse_args()
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out writes a pickle; {args.out} does not end in .pkl')
    if args.out and Path(args.out).exists():
        parser.error(f'--out: {args.out} exists; name another file or remove it')
    return args


def configure(args: argparse.Namespace) -> Config:
    cfg = run_config(args, need_teacher=False)
    if 'student' in cfg.model:
        student = student_config(cfg)
        cfg.model = student['model']
        if 'default_scope' in student:
            cfg.default_scope = student['default_scope']
    # `main` loads the weights strictly; the Runner must not load others.
    cfg.load_from, cfg.resume = None, False
    if args.show or args.show_dir:
        draw(cfg, args)
    if args.tta:
        augment(cfg)
    return cfg


def draw(cfg: Config, args: argparse.Namespace) -> None:
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if hook is None:
        raise ValueError(
            '--show and --show-dir need a visualization hook; add '
            "`default_hooks = dict(visualization=dict(type='DetVisualizationHook'))` "
            'or SegVisualizationHook'
        )
    hook.draw, hook.show, hook.wait_time = True, args.show, args.wait_time
    # mmsegmentation 1.2.2 draws each 50th batch of a test, not only of a validation.
    hook.interval = 1
    if args.show_dir:
        paint_into(cfg, args.show_dir, args.show)


def library_of(cfg: Config) -> str:
    """Return 'mmdet' or 'mmseg', from the scope or from the class of the model."""
    if cfg.get('default_scope') is not None:
        return cfg.default_scope
    kind = cfg.model.type
    names = [kind] if isinstance(kind, str) else [c.__module__ for c in kind.__mro__]
    roots = [name.partition('.')[0] for name in names]
    return next((root for root in roots if root in ('mmdet', 'mmseg')), roots[0])


def augment(cfg: Config) -> None:
    dataset = cfg.test_dataloader.dataset
    is_mmdet = library_of(cfg) == 'mmdet'
    if 'tta_pipeline' not in cfg and is_mmdet:
        keys = ['img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor']
        pack = dict(
            type='mmdet.PackDetInputs', meta_keys=[*keys, 'flip', 'flip_direction']
        )
        flips = [dict(type='mmdet.RandomFlip', prob=prob) for prob in (1.0, 0.0)]
        cfg.tta_pipeline = [
            *deepcopy(dataset.pipeline[:-1]),
            dict(type='TestTimeAug', transforms=[flips, [pack]]),
        ]
    if 'tta_model' not in cfg and is_mmdet:
        nms = dict(type='nms', iou_threshold=0.5)
        cfg.tta_model = dict(type='DetTTAModel', tta_cfg=dict(nms=nms, max_per_img=100))
    for key in ('tta_pipeline', 'tta_model'):
        if key not in cfg:
            raise ValueError(f'--tta needs `{key}` in the config')
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(**cfg.tta_model, module=cfg.model)


class TestRunner(PortableRunner):
    """A Runner that does not overwrite the config of the training in its work dir."""

    def dump_config(self) -> None:
        """Write the config of the test into the test's own folder."""
        name = Path(self.cfg.filename or 'config.py').name
        self.cfg.dump(Path(self.log_dir) / name)


def main() -> None:
    args = parse_args()
    with brief_errors(args.traceback):
        runner = prepare(args)
    test(runner, args.show_dir)


def prepare(args: argparse.Namespace) -> Runner:
    """Return a runner with the weights of the checkpoint."""
    cfg = configure(args)
    state = load_checkpoint(args.checkpoint)['state_dict']
    runner = TestRunner.from_cfg(cfg)
    model = runner.model
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    load_strictly(model, state, repr(args.checkpoint), args.config)
    if args.out:
        dump = 'mmdet.DumpDetResults' if library_of(cfg) == 'mmdet' else 'DumpResults'
        runner.test_evaluator.metrics.append(
            METRICS.build(dict(type=dump, out_file_path=args.out))
        )
    return runner


def test(runner: Runner, folder: str | None) -> None:
    """Run the test and check that it wrote pictures if a folder is given."""
    before = pictures_in(folder) if folder else {}
    runner.test()
    if folder and is_main_process() and pictures_in(folder) == before:
        raise ValueError(
            f'--show-dir: the test has written no picture into {folder}; the reason '
            'may be the hook `default_hooks.visualization`, the `visualizer`, or a '
            'data set without images. Use the hook and the visualizer of mmdet or mmseg'
        )


if __name__ == '__main__':
    main()
