"""Convert a batch from one model's normalisation to another's."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

COLOURS = 3
"""Number of channels whose order can be swapped, unlike that of one or four bands."""


class Renormalization:
    """Convert the output of the student's preprocessor to the teacher's normalisation.

    The teacher gets the student's batch. Without conversion, a different mean, std or
    channel order would make every feature of the teacher wrong without an error.

    Args:
        student: The data preprocessor that makes the batch.
        teacher: The data preprocessor of the teacher's own recipe.
        where: Config path of the teacher, for errors.

    Raises:
        ValueError: If the two normalise different numbers of channels.

    Example:
        >>> from mmengine.model import ImgDataPreprocessor
        >>> rgb = ImgDataPreprocessor(mean=[1, 2, 3], std=[2, 2, 2], bgr_to_rgb=True)
        >>> bgr = ImgDataPreprocessor(mean=[3, 2, 1], std=[1, 1, 1])
        >>> Renormalization(rgb, bgr)(torch.ones(1, 3, 1, 1), []).flatten().tolist()
        [2.0, 2.0, 2.0]
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, where: str = 'model.teacher'
    ) -> None:
        mean_student, std_student = _statistics(student)
        mean_teacher, std_teacher = _statistics(teacher)
        if len(mean_student) > 1:
            _check_channels(len(mean_student), len(mean_teacher), where)
        self.flip = swaps_channels(student) != swaps_channels(teacher)
        if self.flip and len(mean_student) == COLOURS:
            mean_student, std_student = mean_student.flip(0), std_student.flip(0)
        self.scale = std_student / std_teacher
        self.shift = (mean_student - mean_teacher) / std_teacher
        self.padding = _padding(teacher)
        self.where = where
        self.differs = bool(
            (self.scale != 1).any()
            or (self.shift != 0).any()
            or self.padding != _padding(student)
        )

    def __call__(self, inputs: Tensor, data_samples: Sequence) -> Tensor:
        """Return the batch (N, C, H, W) as the teacher expects it.

        Args:
            inputs: The student's batch, which is not changed.
            data_samples: The batch's samples. The padding, all cells outside
                ``img_shape``, gets the teacher's value.

        Raises:
            ValueError: If the teacher normalises a different number of channels.
        """
        _check_channels(inputs.shape[1], len(self.scale), self.where)
        if self.flip and inputs.shape[1] == COLOURS:
            inputs = inputs.flip(1)
        if not self.differs:
            return inputs
        converted = inputs * self.scale.to(inputs) + self.shift.to(inputs)
        for image, sample in zip(converted, data_samples, strict=False):
            height, width = sample.img_shape[:2]
            image[:, height:] = self.padding
            image[:, :, width:] = self.padding
        return converted

    def numbers(self) -> dict[str, Any]:
        """Return the numbers that define the conversion."""
        return dict(
            flip=self.flip,
            scale=self.scale.flatten().tolist(),
            shift=self.shift.flatten().tolist(),
            padding=self.padding,
            differs=self.differs,
        )


def _statistics(preprocessor: nn.Module) -> tuple[Tensor, Tensor]:
    """Return mean and std (C, 1, 1) in the order of the preprocessor's output.

    A single value applies to all channels.
    """
    mean, std = (getattr(preprocessor, name, None) for name in ('mean', 'std'))
    if isinstance(mean, Tensor) and isinstance(std, Tensor):
        mean, std = torch.broadcast_tensors(mean.cpu(), std.cpu())
        return mean, std
    return torch.zeros(1, 1, 1), torch.ones(1, 1, 1)


def _check_channels(student: int, teacher: int, where: str) -> None:
    if teacher not in (1, student):
        raise ValueError(
            f'{where}: the student reads images of {student} channels, `mean` and '
            f"`std` of the teacher's `data_preprocessor` are for {teacher}; both read "
            f'the same images: take a teacher that was trained on {student} channels, '
            f"or load {teacher} and give the student's `data_preprocessor` as many "
            'values for `mean` and `std`'
        )


def swaps_channels(preprocessor: nn.Module) -> bool:
    """Return whether a preprocessor swaps BGR and RGB."""
    # mmseg 1.2 names it without the underscore.
    return bool(
        getattr(preprocessor, '_channel_conversion', False)
        or getattr(preprocessor, 'channel_conversion', False)
    )


def _padding(preprocessor: nn.Module) -> float:
    # mmseg uses the first name, mmengine and mmdet use the second.
    for name in ('pad_val', 'pad_value'):
        if hasattr(preprocessor, name):
            return float(getattr(preprocessor, name))
    return 0.0
