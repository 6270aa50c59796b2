"""Draw what a distillation compares and predicts on images of its own data.

Without a checkpoint, the student is as a training would initialise it.
"""

import argparse
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import set_random_seed

from kdtoolbox.checkpoints.reading import read_checkpoint, use_safe_loaders
from kdtoolbox.checkpoints.weights import load_checkpoint, load_strictly
from kdtoolbox.distillers import Distiller
from kdtoolbox.distillers.observing import Step
from kdtoolbox.hooks.follow_student import KEY
from kdtoolbox.runs.brief_errors import brief_errors
from kdtoolbox.runs.command_line import config_parser, read_config
from kdtoolbox.runs.distillation import build_distiller
from kdtoolbox.teachers.kinds import named_teachers
from kdtoolbox.teachers.teacher import NAME
from kdtoolbox.visualization import (
    KINDS,
    draw_models,
    draw_step,
    save_picture,
)

IMAGES = 4


def parse_args() -> argparse.Namespace:
    parser = config_parser(__doc__)
    parser.add_argument(
        'checkpoint', nargs='?', help='of the distillation, or an exported student'
    )
    parser.add_argument(
        '--out-dir', type=Path, required=True, help='new or empty folder'
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        '--images', type=int, default=IMAGES, help='number of images; %(default)s'
    )
    chosen.add_argument('--indices', type=int, nargs='+', help='these images instead')
    parser.add_argument(
        '--split',
        choices=['train', 'val'],
        default='val',
        help='train shows images as the training augments them',
    )
    parser.add_argument('--what', nargs='+', choices=KINDS, default=list(KINDS))
    args = parser.parse_args()
    if args.out_dir.exists() and (
        not args.out_dir.is_dir() or any(args.out_dir.iterdir())
    ):
        parser.error(
            f'--out-dir: {args.out_dir} exists and is not an empty folder; name another'
        )
    if args.images < 1:
        parser.error(f'--images: expected at least 1, got {args.images}')
    return args


def configure(args: argparse.Namespace) -> Config:
    cfg = read_config(args.config, args.cfg_options)
    if 'student' not in cfg.model:
        raise ValueError(
            f'{args.config}: expected the config of a distillation, with '
            '`model.student`; tools/test.py --show-dir draws a model alone'
        )
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    return cfg


def build(cfg: Config, args: argparse.Namespace) -> tuple[Distiller, str, str]:
    """Return the distiller, and sentences about its weights and its connectors."""
    model = build_distiller(cfg)
    note = more = ''
    if args.checkpoint is None:
        model.init_weights()
        note = 'The student is as initialised, without any training.'
    else:
        state = load_checkpoint(args.checkpoint)['state_dict']
        is_whole = any(key.startswith('student.') for key in state)
        target = model if is_whole else model.student
        load_strictly(target, state, repr(args.checkpoint), args.config)
        note = f'Student: {Path(args.checkpoint).name}.'
        if not is_whole and model.connectors:
            more = 'The connectors are untrained: the file has only the student.'
        restore_teachers(model, read_checkpoint(args.checkpoint))
    note += note_on_teachers(cfg)
    return model.to(get_device()).eval(), note, more


def restore_teachers(model: Distiller, checkpoint: Mapping[str, Any]) -> None:
    """Give the teachers that follow the student their weights of a checkpoint.

    A file of the student alone does not contain them. They are copies of it then.
    """
    saved = checkpoint.get(KEY) or {}
    for name, teacher in model.teachers.items():
        if name in saved:
            teacher.load_state_dict(saved[name])
        else:
            teacher.start(model.student)


def note_on_teachers(cfg: Config) -> str:
    """Return sentences about the files of the teachers' weights."""
    named = named_teachers(cfg.model.get('teacher'), cfg.model.get('teachers'))
    files = {name: config.get('checkpoint') for name, config in named.items()}
    return ''.join(
        f' {"Teacher" if name == NAME else name}: {Path(str(file)).name}.'
        for name, file in files.items()
        if file
    )


def dataset_of(cfg: Config, split: str) -> Any:
    """Return the data set of a split, whose samples are inputs of a training."""
    loader = cfg.get(f'{split}_dataloader')
    if not loader:
        raise ValueError(f'--split {split}: the config has no `{split}_dataloader`')
    dataset = deepcopy(loader.dataset)
    if split == 'val':
        load_annotations_first(dataset)
    return DATASETS.build(dataset)


def load_annotations_first(dataset: Any) -> None:
    """Move the loading of annotations before the resize, in a data set's config.

    Tests load them last, in pixels of the original image, as metrics need them. The
    losses need them in pixels of the resized one.
    """
    if isinstance(dataset, Mapping):
        pipeline = dataset.get('pipeline')
        if pipeline:
            loads = [str(step.get('type')) for step in pipeline]
            ranks = [
                0 if 'LoadImage' in kind else 1 if 'LoadAnn' in kind else 2
                for kind in loads
            ]
            order = sorted(range(len(ranks)), key=ranks.__getitem__)
            dataset['pipeline'] = [pipeline[index] for index in order]
        for part in dataset.values():
            load_annotations_first(part)
    elif isinstance(dataset, list | tuple):
        for part in dataset:
            load_annotations_first(part)


def step_of(model: Distiller, sample: Mapping[str, Any]) -> Step:
    """Return what the model computes for one sample, without training it."""
    steps: list[Step] = []
    observe = steps.append
    model.observers.append(observe)
    try:
        batch = model.data_preprocessor(pseudo_collate([sample]), training=True)
        model(**batch, mode='loss')
    finally:
        model.observers.remove(observe)
    if not steps:
        raise ValueError(
            'model.losses: all weights are 0, so nothing is compared; set one with '
            '`--cfg-options model.losses.NAME.loss_weight=1`'
        )
    return steps[0]


def draw(
    model: Distiller, dataset: Any, index: int, args: argparse.Namespace, notes: tuple
) -> list[str]:
    """Write the pictures of one image and return their names."""
    weights, connectors = notes
    sample = dataset[index]
    path = Path(str(sample['data_samples'].metainfo.get('img_path', '')))
    note = f'Image {index} of the {args.split} split: {path.name}. {weights}'
    step, meta = step_of(model, sample), dataset.metainfo
    [pictures] = draw_step(model, step, args.what, meta, f'{note} {connectors}')
    if 'predictions' in args.what:
        [predicted] = draw_models(model, step, meta, note)
        pictures |= predicted
    for name, picture in pictures.items():
        save_picture(picture, args.out_dir / f'{index:06}_{name}.png')
    return list(pictures)


def draw_all(args: argparse.Namespace) -> None:
    use_safe_loaders()
    cfg = configure(args)
    set_random_seed((cfg.get('randomness') or {}).get('seed') or 0)
    dataset = dataset_of(cfg, args.split)
    indices = args.indices or range(min(args.images, len(dataset)))
    beyond = [index for index in indices if not 0 <= index < len(dataset)]
    if beyond:
        raise ValueError(
            f'--indices: the {args.split} split has {len(dataset)} images, counted '
            f'from 0, got {beyond}'
        )
    model, *notes = build(cfg, args)
    args.out_dir.mkdir(parents=True, exist_ok=True)
    names = [
        name
        for index in indices
        for name in draw(model, dataset, index, args, tuple(notes))
    ]
    print(f'{len(names)} pictures written into {args.out_dir}')
    for kind in args.what:
        if not any(name.startswith(kind) for name in names):
            print(f'no {kind}: this recipe has nothing of that kind to draw')


def main() -> None:
    args = parse_args()
    with brief_errors(args.traceback):
        draw_all(args)


if __name__ == '__main__':
    main()
