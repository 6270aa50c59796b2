"""Bounded queues of embeddings per class, for CIRKD."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class ClassQueue(nn.Module):
    """Store the latest embeddings of each class and overwrite the oldest first.

    Unused slots contain random directions. Embeddings are stored in half precision, in
    ``2 * num_classes * slots * channels`` bytes, and are part of the state dict, so
    that a resumed run continues with them. Each process has its own queues: mmengine
    does not broadcast buffers by default (``broadcast_buffers=False``).

    Args:
        num_classes: Number of classes K.
        slots: Embeddings stored per class.
        channels: Width C of an embedding.

    Example:
        >>> queue = ClassQueue(num_classes=19, slots=100, channels=8)
        >>> queue.push(torch.ones(19, 4, 8), torch.ones(19, 4) > 0)
        >>> tuple(queue.draw(6).shape)
        (114, 8)
    """

    keys: Tensor
    ends: Tensor

    def __init__(self, num_classes: int, slots: int, channels: int) -> None:
        super().__init__()
        keys = torch.randn(num_classes, slots, channels)
        # In place, because the keys may take a gigabyte.
        keys = functional.normalize(keys, dim=2, out=keys)
        self.register_buffer('keys', keys.half())
        self.register_buffer('ends', torch.zeros(num_classes, dtype=torch.long))

    @torch.no_grad()
    def push(self, entries: Tensor, present: Tensor) -> None:
        """Append embeddings of length 1 to the queues of their classes.

        Args:
            entries: M candidates per class (K, M, C), oldest first.
            present: Mask (K, M) of the candidates to append. If more than ``slots`` are
                present, the first ones are appended.
        """
        slots, channels = self.keys.shape[1:]
        # Shapes do not depend on `present`, which avoids synchronising the GPU.
        order = present.int().argsort(dim=1, descending=True, stable=True)[:, :slots]
        steps = torch.arange(order.shape[1], device=order.device)
        counts = present.sum(1, keepdim=True).clamp(max=slots)
        places = ((self.ends[:, None] + steps) % slots)[..., None]
        places = places.expand(-1, -1, channels)
        entries = entries.gather(1, order[..., None].expand(-1, -1, channels))
        entries = entries.to(self.keys.dtype)
        kept = self.keys.gather(1, places)
        entries = entries.where((steps < counts)[..., None], kept)
        self.keys.scatter_(1, places, entries)
        self.ends.copy_((self.ends + counts[:, 0]) % slots)

    def draw(self, count: int) -> Tensor:
        """Return embeddings (K * count, C) from the same random slots of each class.

        All slots are returned if there are fewer than `count`.
        """
        slots = torch.randperm(self.keys.shape[1], device=self.keys.device)
        return self.keys[:, slots[:count]].flatten(0, 1)
