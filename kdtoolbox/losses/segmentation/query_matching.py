"""One-to-one matching of the mask queries of two networks (DETR, arXiv:2005.12872)."""

import torch
from torch import Tensor


def object_confidence(teacher_cls: Tensor) -> Tensor:
    """Return the probability that each teacher query contains an object or region.

    Args:
        teacher_cls: Softmax logits (N, Q, K + 1), 'no object' last, float32 or wider.

    Returns:
        1 - P(no object) of shape (N, Q), without a gradient.

    Example:
        >>> object_confidence(torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, 999.0]]]))
        tensor([[0.6667, 0.0000]])
    """
    # Not 1 - p: the subtraction loses digits for nearly empty queries.
    return teacher_cls.detach().softmax(-1)[..., :-1].sum(-1)


def query_affinity(
    student: Tensor,
    teacher: Tensor,
    student_cls: Tensor,
    teacher_cls: Tensor,
    class_weight: float = 2.0,
    mask_weight: float = 5.0,
) -> Tensor:
    r"""Return how well each student query fits each teacher query.

    .. math::
        a_{qt} = c_t \left[w_{cls} \left(1 - \tfrac12 \|p_q - p_t\|_1\right)
        + w_{mask} \frac{2 \langle m_q, m_t \rangle + 1}
        {\|m_q\|^2 + \|m_t\|^2 + 1}\right]

    with class posteriors p, mask probabilities m and the teacher's confidence
    :math:`c_t = 1 - P_t(\text{no object})`: empty teacher queries get the remaining
    student queries. If the teacher is certain of a class, the class term is the
    student's probability of that class, as in the matching of DETR.

    Args:
        student: Mask logits (N, Q, H, W), float32 or wider.
        teacher: Mask logits (N, Q', H, W).
        student_cls: Softmax logits (N, Q, K + 1), 'no object' last.
        teacher_cls: Softmax logits (N, Q', K + 1).
        class_weight: Factor on the agreement of classes.
        mask_weight: Factor on the agreement of masks.

    Returns:
        The affinities (N, Q, Q'), without a gradient.

    Example:
        >>> logits = torch.tensor([[[99.0, 0.0, 0.0], [0.0, 99.0, 0.0]]])
        >>> masks = torch.full((1, 2, 2, 2), 99.0)
        >>> query_affinity(masks, masks, logits, logits)
        tensor([[[7., 5.],
                 [5., 7.]]])
    """
    with torch.no_grad():
        p, q = (x.softmax(-1) for x in (student_cls, teacher_cls))
        classes = 1 - torch.cdist(p, q, p=1) / 2
        p, q = (x.sigmoid().flatten(2) for x in (student, teacher))
        areas = p.square().sum(-1)[:, :, None] + q.square().sum(-1)[:, None]
        masks = (2 * p @ q.transpose(1, 2) + 1) / (areas + 1)
        fit = class_weight * classes + mask_weight * masks
        return fit * object_confidence(teacher_cls)[:, None]


def match_queries(affinity: Tensor) -> tuple[Tensor, Tensor]:
    """Match the queries of each image one to one with the largest sum of affinities.

    Some queries of the side with more queries stay unmatched. scipy solves the images
    one by one on the CPU, in about a millisecond for 100 queries. All images are copied
    to the CPU together, so that each call synchronises the GPU once.

    Args:
        affinity: Affinities (N, Q, Q'); values that are not finite count as 0.

    Returns:
        The indices of the matched student queries and of the matched teacher queries,
        both (N, min(Q, Q')) and long, on the device of the affinities.

    Example:
        >>> affinity = torch.tensor([[[3.0, 2.0], [2.0, 0.0], [0.0, 1.0]]])
        >>> match_queries(affinity)
        (tensor([[0, 1]]), tensor([[1, 0]]))
    """
    # Imported here because only this function needs scipy, which mmdet installs.
    from scipy.optimize import linear_sum_assignment

    # scipy raises on NaN and inf; a diverging run should show up in its losses instead.
    scores = affinity.detach().nan_to_num(0, 0, 0).cpu().numpy()
    pairs = [
        [torch.from_numpy(side) for side in linear_sum_assignment(image, maximize=True)]
        for image in scores
    ]
    found = torch.stack([torch.stack(pair) for pair in pairs]).to(affinity.device)
    return found[:, 0], found[:, 1]
