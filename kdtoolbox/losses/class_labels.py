"""The refusal shared by the losses that cannot do without the true classes."""

from torch import Tensor

from kdtoolbox.losses.logits import ClassLogits


def require_labels(owner: str, logits: ClassLogits) -> Tensor:
    """Return the labels of logits, which must have some.

    Raises:
        ValueError: If there are none.

    Example:
        >>> import torch
        >>> from kdtoolbox.losses.logits import read_logits
        >>> rows, labels = torch.zeros(2, 5), torch.tensor([3, 0])
        >>> require_labels('NKDLoss', read_logits(rows, rows, labels=labels))
        tensor([3, 0])
    """
    if logits.labels is None:
        raise ValueError(
            f'{owner} reads true classes, and there are none: maps need samples with '
            '`gt_sem_seg`, as a segmentor has them; for rows name the wire of their '
            "labels, such as labels='roi.labels'"
        )
    return logits.labels
