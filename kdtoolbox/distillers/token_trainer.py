"""Train the receptive tokens of MasKD on a frozen teacher (arXiv:2205.14589)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from kdtoolbox.distillers.finite import IMAGES, Seen, finite_step
from kdtoolbox.losses.features.receptive_tokens import ReceptiveTokens, dice_similarity
from kdtoolbox.recorders import check_recorders, find_modules
from kdtoolbox.registry import MODELS
from kdtoolbox.teachers import build_teacher


@MODELS.register_module()
class TokenTrainer(BaseModel):
    r"""Learn which positions of its maps a frozen teacher needs.

    While the teacher computes its own loss, each map F of its neck is replaced by

    .. math:: \sum_k p_k m_k F

    with the masks m of the tokens and their weights p. The loss trains the tokens
    through the teacher's head; `dice_similarity` keeps the tokens different. Nothing
    else is trained or saved: `MasKDLoss` reads the checkpoint as ``tokens``. In
    ``predict`` and ``tensor`` mode this model is the teacher, without masks.

    Unverified: the similarity counts once for each level.

    Args:
        teacher: Config of the teacher, for `kdtoolbox.teachers.build_teacher`.
        channels: Channels of the maps.
        num_levels: Levels of the pyramid.
        num_tokens: Tokens of each level. The paper uses 6 for detection and 8 for
            segmentation.
        weighted: Whether networks weight the masks; otherwise all weights are equal.
        source: Path of the module whose output is masked, as ``record`` takes it;
            ``decode_head.conv_seg`` for segmentation.
        data_preprocessor: Ignored: the teacher's own config sets the preprocessor.
            mmengine's Runner passes the one at the top level of a config.

    Raises:
        ValueError: If the teacher lacks its checkpoint or the module, or has a cache.
    """

    def __init__(
        self,
        teacher: dict,
        channels: int,
        num_levels: int,
        num_tokens: int,
        weighted: bool = True,
        source: str = 'neck',
        data_preprocessor: dict | None = None,
    ) -> None:
        super().__init__()
        self.teacher = build_teacher(teacher)
        if self.teacher.cache is not None:
            raise ValueError(
                'model.teacher.cache: tokens change the maps of the teacher in each '
                'step, so no record can be used twice; remove `cache`'
            )
        self.data_preprocessor = self.teacher.model.data_preprocessor
        check_recorders(self.teacher.model, dict(source=source), 'model')
        self.source = source
        self.tokens = ReceptiveTokens(channels, num_levels, num_tokens, weighted)

    def forward(
        self,
        inputs: Tensor,
        data_samples: Sequence | None = None,
        mode: str = 'tensor',
    ) -> Any:
        """Return the losses in ``loss`` mode, the teacher's own output otherwise.

        Args:
            inputs: Images (N, 3, H, W) from the teacher's data preprocessor.
            data_samples: The batch's samples.
            mode: 'loss', 'predict' or 'tensor'.
        """
        if mode == 'loss':
            return self.loss(inputs, data_samples or [])
        self.teacher.model.eval()
        return self.teacher.model(inputs, data_samples, mode=mode)

    def loss(self, inputs: Tensor, data_samples: Sequence) -> dict[str, Any]:
        """Return the teacher's losses on masked maps and the masks' similarity.

        Raises:
            ValueError: If the maps differ in number or channels from the config.
            NonFiniteError: If an image, a map, a mask or a loss is not finite.
        """
        with finite_step(data_samples, self) as seen:
            seen[IMAGES] = inputs
            losses = self._losses(inputs, data_samples, seen)
            seen |= {f'loss {key}': losses[key] for key in losses if 'loss' in key}
        return losses

    def _losses(
        self, inputs: Tensor, data_samples: Sequence, seen: Seen
    ) -> dict[str, Any]:
        maps = seen[f'model.source {self.source!r}'] = []
        with self._masking(maps) as masks:
            seen['the masks of the tokens'] = masks
            losses = self.teacher.model(inputs, data_samples, mode='loss')
        num_levels = len(self.tokens.vectors)
        if len(masks) != num_levels:
            raise ValueError(
                f'model.num_levels is {num_levels}, and {self.source!r} returned '
                f'{len(masks)} maps for the loss; set num_levels to their number, or '
                '`source` to a module that returns maps'
            )
        similarity = torch.stack([dice_similarity(level) for level in masks]).sum()
        return {**losses, 'loss_similarity': similarity}

    @contextmanager
    def _masking(self, maps: list[Tensor]) -> Iterator[list[Tensor]]:
        """Mask the maps while the block runs; yield the masks, level by level.

        Args:
            maps: Receives the maps without masks.
        """
        model = self.teacher.model
        masks: list[Tensor] = []

        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            maps.extend([output] if isinstance(output, Tensor) else output)
            if isinstance(output, Tensor):
                return self._mask(output, masks)
            return type(output)([self._mask(level, masks) for level in output])

        modules = find_modules(model, self.source, 'model.source').values()
        handles = [module.register_forward_hook(replace) for module in modules]
        try:
            _train_without_noise(model)
            yield masks
        finally:
            for handle in handles:
                handle.remove()
            model.eval()

    def _mask(self, features: Any, masks: list[Tensor]) -> Tensor:
        if not isinstance(features, Tensor) or features.dim() != 4:
            raise ValueError(
                f'model.source: {self.source!r} returns other values than maps '
                '(N, C, H, W); set `source` to a module that returns maps only'
            )
        try:
            found, weights = self.tokens(features, len(masks))
        except ValueError as error:
            raise ValueError(f'model: {self.source!r}: {error}') from error
        masks.append(found)
        mixed = torch.einsum('nt,nthw->nhw', weights, found)
        return features * mixed[:, None].to(features.dtype)

    def _apply(self, fn: Callable, recurse: bool = True) -> 'TokenTrainer':
        super()._apply(fn, recurse)
        if recurse:
            self.teacher = self.teacher.moved(fn)
        return self


def _train_without_noise(model: nn.Module) -> None:
    """Set a model to training mode, except norms, dropout and stochastic depth.

    Heads depend on the mode: FCOS scales its boxes in evaluation, which its loss does
    not expect, and DINO makes its denoising queries in training only.
    """
    model.train()
    for module in model.modules():
        is_leaf = next(module.children(), None) is None
        if is_leaf or isinstance(module, nn.MultiheadAttention):
            module.eval()
