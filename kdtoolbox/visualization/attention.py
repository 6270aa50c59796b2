"""Draw how similar the tokens of a transformer are to one of them."""

from torch import Tensor
from torch.nn import functional

from kdtoolbox.distillers.building import SIDES
from kdtoolbox.distillers.observing import Step
from kdtoolbox.visualization.comparisons import Picture, draw_row
from kdtoolbox.visualization.scenes import Scene, map_of


def similarity(tokens: Tensor) -> Tensor:
    """Return the cosine similarity of each token to the token at the centre.

    Args:
        tokens: Map (C, h, w).

    Returns:
        The similarities (h, w), from -1 to 1.

    Example:
        >>> import torch
        >>> similarity(torch.tensor([[[-1.0, 2.0, 1.0]]]))
        tensor([[-1.,  1.,  1.]])
    """
    row, column = (side // 2 for side in tokens.shape[1:])
    return functional.cosine_similarity(tokens, tokens[:, row, column, None, None], 0)


def draw_attention(step: Step, name: str, scene: Scene) -> Picture | None:
    """Draw the similarity of recorded tokens to the token at the centre of the image.

    Args:
        step: A step of a distiller.
        name: The name of a recorder that student and teacher have.
        scene: The image.

    Returns:
        The rows and a caption, or None if the recorder records no tokens (N, L, C).
    """
    wires = {side: step.wires[f'{side}.{name}'] for side in SIDES}
    rows = []
    for number, pair in enumerate(zip(*wires.values(), strict=False)):
        maps = [map_of(wire, scene, len(step.inputs)) for wire in pair]
        if any(wire.dim() != 3 for wire in pair) or any(x is None for x in maps):
            continue
        values = {
            f'{side}: block {number} of {name}': similarity(tokens).clamp(min=0)
            for side, tokens in zip(SIDES, maps, strict=True)
            if tokens is not None
        }
        rows.append(draw_row(values, scene, top=1.0))
    if not rows:
        return None
    return Picture(
        rows,
        f'Tokens of the recorder {name}. Colour: the cosine similarity of each token '
        'to the token at the centre of the image, below 0 drawn as 0. These are '
        'similarities of outputs, not the attention weights inside of a block.',
    )
