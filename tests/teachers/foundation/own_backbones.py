"""Backbones as users write them."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn


class Patches(nn.Module):
    """Tokens of patches, with one token before them."""

    def __init__(self, dim: int = 8, size: int = 16, prefix: int = 1) -> None:
        super().__init__()
        self.prefix = prefix
        self.embed = nn.Conv2d(3, dim, size, size)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        return torch.cat([tokens[:, : self.prefix] * 0, tokens], 1)


class Outputs(nn.Module):
    """Returns maps of two strides in a container of any kind."""

    def __init__(self, kind: str = 'list') -> None:
        super().__init__()
        self.kind = kind
        self.stem = nn.Conv2d(3, 4, 4, 4)
        self.stage = nn.Conv2d(4, 6, 2, 2)

    def forward(self, images: Tensor) -> Any:
        stem = self.stem(images)
        maps = [stem, self.stage(stem)]
        if self.kind == 'dict':
            return OrderedDict(c2=maps[0], c3=maps[1])
        if self.kind == 'hidden states':
            return dict(last_hidden_state=maps[1], hidden_states=(images, *maps))
        return dict(list=maps, tuple=tuple(maps), swin=maps[1].permute(0, 2, 3, 1))[
            self.kind
        ]


class Dino(nn.Module):
    """The interface of DINOv2's own code: blocks, a norm and intermediate layers."""

    patch_size = 14
    n_blocks = 3

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 14, 14)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(3))
        self.norm = nn.LayerNorm(8)

    def get_intermediate_layers(
        self, x: Tensor, n: Any = 1, reshape: bool = False, norm: bool = True
    ) -> tuple[Tensor, ...]:
        assert reshape
        assert not norm
        x, found = self.embed(x), []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in n:
                found.append(x)
        return tuple(found)

    def forward(self, images: Tensor) -> Tensor:
        return self.embed(images).mean((2, 3))


class NoModule:
    pass
