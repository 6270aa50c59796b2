"""Focal and global distillation (FGD, arXiv:2111.11837)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdtoolbox.losses.arguments import check_above, check_at_least, check_counts
from kdtoolbox.losses.detection.fgd_masks import sample_masks
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.inputs import check_maps
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS


class GlobalContext(nn.Module):
    """Compute the global context of a map (the GcNet block without its residual sum).

    The block averages the map over its positions with learned weights and passes the
    average through two linear layers, C -> C / 2 -> C. The last layer starts at 0.

    Deviation: the layer that computes the weights has no bias, because the softmax
    over the positions cancels it.

    Args:
        channels: Number of channels C of the map.

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
        """Return the context (N, C) that is added to every position."""
        return self.transform(average)


@full_precision
def fgd_terms(
    student: Tensor,
    teacher: Tensor,
    masks: tuple[Tensor, Tensor],
    contexts: Sequence[GlobalContext],
    tau: float = 0.5,
) -> dict[str, Tensor]:
    r"""Compute the four FGD terms: foreground, background, attention and relation.

    With the spatial attention, which sums to H W, and the channel attention, which sums
    to C,

    .. math:: A^S(X) = H W \, softmax_{hw}(mean_c |X| / \tau), \quad
        A^C(X) = C \, softmax_c(mean_{hw} |X| / \tau)

    each term is summed over images, channels and positions, and divided by N:

    - foreground, background: :math:`M A^S(T) A^C(T) (S - T)^2` with the mask M of each;
    - attention: :math:`|A^S(S) - A^S(T)|` and :math:`|A^C(S) - A^C(T)|`;
    - relation: :math:`(S + g_s(S) - T - g_t(T))^2` with the global contexts g.

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.
        masks: Weights (N, H, W) of the foreground and of the background.
        contexts: The student's and the teacher's `GlobalContext`; both are trained.
        tau: Temperature of both attentions, above 0.

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
    student, teacher = student.flatten(2), teacher.flatten(2)
    count, _, positions = student.shape
    # Allocating a map costs as much as several operations, so all share this buffer.
    scratch = torch.empty_like(teacher)
    teacher_attention = _attention(_absolute_sums(teacher, scratch), tau)
    *sums, squares, shift, average = _MapSums.apply(
        student, teacher, teacher_attention[1], contexts[0].position, scratch
    )
    focal = squares[:, 0] * teacher_attention[0]
    attentions = zip(_attention(sums, tau), teacher_attention, strict=True)
    # The context is the same at each position, so the square needs no other map.
    offset = contexts[0](average) - contexts[1](contexts[1].pool(teacher))
    relation = squares[:, 1].sum() + 2 * (offset * shift).sum()
    terms = dict(
        foreground=(focal * masks[0].flatten(1)).sum(),
        background=(focal * masks[1].flatten(1)).sum(),
        attention=torch.stack([(s - t).abs().sum() for s, t in attentions]).sum(),
        relation=relation + positions * offset.square().sum(),
    )
    return {name: term / count for name, term in terms.items()}


class _MapSums(torch.autograd.Function):
    """Reduce the student's map to the sums that the loss reads.

    The gradient is written in closed form, so that only the input maps are kept.
    Inputs are maps (N, C, P), the teacher's channel attention (N, C) and the layer
    (1, C) that weighs the positions of the context. Outputs are

    - the sums of |S| over the channels (N, P) and over the positions (N, C),
    - the sums of (S - T)^2 over the channels, with and without attention, (N, 2, P),
    - the sum of S - T over the positions (N, C),
    - the weighted average of S (N, C).
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


def _attention(sums: Sequence[Tensor], tau: float) -> tuple[Tensor, Tensor]:
    over_channels, over_positions = sums
    positions, channels = over_channels.shape[1], over_positions.shape[1]
    spatial = (over_channels / (channels * tau)).softmax(1)
    channel = (over_positions / (positions * tau)).softmax(1)
    return positions * spatial, channels * channel


def _pool(maps: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Return the average (N, C) of maps (N, C, P) and its weights (N, 1, P)."""
    # Without expand, a matrix times a batch of matrices copies the batch.
    weights = (position.expand(len(maps), 1, -1) @ maps).softmax(-1)
    return (weights @ maps.mT)[:, 0], weights


@MODELS.register_module()
class FGDLoss(nn.Module):
    """Compute the FGD loss of one level. See `fgd_terms` and `object_masks`.

    Each level has its own pair of `GlobalContext`, one for the student and one for the
    teacher. Both are trained.

    Deviation: boxes are scaled by the size of the padded input, which the map covers.
    The authors' code scales them by the image without padding (`legacy_img_shape`).

    Args:
        channels: Number of channels of both maps.
        num_levels: Number of levels of the wires.
        tau: Temperature of both attentions.
        foreground_weight: Factor on the foreground term. For the four terms the authors
            use 1e-3, 5e-4, 5e-4 and 5e-6 with anchors, 1.6 times that without anchors,
            and 5e-5, 2.5e-5, 5e-5 and 5e-7 for two-stage detectors.
        background_weight: Factor on the background term.
        attention_weight: Factor on the attention term. The paper says 1e-3 with
            anchors.
        relation_weight: Factor on the relation term.
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
        tau: float = 0.5,
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
        check_above('FGDLoss', 0, tau=tau)
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
        self.tau = tau
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
            ValueError: If the maps differ in shape, if their channels are not
                `channels`, or if `level` is not below `num_levels`.
        """
        check_maps(student, teacher)
        self._check_config(student.shape[1], level)
        masks = self.masks(student, data_samples, batch_input_shape)
        contexts: Any = self.contexts[level]
        terms = fgd_terms(student, teacher, masks, contexts, self.tau)
        return {
            name: self.loss_weight * self.weights[name] * term
            for name, term in terms.items()
        }

    def masks(
        self,
        maps: Tensor,
        data_samples: Sequence[Any],
        batch_input_shape: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Return the weights (N, H, W) of the foreground and of the background.

        Args:
            maps: The maps (N, C, H, W) of one level.
            data_samples: The batch's samples.
            batch_input_shape: Height and width of the batch's images.
        """
        shapes = [batch_input_shape]
        if self.legacy_img_shape:
            shapes = [sample.metainfo['img_shape'][:2] for sample in data_samples]
        return sample_masks(maps, data_samples, shapes)

    def _check_config(self, channels: int, level: int) -> None:
        if level >= len(self.contexts):
            raise ValueError(
                f'FGDLoss has num_levels={len(self.contexts)} and got level {level}, '
                'counted from 0; set num_levels to the number of levels of its wires'
            )
        if channels != self.channels:
            raise ValueError(
                f'FGDLoss has channels={self.channels} and got maps of {channels}; '
                f'set channels={channels}'
            )
