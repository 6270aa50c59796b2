"""Focal and global distillation (FGD, arXiv:2111.11837)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdtoolbox.losses.arguments import check_above, check_at_least, check_counts
from kdtoolbox.losses.detection.targets import pad_boxes
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import at_least_float32, check_maps
from kdtoolbox.registry import MODELS


def object_masks(
    boxes: Tensor, exist: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    r"""Weigh the cells of a map so that objects of all sizes count the same.

    A box covers the cells from the floor of its first to the ceiling of its last
    coordinate, both included. A covered cell weighs 1 / (cells of the box), also of
    those beyond the map, the largest over the boxes; an uncovered one 1 / (uncovered
    cells of its image).

    Args:
        boxes: Objects (N, G, 4) as (x1, y1, x2, y2) in cells of the map, padded.
        exist: Which of the boxes are there (N, G).
        size: Height and width of the map.

    Returns:
        The weights of the foreground and of the background, (N, H, W) each; 0 for the
        other's cells.

    Example:
        >>> boxes, exist = torch.tensor([[[0.2, 0.0, 0.9, 0.0]]]), torch.ones(1, 1) > 0
        >>> foreground, background = object_masks(boxes, exist, (1, 4))
        >>> foreground
        tensor([[[0.5000, 0.5000, 0.0000, 0.0000]]])
        >>> background
        tensor([[[0.0000, 0.0000, 0.5000, 0.5000]]])
    """
    first, last = boxes[..., :2].floor(), boxes[..., 2:].ceil()
    weights = exist / (last - first + 1).prod(-1)
    rows, columns = (torch.arange(length, device=boxes.device) for length in size)
    rows = (rows >= first[..., 1:]) & (rows <= last[..., 1:])
    columns = (columns >= first[..., :1]) & (columns <= last[..., :1])
    covered = rows[..., None] & columns[..., None, :]
    if boxes.shape[1]:
        foreground = torch.where(covered, weights[..., None, None], 0).amax(1)
    else:
        foreground = boxes.new_zeros(len(boxes), *size)
    background = (foreground == 0).to(foreground.dtype)
    return foreground, background / background.sum((1, 2), keepdim=True).clamp(min=1)


class GlobalContext(nn.Module):
    """What every position of a map has in common: a GcNet block without its sum.

    The map is averaged over its positions, with weights that the block learns, and the
    average passes through C -> C / 2 -> C. The last layer starts at 0.

    Deviation: the layer that weighs the positions has no bias; the softmax over them
    cancels it.

    Args:
        channels: Channels C of the map.

    Example:
        >>> context = GlobalContext(8)
        >>> tuple(context(context.pool(torch.ones(2, 8, 5))).shape)
        (2, 8)
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(1, channels))
        self.transform = nn.Sequential(
            nn.Linear(channels, channels // 2),
            nn.LayerNorm(channels // 2),
            nn.ReLU(),
            nn.Linear(channels // 2, channels),
        )
        nn.init.kaiming_normal_(self.position, mode='fan_in')
        for parameter in self.transform[-1].parameters():
            nn.init.zeros_(parameter)

    def pool(self, maps: Tensor) -> Tensor:
        """Return the weighted average (N, C) of maps (N, C, P)."""
        return _pool(maps, self.position)[0]

    def forward(self, average: Tensor) -> Tensor:
        """Return what the block adds to every position, (N, C)."""
        return self.transform(average)


def fgd_terms(
    student: Tensor,
    teacher: Tensor,
    masks: tuple[Tensor, Tensor],
    contexts: Sequence[GlobalContext],
    temperature: float = 0.5,
) -> dict[str, Tensor]:
    r"""Compare two maps where the teacher looks, how they look, and their contexts.

    With the attention of the positions and of the channels, H W and C in sum,

    .. math:: A^S(X) = H W \, softmax_{hw}(mean_c |X| / \tau), \quad
        A^C(X) = C \, softmax_c(mean_{hw} |X| / \tau)

    the terms are, each summed over everything and divided by N:

    - foreground and background: :math:`M A^S(T) A^C(T) (S - T)^2` with either mask;
    - attention: :math:`|A^S(S) - A^S(T)|` and :math:`|A^C(S) - A^C(T)|`;
    - relation: :math:`(S + g_s(S) - T - g_t(T))^2` with the global contexts g.

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.
        masks: Weights (N, H, W) of the foreground and of the background.
        contexts: The student's block and the teacher's; both learn.
        temperature: Temperature of both attentions.

    Returns:
        The scalars ``foreground``, ``background``, ``attention`` and ``relation``,
        float32 or wider.

    Raises:
        ValueError: If a map is not 4-D or the shapes differ.

    Example:
        >>> maps, masks = torch.ones(2, 8, 4, 4), (torch.ones(2, 4, 4),) * 2
        >>> terms = fgd_terms(maps, maps, masks, [GlobalContext(8), GlobalContext(8)])
        >>> [term.item() for term in terms.values()]
        [0.0, 0.0, 0.0, 0.0]
    """
    check_maps(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = (x.flatten(2) for x in at_least_float32(student, teacher))
        count, _, positions = student.shape
        # A fresh map costs as much as several operations on it: all share this one.
        scratch = torch.empty_like(teacher)
        goal = _attention(_absolute_sums(teacher, scratch), temperature)
        *sums, squares, shift, average = _MapSums.apply(
            student, teacher, goal[1], contexts[0].position, scratch
        )
        focal = squares[:, 0] * goal[0]
        found = _attention(sums, temperature)
        attention = sum((x - y).abs().sum() for x, y in zip(found, goal, strict=True))
        # The context is the same at each position, so the square needs no other map.
        offset = contexts[0](average) - contexts[1](contexts[1].pool(teacher))
        relation = squares[:, 1].sum() + 2 * (offset * shift).sum()
        relation = relation + positions * offset.square().sum()
        terms = dict(
            foreground=(focal * masks[0].flatten(1)).sum(),
            background=(focal * masks[1].flatten(1)).sum(),
            attention=attention,
            relation=relation,
        )
        return {name: term / count for name, term in terms.items()}


class _MapSums(torch.autograd.Function):
    """All that the loss reads of the student's map, with the closed gradient.

    Takes maps (N, C, P), the teacher's attention of the channels (N, C), and the
    layer that weighs the positions of the context (1, C). Returns the sums of |S| over
    the channels (N, P) and over the positions (N, C), those of (S - T)^2 over the
    channels with the attention and without (N, 2, P), that of S - T over the positions
    (N, C), and the weighted average of S (N, C). Keeps no map but its inputs.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        attention: Tensor,
        position: Tensor,
        scratch: Tensor,
    ) -> tuple[Tensor, ...]:
        rows = torch.stack([attention, torch.ones_like(attention)], 1)
        average, weights = _pool(student, position)
        ctx.save_for_backward(student, teacher, rows, position, average, weights)
        sums = _absolute_sums(student, scratch)
        difference = torch.sub(student, teacher, out=scratch)
        shift = difference.sum(2)
        return *sums, rows @ difference.square_(), shift, average

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        grad_spatial: Tensor,
        grad_channel: Tensor,
        grad_squares: Tensor,
        grad_shift: Tensor,
        grad_average: Tensor,
    ) -> tuple[Tensor | None, ...]:
        student, teacher, rows, position, average, weights = ctx.saved_tensors
        with torch.autocast(student.device.type, enabled=False):
            mean_pull = (grad_average * average).sum(1)[:, None, None]
            grad_logits = weights * (grad_average[:, None] @ student - mean_pull)
            grad_position = (grad_logits @ student.mT).sum(0)
            scratch = rows.mT @ (2 * grad_squares)
            step = (student - teacher).mul_(scratch)
            signs = torch.sign(student, out=scratch)
            step.addcmul_(signs, grad_spatial[:, None])
            step.addcmul_(signs, grad_channel[..., None])
            left = [grad_shift, grad_average, position.expand_as(grad_shift)]
            right = [torch.ones_like(weights), weights, grad_logits]
            step.baddbmm_(torch.stack(left, 2), torch.cat(right, 1))
        return step, None, None, grad_position, None


def _absolute_sums(maps: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor]:
    magnitudes = torch.abs(maps, out=scratch)
    return magnitudes.sum(1), magnitudes.sum(2)


def _attention(sums: Sequence[Tensor], temperature: float) -> tuple[Tensor, Tensor]:
    over_channels, over_positions = sums
    positions, channels = over_channels.shape[1], over_positions.shape[1]
    spatial = (over_channels / (channels * temperature)).softmax(1)
    channel = (over_positions / (positions * temperature)).softmax(1)
    return positions * spatial, channels * channel


def _pool(maps: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Return the average (N, C) of maps (N, C, P) and its weights (N, 1, P)."""
    # Expanded, because a matrix times a batch of matrices copies the batch.
    weights = (position.expand(len(maps), 1, -1) @ maps).softmax(-1)
    return (weights @ maps.mT)[:, 0], weights


@MODELS.register_module()
class FGDLoss(nn.Module):
    """FGD on one level; see `fgd_terms` and `object_masks`.

    Each level has two `GlobalContext`, the student's and the teacher's. Both learn.

    Deviation: boxes are scaled by the padded input, which the map covers; the authors'
    code scales them by the image without its padding (`legacy_img_shape`).

    Args:
        channels: Channels of both maps.
        num_levels: Levels of the wires.
        temperature: Temperature of the attentions.
        foreground_weight: Factor on the foreground. The authors use 1e-3, 5e-4, 5e-4
            and 5e-6 for the four terms with anchors, 1.6 times that without, and
            5e-5, 2.5e-5, 5e-5 and 5e-7 for two-stage detectors.
        background_weight: Factor on the background.
        attention_weight: Factor on the attention. The paper has 1e-3 with anchors.
        relation_weight: Factor on the relation.
        legacy_img_shape: Scale the boxes as the authors' code does.
        loss_weight: Factor on all terms.

    Raises:
        ValueError: If a number is not in the range of its argument.

    Example:
        >>> loss = FGDLoss(channels=256, num_levels=5)
        >>> len(loss.contexts)
        5
    """

    examples = (
        Example(arguments=lambda s: dict(channels=s.channels, num_levels=s.num_levels)),
    )

    def __init__(
        self,
        channels: int,
        num_levels: int,
        temperature: float = 0.5,
        foreground_weight: float = 1e-3,
        background_weight: float = 5e-4,
        attention_weight: float = 5e-4,
        relation_weight: float = 5e-6,
        legacy_img_shape: bool = False,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_counts('FGDLoss', num_levels=num_levels)
        check_counts('FGDLoss', least=2, channels=channels)
        check_above('FGDLoss', 0, temperature=temperature)
        check_at_least(
            'FGDLoss',
            0,
            foreground_weight=foreground_weight,
            background_weight=background_weight,
            attention_weight=attention_weight,
            relation_weight=relation_weight,
            loss_weight=loss_weight,
        )
        self.channels = channels
        self.temperature = temperature
        self.weights = dict(
            foreground=foreground_weight,
            background=background_weight,
            attention=attention_weight,
            relation=relation_weight,
        )
        self.legacy_img_shape = legacy_img_shape
        self.loss_weight = loss_weight
        self.contexts = nn.ModuleList(
            nn.ModuleList([GlobalContext(channels), GlobalContext(channels)])
            for _ in range(num_levels)
        )

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        level: int,
        data_samples: Sequence[Any],
        batch_input_shape: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Return the weighted terms of two maps (N, C, H, W).

        Raises:
            ValueError: If the maps differ in shape, or have other channels or more
                levels than the config says.
        """
        check_maps(student, teacher)
        self._check_config(student.shape[1], level)
        shapes = [batch_input_shape]
        if self.legacy_img_shape:
            shapes = [sample.metainfo['img_shape'][:2] for sample in data_samples]
        boxes, _, exist = pad_boxes(data_samples, student.device)
        boxes = boxes.to(torch.promote_types(student.dtype, torch.float32))
        height, width = student.shape[2:]
        extents = boxes.new_tensor([(w, h, w, h) for h, w in shapes])[:, None]
        cells = boxes * boxes.new_tensor([width, height] * 2) / extents
        masks = object_masks(cells, exist, (height, width))
        contexts: Any = self.contexts[level]
        terms = fgd_terms(student, teacher, masks, contexts, self.temperature)
        return {
            name: self.loss_weight * self.weights[name] * term
            for name, term in terms.items()
        }

    def _check_config(self, channels: int, level: int) -> None:
        if level >= len(self.contexts):
            raise ValueError(
                f'FGDLoss has num_levels={len(self.contexts)} and met level {level}, '
                'counted from 0; set num_levels to the number of levels of its wires'
            )
        if channels != self.channels:
            raise ValueError(
                f'FGDLoss has channels={self.channels} and met maps of {channels}; '
                f'set channels={channels}'
            )
