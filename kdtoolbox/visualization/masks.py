"""Draw the masks of FGD, PGD and FGFI with the boxes that they come from."""

from torch import Tensor

from kdtoolbox.distillers import Distiller
from kdtoolbox.distillers.observing import Step
from kdtoolbox.losses import FGDLoss, FGFILoss, PGDClsLoss, PGDRegLoss
from kdtoolbox.losses.detection.pgd_masks import teacher_masks
from kdtoolbox.visualization.boxes import Mark, draw_marks, mark_panel, truth_marks
from kdtoolbox.visualization.canvas import panel_scale
from kdtoolbox.visualization.comparisons import Picture, stride_text
from kdtoolbox.visualization.grid import Panel
from kdtoolbox.visualization.maps import paint_map
from kdtoolbox.visualization.scenes import Scene, covered_by

NAMES = ('foreground', 'background')


def masks_of(distiller: Distiller, step: Step, name: str) -> list[dict[str, Tensor]]:
    """Return for each level the masks (N, H, W) by name, as the loss computes them.

    Args:
        distiller: The model.
        step: Its step.
        name: The name of the loss. A loss of another method has no masks.
    """
    loss, ends = distiller.losses[name], distiller.wiring.comparisons[name]
    samples, targets = step.data_samples, step.targets
    if isinstance(loss, FGDLoss):
        size = step.inputs.shape[-2], step.inputs.shape[-1]
        pairs = [loss.masks(x, samples, size) for x in step.wires[ends['student']]]
        return [dict(zip(NAMES, pair, strict=True)) for pair in pairs]
    if isinstance(loss, FGFILoss) and targets is not None:
        found = loss.masks(step.wires[ends['student']], samples, targets)
        return [dict(imitated=mask.float()) for mask in found]
    if isinstance(loss, PGDClsLoss | PGDRegLoss) and targets is not None:
        cls, reg = (step.wires[ends[key]] for key in ('teacher_cls', 'teacher_reg'))
        pairs = teacher_masks(cls, reg, samples, targets, loss.iou_exponent, loss.topk)
        # The loss of the regression towers reads no background.
        kept = NAMES if isinstance(loss, PGDClsLoss) else NAMES[:1]
        return [dict(zip(kept, pair, strict=False)) for pair in pairs]
    return []


def draw_masks(
    distiller: Distiller, step: Step, name: str, scene: Scene, classes: list[str]
) -> Picture | None:
    """Draw the masks of a loss, one row per level.

    Args:
        distiller: The model.
        step: Its step.
        name: The name of the loss.
        scene: The image.
        classes: The names of the classes.

    Returns:
        The rows and a caption, or None if the loss has no masks.
    """
    levels = masks_of(distiller, step, name)
    marks = truth_marks(scene.sample.gt_instances, classes) if levels else []
    rows = [
        [
            (_title(number, masks, scene), draw_marks(scene.image, marks)),
            *(_panel(key, mask, scene, marks) for key, mask in masks.items()),
        ]
        for number, masks in enumerate(levels)
    ]
    if not rows:
        return None
    kind = type(distiller.losses[name]).__name__
    return Picture(
        rows,
        f'{name} ({kind}): the weight of each cell in the loss, with the boxes of the '
        'ground truth. Each panel has its own colour scale, from 0 to the number above '
        'it.',
    )


def _title(number: int, masks: dict[str, Tensor], scene: Scene) -> str:
    height, width = next(iter(masks.values())).shape[-2:]
    return f'ground truth; level {number}: {stride_text(height, width, scene)}'


def _panel(key: str, mask: Tensor, scene: Scene, marks: list[Mark]) -> Panel:
    values = mask[scene.number].detach().float().cpu()
    top = float(values.max())
    covered = covered_by((values.shape[0], values.shape[1]), scene)
    panel = paint_map(values.numpy(), scene.image, top, covered)
    scale = panel_scale(*scene.image.shape[:2])
    boxes = [Mark(mark.box, '', mark.colour) for mark in marks]
    return f'{key}, 0 to {top:.3g}', mark_panel(panel, boxes, scale)
