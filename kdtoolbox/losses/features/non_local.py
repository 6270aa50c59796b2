"""The non-local block of FBKD (ICLR 2021)."""

from torch import Tensor, nn


class NonLocal(nn.Module):
    """A non-local block with dot products that allocates nothing of size (H W)^2.

    There is no softmax, so values and keys are multiplied first. The sum is the same
    and needs a matrix of C / 2 x C / 2. The block is the identity at initialisation;
    its layers are initialised as in mmcv's ``NonLocal2d``.

    Deviation: mmrazor pools keys and values to limit the memory of the (H W)^2 map.
    Here each position attends to all others.

    Args:
        channels: Channels C of the map, even.

    Example:
        >>> maps = torch.ones(2, 8, 4, 5)
        >>> torch.equal(NonLocal(8)(maps), maps)
        True
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (
            nn.Conv2d(channels, channels // 2, 1) for _ in range(3)
        )
        self.out = nn.Conv2d(channels // 2, channels, 1, bias=False)
        # Losses run only in training, so running statistics would be unused.
        self.norm = nn.BatchNorm2d(channels, track_running_stats=False)
        for layer in (self.query, self.key, self.value):
            weight, bias = layer.parameters()
            nn.init.normal_(weight, std=0.01)
            nn.init.zeros_(bias)
        nn.init.kaiming_normal_(self.out.weight, mode='fan_out')
        nn.init.zeros_(self.norm.weight)

    def forward(self, maps: Tensor) -> Tensor:
        """Add to each position of maps (N, C, H, W) its sum over all positions."""
        query, key, value = (
            layer(maps).flatten(2) for layer in (self.query, self.key, self.value)
        )
        mixed = value @ key.mT / key.shape[2] @ query
        return maps + self._normalize(self.out(mixed.unflatten(2, maps.shape[2:])))

    def _normalize(self, added: Tensor) -> Tensor:
        if added.numel() > added.shape[1]:
            return self.norm(added)
        # PyTorch raises for one value per channel; the normalised value would be 0.
        scale, bias = (x[:, None, None] for x in (self.norm.weight, self.norm.bias))
        return 0 * added * scale + bias
