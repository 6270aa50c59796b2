"""Draw predictions and recorded maps with mmengine's visualizers."""

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import HOOKS
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from torch import Tensor
from torch.nn import functional

from kdtoolbox.checkpoints.writing import write_whole

Panel = tuple[str, np.ndarray]


def draw_sample(
    visualizer: Visualizer,
    image: np.ndarray,
    sample: BaseDataElement,
    truth: bool = False,
    scale: int = 3,
) -> np.ndarray:
    """Draw the predictions of a sample, or its ground truth, on the image.

    Args:
        visualizer: Visualizer of mmdet or mmseg with ``dataset_meta`` set.
        image: RGB image (H, W, 3) of bytes.
        sample: Data sample of mmdet or mmseg for this image.
        truth: Draw the ground truth rather than the predictions.
        scale: Enlargement, so that labels of small images can be read.

    Returns:
        RGB image (scale * H, scale * W, 3).
    """
    height, width = (scale * side for side in image.shape[:2])
    large = cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST)
    visualizer.add_datasample(
        'sample', large, _enlarged(sample, scale), draw_gt=truth, draw_pred=not truth
    )
    return visualizer.get_image()


def _enlarged(sample: BaseDataElement, scale: int) -> BaseDataElement:
    sample = sample.clone().cpu()
    for name in ('gt_instances', 'pred_instances'):
        if name in sample:
            instances = getattr(sample, name)
            instances.bboxes = getattr(instances.bboxes, 'tensor', instances.bboxes)
            instances.bboxes = instances.bboxes * scale
    for name in ('gt_sem_seg', 'pred_sem_seg'):
        if name in sample:
            labels = getattr(sample, name).data
            labels = labels.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
            # An element refuses data of another size, so make a new one.
            sample.set_field(type(getattr(sample, name))(data=labels), name)
    return sample


def draw_map(feature: Tensor, image: np.ndarray, scale: int = 3) -> np.ndarray:
    """Draw a recorded map over its image, as the mean magnitude of its channels.

    Args:
        feature: Map (C, h, w) of any size.
        image: RGB image (H, W, 3) of bytes.
        scale: Enlargement, as in ``draw_sample``.

    Returns:
        RGB image (scale * H, scale * W, 3).
    """
    height, width = (scale * side for side in image.shape[:2])
    magnitude = (feature - feature.mean((1, 2), keepdim=True)).abs().detach().cpu()
    return Visualizer.draw_featmap(
        functional.interpolate(magnitude[None], (height, width), mode='bilinear')[0],
        cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST),
        channel_reduction='squeeze_mean',
        alpha=0.4,
    )


def save_panels(rows: Sequence[Sequence[Panel]], path: str | Path) -> None:
    """Write images with titles as a grid; ``rows`` are the rows of the picture."""
    from matplotlib.figure import Figure

    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(2.6 * columns, 2.8 * len(rows)), layout='constrained')
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis_row, row in zip(axes, rows, strict=True):
        for axis, (title, image) in zip(axis_row, row, strict=False):
            axis.imshow(image)
            axis.set_title(title, fontsize=9)
    with write_whole(path) as file:
        figure.savefig(file, dpi=150, format='png')


def paint_into(cfg: Config, folder: str, show: bool = False) -> None:
    """Change a config so that its test writes the pictures directly into a folder.

    By themselves, mmdet's hook puts a relative folder below the work dir, and mmseg's
    hook makes subfolders of its own.

    Args:
        cfg: A config of mmdet or mmseg with a visualization hook; changed in place.
        folder: Absolute path, or relative to the working folder.
        show: Whether the hook also shows the pictures.

    Raises:
        ValueError: If there is no visualizer, or the hook cannot both show and write.
    """
    if not cfg.get('visualizer'):
        raise ValueError(
            '--show-dir needs a visualizer; add '
            "`visualizer = dict(type='DetLocalVisualizer')` or SegLocalVisualizer"
        )
    hook, folder = cfg.default_hooks.visualization, os.path.abspath(folder)
    kind = _class_of(hook.type, cfg.get('default_scope'))
    if kind is not None and 'test_out_dir' in inspect.signature(kind).parameters:
        hook.test_out_dir = folder
        return
    if show:
        raise ValueError(
            f'{hook.type} shows pictures or writes them; leave out --show or --show-dir'
        )
    backends = [backend for backend in cfg.visualizer.get('vis_backends') or []]
    local = [backend for backend in backends if _is_local(backend.get('type'))]
    if not local:
        local = [dict(type='mmengine.LocalVisBackend')]
        backends += local
    for backend in local:
        backend['img_save_dir'] = folder
    cfg.visualizer.vis_backends = backends


def pictures_in(folder: str | os.PathLike) -> dict[Path, int]:
    """Return all files below a folder with the time of their last change."""
    files = (path for path in Path(folder).rglob('*') if path.is_file())
    return {path: path.stat().st_mtime_ns for path in files}


def _class_of(kind: Any, scope: str | None) -> Any:
    if not isinstance(kind, str):
        return kind
    with HOOKS.switch_scope_and_registry(scope) as registry:
        return registry.get(kind)


def _is_local(kind: Any) -> bool:
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.rpartition('.')[2] == 'LocalVisBackend'
