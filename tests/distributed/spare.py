"""A backbone with a parameter that no loss reads."""

import torch
from mmseg.models.backbones import ResNetV1c
from mmseg.registry import MODELS
from torch import nn


@MODELS.register_module()
class SpareResNet(ResNetV1c):
    def __init__(self, **arguments: object) -> None:
        super().__init__(**arguments)
        self.spare = nn.Parameter(torch.zeros(1))
