"""Run models on random images without changing what a later training reads."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.logging import MessageHub
from torch import nn


@contextmanager
def first_iteration() -> Iterator[None]:
    """Set epoch and iteration to 0 for heads that read them, such as TOOD's."""
    known = MessageHub.get_current_instance().runtime_info
    before = dict(known)
    known.update(epoch=0, iter=0)
    try:
        yield
    finally:
        known.clear()
        known.update(before)


def make_finite(model: nn.Module) -> None:
    """Make all weights finite; before `init_weights` some are uninitialised memory.

    Learnt proposals, as of Sparse R-CNN, become boxes: others have negative sides.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.nan_to_num_(0, 0, 0).clamp_(-1, 1)
        for module in model.modules():
            boxes = getattr(module, 'init_proposal_bboxes', None)
            if isinstance(boxes, nn.Embedding):
                # Centre and size, in units of the image.
                boxes.weight.fill_(0.5)
