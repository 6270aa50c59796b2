"""Draw how similar the tokens of a transformer are to one of them."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from kdtoolbox.distillers import Distiller
from kdtoolbox.distillers.observing import Step
from kdtoolbox.visualization.comparisons import (
    Picture,
    draw_row,
    levels_of,
    loss_line,
)
from kdtoolbox.visualization.scenes import Scene


def similarity(tokens: Tensor, query: Sequence[int]) -> Tensor:
    """Return the cosine similarity of each token of a map to one token.

    Args:
        tokens: Map (C, h, w).
        query: Row and column of the token.

    Returns:
        The similarities (h, w), from -1 to 1.

    Example:
        >>> import torch
        >>> similarity(torch.tensor([[[1.0, 2.0, -1.0]]]), (0, 0))
        tensor([[ 1.,  1., -1.]])
    """
    row, column = query
    return functional.cosine_similarity(tokens, tokens[:, row, column, None, None], 0)


def draw_attention(
    distiller: Distiller, step: Step, name: str, scene: Scene
) -> Picture | None:
    """Draw the similarity of the tokens that a loss compares to the central token.

    Args:
        distiller: The model.
        step: Its step.
        name: The name of the loss.
        scene: The image.

    Returns:
        The rows and a caption, or None if the loss compares no tokens.
    """
    ends = distiller.wiring.comparisons[name]
    rows = []
    for level in levels_of(distiller, step, name, scene):
        if step.wires[ends['student']][level.number].dim() != 3:
            continue
        both = []
        for tokens in (level.student, level.teacher):
            center = [side // 2 for side in tokens.shape[1:]]
            both.append(similarity(tokens, center).clamp(min=0))
        maps = {
            f'{side}, level {level.number}': values
            for side, values in zip(('student', 'teacher'), both, strict=True)
        }
        rows.append(draw_row(maps, scene, top=1.0))
    if not rows:
        return None
    return Picture(
        rows,
        f'{loss_line(distiller, name)} Colour: the cosine similarity of each token to '
        'the token at the centre of the image, below 0 drawn as 0. These are '
        'similarities of outputs, not the attention weights inside of a block.',
    )
