"""Train a student alone and distilled on DigitScenes and compare the two.

Writes report.json and report.png into the work dir. Older results are moved aside.
"""

import argparse
import contextlib
import io
import json
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from jobs import ROOT, Job, console, run_jobs
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, init_default_scope
from rich.table import Table

from kdtoolbox.checkpoints.reading import use_safe_loaders
from kdtoolbox.checkpoints.weights import load_checkpoint, load_strictly
from kdtoolbox.checkpoints.writing import write_whole
from kdtoolbox.configuration import load_config
from kdtoolbox.datasets import PRESETS, make_digit_scenes
from kdtoolbox.recorders import record
from kdtoolbox.teachers.models import build_model
from kdtoolbox.visualization import draw_map, save_panels
from kdtoolbox.visualization.canvas import fit, panel_scale
from kdtoolbox.visualization.comparisons import Picture
from kdtoolbox.visualization.predictions import draw_predictions
from kdtoolbox.visualization.scenes import Scene

LABELS = dict(student='student alone', distilled='student distilled', teacher='teacher')
METRICS = dict(det=('coco/bbox_mAP', 100), seg=('mIoU', 1))
# The best of docs/benchmark.md.
METHODS = dict(det='ld', seg='dist')


def config_of(task: str, name: str, method: str) -> str:
    return f'configs/digits/{task}_{method if name == "distilled" else name}.py'


def train(task: str, method: str, seeds: Sequence[int], folder: Path) -> None:
    iterations = load_config(ROOT / f'configs/digits/{task}_student.py').max_iters
    jobs = [
        Job(
            f'{name}, seed {seed}',
            folder / f'{name}_{seed}',
            (
                'tools/train.py',
                config_of(task, name, method),
                '--cfg-options',
                f'randomness.seed={seed}',
            ),
            iterations,
        )
        for seed in seeds
        for name in ('student', 'distilled')
    ]
    run_jobs(jobs, 'train')


def checkpoint_of(task: str, name: str, seed: int, folder: Path) -> Path:
    if name == 'teacher':
        return ROOT / f'configs/digits/{task}_teacher.safetensors'
    prefix = 'student_' if name == 'distilled' else ''
    [path] = (folder / f'{name}_{seed}').glob(f'{prefix}iter_*.pth')
    return path


def evaluate(
    task: str, method: str, seeds: Sequence[int], folder: Path
) -> dict[str, list[float]]:
    """Return the metric in percent of each model, one per seed."""
    runs = [(name, seed) for seed in seeds for name in ('student', 'distilled')]
    runs.append(('teacher', seeds[0]))
    jobs = [
        Job(
            f'{name}, seed {seed}' if name != 'teacher' else name,
            folder / f'test_{name}_{seed}',
            (
                'tools/test.py',
                config_of(task, name, method),
                str(checkpoint_of(task, name, seed, folder)),
            ),
        )
        for name, seed in runs
    ]
    run_jobs(jobs, 'evaluate')
    key, factor = METRICS[task]
    scores: dict[str, list[float]] = {}
    for (name, _), job in zip(runs, jobs, strict=True):
        [path] = job.work_dir.glob('[0-9]*/[0-9]*.json')
        # mmdet reports no metric at all for a model that detects nothing.
        value = json.loads(path.read_text().splitlines()[-1]).get(key, 0.0)
        scores.setdefault(name, []).append(round(value * factor, 2))
    return scores


CAPTION = (
    'Last row of each scene: the first recorded map of the module in the title, as the '
    'mean absolute deviation of its channels from their means over the image, from low '
    '(blue) to high (red). Each map has its own colour scale.'
)


def draw(
    task: str, method: str, seed: int, folder: Path, path: Path, scenes: int = 3
) -> None:
    """Draw scenes as predicted by the three models, and their recorded maps."""
    distilled = load_config(config_of(task, 'distilled', method))
    init_default_scope(distilled.default_scope)
    dataset = DATASETS.build(distilled.val_dataloader.dataset)
    models = {}
    for name in ('student', 'distilled', 'teacher'):
        config = 'teacher' if name == 'teacher' else 'student'
        models[name] = build_model(ROOT / f'configs/digits/{task}_{config}.py').eval()
        weights = checkpoint_of(task, name, seed, folder)
        load_strictly(
            models[name], load_checkpoint(weights)['state_dict'], str(weights)
        )
    pictures = [
        scene_picture(dataset[index], models, distilled, dataset.metainfo)
        for index in range(scenes)
    ]
    rows = [row for picture in pictures for row in picture.rows]
    save_panels(rows, path, f'{pictures[0].caption}\n{CAPTION}')


