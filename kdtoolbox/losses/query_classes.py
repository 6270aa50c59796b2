"""Classes of the object queries of two DETRs (after KD-DETR, arXiv:2211.08071)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtoolbox.losses.arguments import check_at_least
from kdtoolbox.losses.inputs import at_least_float32
from kdtoolbox.losses.logits import check_logits
from kdtoolbox.registry import MODELS

EPS = 2.0**-23
"""The least divisor, for queries of which the teacher sees no object in any."""


def query_weights(teacher: Tensor) -> Tensor:
    r"""Return how much the teacher sees an object in each query.

    .. math:: w_r = \frac{\max_k \sigma(z_{rk})}{\sum_q \max_k \sigma(z_{qk})}

    Args:
        teacher: Sigmoid logits (R, K), K > 0; receives no gradient.

    Returns:
        The weights (R,), in sum 1, float32 or wider.

    Example:
        >>> query_weights(torch.tensor([[0.0, -9.0], [0.0, 0.0], [-99.0, -99.0]]))
        tensor([0.5000, 0.5000, 0.0000])
    """
    _, logits = at_least_float32(teacher, teacher)
    confidence = logits.amax(1).sigmoid()
    return confidence / confidence.sum().clamp(min=EPS)


def query_class_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Compare class probabilities query by query, as sure as the teacher is of each.

    .. math:: \sum_r w_r \sum_k KL(\sigma(T_{rk}) \,\|\, \sigma(S_{rk}))

    with the weights of `query_weights` and the divergence of two Bernoulli variables.
    Most queries of a DETR lie on background; a plain mean over all would drown the few
    that hold an object.

    Unverified: the paper weights a query by the teacher's largest probability too, as a
    third party tells it; no authors' code was compared.

    Deviation: the weights sum to 1, so that the number of queries changes nothing.

    Args:
        student: Sigmoid logits (R, K).
        teacher: Those of the same queries; receives no gradient.

    Returns:
        A scalar, float32 or wider; 0 without queries.

    Raises:
        ValueError: If the logits are no rows, their shapes differ, or K is 0.

    Example:
        >>> student, teacher = torch.zeros(2, 1), torch.tensor([[3.0], [-99.0]])
        >>> query_class_loss(student, teacher)
        tensor(0.5023)
    """
    check_logits(student, teacher, (2,), least=1)
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = at_least_float32(student, teacher)
        # Both logarithms, so that nothing cancels where the sigmoid saturates.
        yes = functional.logsigmoid(teacher) - functional.logsigmoid(student)
        no = functional.logsigmoid(-teacher) - functional.logsigmoid(-student)
        rows = (teacher.sigmoid() * yes + (-teacher).sigmoid() * no).sum(1)
        return (rows * query_weights(teacher)).sum()


@MODELS.register_module()
class QueryClassLoss(nn.Module):
    """Class probabilities of the same queries. See `query_class_loss`.

    Args:
        loss_weight: Factor on the loss.

    Raises:
        ValueError: If `loss_weight` is no finite number of at least 0.

    Example:
        >>> QueryClassLoss()(torch.ones(6, 80), torch.ones(6, 80))
        tensor(0.)
    """

    reads_classes = True

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_at_least('QueryClassLoss', 0, loss_weight=loss_weight)
        self.loss_weight = loss_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the weighted loss of logits (R, K)."""
        return self.loss_weight * query_class_loss(student, teacher)
