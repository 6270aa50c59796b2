"""Evaluate a student, or any plain mmdet or mmseg model, by its config's metric.

With a distillation config the checkpoint is the distillation's own or an exported
student; the teacher is neither built nor needed.
"""

import argparse
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import METRICS
from mmengine.runner import Runner

from kdtoolbox.checkpoint import load_checkpoint, load_strictly, select_student
from kdtoolbox.command_line import run_config, run_parser
from kdtoolbox.configuration import load_config


def parse_args() -> argparse.Namespace:
    parser = run_parser(__doc__)
    parser.add_argument('checkpoint', help='.pth or .safetensors, a path or https URL')
    parser.add_argument('--out', help='write the predictions to this .pkl file')
    parser.add_argument('--show', action='store_true', help='show the predictions')
    parser.add_argument('--show-dir', help='write painted images to this folder')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds per image')
    parser.add_argument(
        '--tta', action='store_true', help='augment the images of the test'
    )
    args = parser.parse_args()
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out writes a pickle; {args.out} does not end in .pkl')
    if args.out and Path(args.out).exists():
        parser.error(f'--out: {args.out} exists; name another file or remove it')
    return args


def configure(args: argparse.Namespace) -> Config:
    cfg = run_config(args)
    if 'student' in cfg.model:
        student = load_config(cfg.model.student).to_dict()
        cfg.model = student.get('model', student)
    # The weights are loaded strictly, below, and never resumed.
    cfg.load_from, cfg.resume = None, False
    if args.show or args.show_dir:
        draw(cfg, args)
    if args.tta:
        augment(cfg)
    return cfg


def draw(cfg: Config, args: argparse.Namespace) -> None:
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise ValueError(
            '--show and --show-dir need a visualization hook; add '
            "`default_hooks = dict(visualization=dict(type='DetVisualizationHook'))` "
            'or SegVisualizationHook'
        )
    hook.draw, hook.show, hook.wait_time = True, args.show, args.wait_time
    # mmsegmentation 1.2.2 draws each 50th batch of a test, not only of a validation.
    hook.interval = 1
    if args.show_dir and cfg.default_scope == 'mmdet':
        hook.test_out_dir = args.show_dir
    elif args.show_dir:
        cfg.visualizer.save_dir = args.show_dir


def augment(cfg: Config) -> None:
    dataset = cfg.test_dataloader.dataset
    if 'tta_pipeline' not in cfg and cfg.default_scope == 'mmdet':
        keys = ['img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor']
        pack = dict(type='PackDetInputs', meta_keys=[*keys, 'flip', 'flip_direction'])
        flips = [dict(type='RandomFlip', prob=prob) for prob in (1.0, 0.0)]
        cfg.tta_pipeline = [
            *deepcopy(dataset.pipeline[:-1]),
            dict(type='TestTimeAug', transforms=[flips, [pack]]),
        ]
    if 'tta_model' not in cfg and cfg.default_scope == 'mmdet':
        nms = dict(type='nms', iou_threshold=0.5)
        cfg.tta_model = dict(type='DetTTAModel', tta_cfg=dict(nms=nms, max_per_img=100))
    for key in ('tta_pipeline', 'tta_model'):
        if key not in cfg:
            raise ValueError(f'--tta needs `{key}` in the config')
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(**cfg.tta_model, module=cfg.model)


def main() -> None:
    args = parse_args()
    cfg = configure(args)
    state = load_checkpoint(args.checkpoint)['state_dict']
    runner = Runner.from_cfg(cfg)
    model = runner.model
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    load_strictly(model, select_student(state), repr(args.checkpoint))
    if args.out:
        dump = 'DumpDetResults' if cfg.default_scope == 'mmdet' else 'DumpResults'
        runner.test_evaluator.metrics.append(
            METRICS.build(dict(type=dump, out_file_path=args.out))
        )
    runner.test()


if __name__ == '__main__':
    main()
