"""Masked distillation with receptive tokens (MasKD, arXiv:2205.14589): its loss.

`kdtoolbox.distillers.TokenTrainer` trains the tokens of `receptive_tokens` before the
student.
"""

import torch
from torch import Tensor, nn

from kdtoolbox.checkpoints.weights import load_checkpoint, load_strictly
from kdtoolbox.losses.arguments import check_at_least, check_counts
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.features.receptive_tokens import ReceptiveTokens, token_masks
from kdtoolbox.losses.inputs import check_maps
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.registry import MODELS

HOW_TO_TRAIN = (
    'train tokens on the teacher first, as in configs/maskd/'
    'maskd_tokens_retina_r101_coco.py, and name its checkpoint as `tokens`'
)


@full_precision
def masked_error(
    student: Tensor,
    teacher: Tensor,
    masks: Tensor,
    weights: Tensor,
    eps: float = 1e-5,
    legacy_squared_mask: bool = False,
) -> Tensor:
    r"""Compute the weighted mean squared errors within masks.

    .. math:: mean_n \sum_k p_k \, mean_c
        \frac{\sum_{hw} m_k (S_c - T_c)^2}{\sum_{hw} m_k + \epsilon}

    Deviation: the authors' code multiplies the features by the mask and then squares
    them. The mask is then squared in the numerator, but not in the denominator. Set
    `legacy_squared_mask` for this behaviour.

    Args:
        student: Features (N, C, H, W).
        teacher: The same shape; receives no gradient.
        masks: Masks (N, T, H, W); receive no gradient.
        weights: Weights (N, T) of the masks, which sum to 1; receive no gradient.
        eps: Added to the sum of each mask. The authors use 1e-5 for segmentation and 0
            for detection.
        legacy_squared_mask: Square the mask in the numerator, as the authors do.

    Returns:
        A scalar, float32 or wider.

    Raises:
        ValueError: If a map is not 4-D or the shapes differ.

    Example:
        >>> student, masks = torch.ones(1, 8, 2, 2), torch.full((1, 3, 2, 2), 0.5)
        >>> weights = torch.full((1, 3), 1 / 3)
        >>> masked_error(student, 0 * student, masks, weights, eps=0.0)
        tensor(1.)
        >>> masked_error(student, 0 * student, masks, weights, 0.0, True)
        tensor(0.5000)
    """
    check_maps(student, teacher)
    masks, weights = masks.detach(), weights.detach()
    shares = masks.square() if legacy_squared_mask else masks
    scales = weights / (masks.sum((2, 3)) + eps)
    # The error is linear in the mask, so one weighted sum replaces T errors.
    focus = torch.einsum('nt,nthw->nhw', scales, shares)
    error = (student - teacher).square().sum(1)
    return (focus * error).sum() / (len(student) * student.shape[1])


@MODELS.register_module()
class MasKDLoss(nn.Module):
    """MasKD on one level; see `token_masks` and `masked_error`.

    The masks are computed from the teacher's map. The tokens are frozen.

    Args:
        channels: Channels of both maps.
        num_levels: Number of levels of the wires.
        num_tokens: Tokens per level. The paper uses 6 for detection and 8 for
            segmentation.
        tokens: Path or https URL of a checkpoint of a `TokenTrainer` run.
        weighted: Whether the tokens were trained with networks that predict weights
            for the masks. The authors use them for detection, not for segmentation.
        student_mask_warmup: Number of training steps after which the masks are
            multiplied by the masks of the student's map. The step count is saved in
            the checkpoint. The authors use 5,000 to 8,500. None disables it.
        eps: See `masked_error`.
        legacy_squared_mask: See `masked_error`. The authors' loss weights assume True.
        allow_random: Accept untrained tokens.
        loss_weight: Factor on the loss. The authors use 1 for two-stage detectors, 7
            for RetinaNet, 10 for FCOS and RepPoints, and halve the loss for
            segmentation.

    Raises:
        ValueError: If `tokens` is missing or does not match the other arguments.

    Example:
        >>> loss = MasKDLoss(256, num_levels=5, num_tokens=6, allow_random=True)
        >>> any(parameter.requires_grad for parameter in loss.parameters())
        False
    """

    calls: Tensor

    examples = (
        Example(
            arguments=lambda s: dict(
                channels=s.channels,
                num_levels=s.num_levels,
                num_tokens=6,
                allow_random=True,
            ),
        ),
    )

    def __init__(
        self,
        channels: int,
        num_levels: int,
        num_tokens: int,
        tokens: str | None = None,
        weighted: bool = True,
        student_mask_warmup: int | None = None,
        eps: float = 1e-5,
        legacy_squared_mask: bool = False,
        allow_random: bool = False,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_counts(
            'MasKDLoss',
            channels=channels,
            num_levels=num_levels,
            num_tokens=num_tokens,
        )
        if student_mask_warmup is not None:
            check_counts('MasKDLoss', least=0, student_mask_warmup=student_mask_warmup)
        check_at_least('MasKDLoss', 0, eps=eps, loss_weight=loss_weight)
        self.tokens = ReceptiveTokens(channels, num_levels, num_tokens, weighted)
        if tokens is not None or not allow_random:
            self._load(tokens)
        self.tokens.requires_grad_(False)
        self.student_mask_warmup = student_mask_warmup
        if student_mask_warmup is not None:
            self.register_buffer('calls', torch.zeros(num_levels, dtype=torch.long))
        self.eps = eps
        self.legacy_squared_mask = legacy_squared_mask
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor, level: int) -> Tensor:
        """Return the weighted error of two maps (N, C, H, W) as a scalar.

        Raises:
            ValueError: If the maps differ in shape, or their channels or level do not
                match the config.
        """
        check_maps(student, teacher)
        with torch.no_grad():
            masks, weights = self.tokens(teacher, level)
            warmup = self.student_mask_warmup
            if warmup is not None:
                masks = masks * self._student_masks(student, level, warmup)
        error = masked_error(
            student, teacher, masks, weights, self.eps, self.legacy_squared_mask
        )
        return self.loss_weight * error

    def _student_masks(self, student: Tensor, level: int, warmup: int) -> Tensor:
        # A buffer, so that a resumed run continues the count; `where` avoids a sync.
        self.calls[level] += int(self.training)
        masks = token_masks(self.tokens.vectors[level], student)
        return masks.where(self.calls[level] > warmup, 1)

    def _load(self, source: str | None) -> None:
        if source is None:
            raise ValueError(
                'tokens=None: the masks of untrained tokens are random; '
                f'{HOW_TO_TRAIN}, or set `allow_random=True`'
            )
        try:
            state = load_checkpoint(source)['state_dict']
        except ValueError as error:
            raise ValueError(f'tokens: {error}; {HOW_TO_TRAIN}') from error
        state = {key.removeprefix('tokens.'): value for key, value in state.items()}
        try:
            load_strictly(self.tokens, state, repr(source))
        except ValueError as error:
            raise ValueError(
                f'tokens: {error}: set channels, num_levels, num_tokens and weighted '
                'to the values of that checkpoint'
            ) from error
