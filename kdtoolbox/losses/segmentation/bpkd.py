"""Boundary privileged knowledge distillation (BPKD, arXiv:2306.08075)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdtoolbox.losses.arguments import check_at_least, check_counts
from kdtoolbox.losses.examples import Example
from kdtoolbox.losses.features.cwd import channel_wise_divergence
from kdtoolbox.losses.logits.class_logits import (
    check_logits,
    check_tau,
    read_logits,
    require_labels,
)
from kdtoolbox.losses.logits.pixel_labels import pixel_labels
from kdtoolbox.losses.precision import full_precision
from kdtoolbox.losses.segmentation.edge_shares import edge_shares
from kdtoolbox.registry import MODELS

LEFT_OUT = -1e30
"""The logit of ignored positions in a softmax; -inf could give NaN."""


@full_precision
def bpkd_terms(
    student: Tensor,
    teacher: Tensor,
    data_samples: Sequence[Any],
    tau: float = 4.0,
    radius: int = 3,
) -> dict[str, Tensor]:
    r"""Compute CWD on the bodies of classes and KD on their edges.

    With the shares M (N, K, h, w) of `edge_shares`, the channel-wise divergence CWD and
    the pixel-wise divergence KD, both with their factor :math:`\tau^2`:

    .. math:: body = CWD((1 - M) S, (1 - M) T) \qquad
        edge = \frac{1}{N} \sum_{n,k} \frac{\sum_{hw} M_{nk} \, KD(M S, M T)_n}
            {\max(1, \sum_{hw} M_{nk})}

    Logits outside a mask are set to 0, which makes their softmax uniform.

    Unverified: the authors published no training code. The formulas follow a
    re-implementation.
    Deviation: ignored pixels are left out of both terms.

    Args:
        student: Logits (N, K, h, w).
        teacher: The same shape; receives no gradient.
        data_samples: N samples with ``gt_sem_seg``.
        tau: Temperature of all softmaxes, above 0.
        radius: Radius of the edges, in pixels of the labels.

    Returns:
        ``body`` and ``edge``, scalars, float32 or wider.

    Raises:
        ValueError: If the logits are not maps, their shapes differ, there are too few
            classes, or the samples have no labels.

    Example:
        >>> from types import SimpleNamespace
        >>> seg = SimpleNamespace(data=torch.tensor([[[0, 0, 0, 1, 1, 1]]]))
        >>> student, teacher = torch.zeros(1, 2, 1, 3), torch.ones(1, 2, 1, 3)
        >>> teacher[0, 0, 0, 1] = 5.0
        >>> samples = [SimpleNamespace(gt_sem_seg=seg)]
        >>> bpkd_terms(student, teacher, samples, tau=1.0, radius=1)['edge']
        tensor(1.2061)
    """
    check_logits(student, teacher, (4,))
    logits = read_logits(student, teacher, data_samples)
    require_labels('BPKDLoss', logits)
    valid = logits.valid[:, None]
    shares = _shares(logits.student, data_samples, radius).where(valid, 0)
    pair, inside = (logits.student, logits.teacher), 1 - shares
    bodies = [(inside * x).masked_fill(~valid, LEFT_OUT) for x in pair]
    body = channel_wise_divergence(bodies[0], bodies[1], tau)
    weights = shares / shares.sum((2, 3), keepdim=True).clamp(min=1)
    weight = weights.sum(1, keepdim=True) / max(len(student), 1)
    edge = _EdgeDivergence.apply(*pair, shares, weight, tau)
    return {'body': body, 'edge': edge}


class _EdgeDivergence(torch.autograd.Function):
    """The weighted sum of `kd_divergence` with its closed-form gradient.

    The gradient dL/dS = tau W M (softmax(M S / tau) - softmax(M T / tau)) needs one
    saved map, where plain autograd saves four.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        shares: Tensor,
        weight: Tensor,
        tau: float,
    ) -> Tensor:
        log_p, log_q = (
            (shares * x).div_(tau).log_softmax(1) for x in (student, teacher)
        )
        log_ratio = log_q - log_p
        q = log_q.exp_()
        ctx.tau = tau
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(log_p.exp_().sub_(q).mul_(shares).mul_(weight))
        return tau**2 * log_ratio.mul_(q).mul_(weight).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (difference,) = ctx.saved_tensors
        return difference * (grad * ctx.tau), None, None, None, None


def _shares(maps: Tensor, data_samples: Sequence[Any], radius: int) -> Tensor:
    size = data_samples[0].gt_sem_seg.data.shape[-2:]
    labels = pixel_labels(data_samples, size, maps.device)
    assert labels is not None  # noqa: S101  require_labels has checked them
    return edge_shares(labels, maps.shape[1], maps.shape[2:], radius).to(maps.dtype)


@MODELS.register_module()
class BPKDLoss(nn.Module):
    """BPKD on the logits of a segmentor; see `bpkd_terms`.

    Args:
        tau: Temperature.
        radius: Radius of the edges, in pixels of the student's training labels.
        body_weight: Factor on the body term.
        edge_weight: Factor on the edge term: the paper's 50 times its alpha of 2.
        loss_weight: Factor on both terms.

    Raises:
        ValueError: If `tau` is not a finite number above 0, or `radius` is not an
            integer above 0.

    Example:
        >>> from types import SimpleNamespace
        >>> seg = SimpleNamespace(data=torch.tensor([[[0, 0, 0, 1, 1, 1]]]))
        >>> maps = torch.ones(1, 19, 1, 3)
        >>> BPKDLoss()(maps, maps, [SimpleNamespace(gt_sem_seg=seg)])
        {'body': tensor(0.), 'edge': tensor(0.)}
    """

    reads_classes = True

    examples = (Example('class logits map', pixel_labels=True),)

    def __init__(
        self,
        tau: float = 4.0,
        radius: int = 3,
        body_weight: float = 20.0,
        edge_weight: float = 100.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_counts('BPKDLoss', radius=radius)
        check_at_least(
            'BPKDLoss',
            0,
            body_weight=body_weight,
            edge_weight=edge_weight,
            loss_weight=loss_weight,
        )
        self.tau = check_tau('BPKDLoss', tau)
        self.radius = radius
        self.weights = {'body': body_weight, 'edge': edge_weight}
        self.loss_weight = loss_weight

    def forward(
        self, student: Tensor, teacher: Tensor, data_samples: Sequence[Any] = ()
    ) -> dict[str, Tensor]:
        """Return the weighted terms of logits (N, K, h, w)."""
        terms = bpkd_terms(student, teacher, data_samples, self.tau, self.radius)
        return {
            name: self.loss_weight * weight * terms[name]
            for name, weight in self.weights.items()
        }