def scene_picture(
    data: dict, models: dict[str, BaseModel], distilled: Config, meta: dict
) -> Picture:
    """Return the predictions of all models and below them their recorded maps."""
    image = data['inputs'].flip(0).permute(1, 2, 0).contiguous().numpy()
    scene = Scene(0, image, data['data_samples'], image.shape[:2])
    predictions, maps = {}, [('input', fit(image))]
    for name, model in models.items():
        side = 'teacher' if name == 'teacher' else 'student'
        # Show the neck for methods without recorders of their own.
        recorders = distilled.model.get('recorders', {}).get(side) or {'neck': 'neck'}
        wire, path = next(iter(recorders.items()))
        with record(model, {wire: path}) as records:
            [predictions[LABELS[name]]] = model.test_step(pseudo_collate([data]))
        drawn = draw_map(
            records[wire][0][0], image, round(panel_scale(*image.shape[:2]))
        )
        maps.append((f'{LABELS[name]}: {path}', drawn))
    picture = draw_predictions(scene, predictions, meta)
    return Picture([*picture.rows, maps], picture.caption)


def report(
    task: str, seeds: Sequence[int], scores: dict[str, list[float]], seconds: float
) -> dict:
    iterations = load_config(ROOT / f'configs/digits/{task}_student.py').max_iters
    metric = METRICS[task][0].removeprefix('coco/')
    table = Table(title=f'DigitScenes, {task}: {metric} after {iterations} iterations')
    table.add_column('model')
    for seed in seeds:
        table.add_column(f'seed {seed}', justify='right')
    table.add_column('mean ± std', justify='right')
    for name, label in LABELS.items():
        values = scores[name]
        spread = f' ± {stdev(values):.1f}' if len(values) > 1 else ''
        cells = [f'{value:.1f}' for value in values]
        cells += [''] * (len(seeds) - len(values))
        table.add_row(label, *cells, f'{mean(values):.1f}{spread}')
    console.print(table)
    result = {name: round(mean(scores[name]), 2) for name in LABELS}
    return dict(
        task=task,
        metric=metric,
        **result,
        iterations=iterations,
        seconds=round(seconds, 1),
        seeds=list(seeds),
        runs=scores,
    )


def move_aside(folder: Path) -> None:
    if folder.exists():
        stamp = time.strftime('%Y%m%d_%H%M%S', time.localtime(folder.stat().st_mtime))
        kept = folder.with_name(f'{folder.name}_{stamp}')
        folder.rename(kept)
        console.print(f'the older results were moved to {kept}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--task', choices=METRICS, default='det')
    parser.add_argument(
        '--method',
        help='configs/digits/<task>_<method>.py distils the student; by default the '
        'best one of docs/benchmark.md',
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/demo')
    args = parser.parse_args()
    args.method = args.method or METHODS[args.task]
    use_safe_loaders()
    # The configs name data and teachers from the root of the repo.
    os.chdir(ROOT)
    if not Path(config_of(args.task, 'distilled', args.method)).is_file():
        found = sorted(Path('configs/digits').glob(f'{args.task}_*.py'))
        names = {path.stem.partition('_')[2] for path in found} - {'student', 'teacher'}
        parser.error(f'--method {args.method}: choose one of {sorted(names)}')
    start = time.perf_counter()
    move_aside(args.work_dir)
    console.print('make DigitScenes ...')
    make_digit_scenes(f'data/digits_{args.task}', PRESETS[args.task])
    train(args.task, args.method, args.seeds, args.work_dir)
    scores = evaluate(args.task, args.method, args.seeds, args.work_dir)
    picture = args.work_dir / 'report.png'
    # The libraries print so much while building models that the table would be lost.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        draw(args.task, args.method, args.seeds[0], args.work_dir, picture)
    result = report(args.task, args.seeds, scores, time.perf_counter() - start)
    path = args.work_dir / 'report.json'
    with write_whole(path) as file:
        file.write((json.dumps(result, indent=1) + '\n').encode())
    console.print(f'{path} and {picture} written')


if __name__ == '__main__':
    main()
