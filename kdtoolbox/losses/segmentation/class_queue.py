"""A bounded memory of embeddings for each class, which CIRKD draws from."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class ClassQueue(nn.Module):
    """The last embeddings of each class, the oldest overwritten first.

    Slots that nothing was written to hold random directions. They are kept in half
    precision, in ``2 * num_classes * slots * channels`` bytes, and are part of the
    state dict, so that a resumed run goes on with them. Each process has its own; with
    ``broadcast_buffers=False``, mmengine's default, they stay apart.

    Args:
        num_classes: Number of classes K.
        slots: Embeddings kept of each class.
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
        # In place, because this may be a gigabyte.
        keys = functional.normalize(keys, dim=2, out=keys)
        self.register_buffer('keys', keys.half())
        self.register_buffer('ends', torch.zeros(num_classes, dtype=torch.long))

    @torch.no_grad()
    def push(self, entries: Tensor, present: Tensor) -> None:
        """Append embeddings of length 1 to the queues of their classes.

        Args:
            entries: For each class M candidates (K, M, C), in their order.
            present: Which of them are there (K, M); the others are passed over. Of more
                than ``slots`` the first are taken.
        """
        slots, channels = self.keys.shape[1:]
        # Shapes stay fixed, whatever is present: nothing has to be read from the GPU.
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
        """Return embeddings (K * count, C) from random slots, alike for each class.

        Of fewer than `count` slots all are returned.
        """
        slots = torch.randperm(self.keys.shape[1], device=self.keys.device)
        return self.keys[:, slots[:count]].flatten(0, 1)
