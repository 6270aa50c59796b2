"""Split a dense head into two parts, so that features can enter the second part."""

from typing import Any

from torch import Tensor

_PREDICTORS = ('gfl', 'retina', 'atss', 'conv')
"""Prefixes of the last convolutions: ``gfl_cls`` of GFL, ``conv_cls`` of FCOS."""


class SplitHead:
    """The classification and regression towers of a dense head, split after `stage`.

    Supports the heads of mmdet that stack ``cls_convs`` and ``reg_convs`` before one
    convolution per kind of prediction, such as RetinaNet, FCOS, ATSS and GFL. This is
    no module, so it does not own the head.

    Args:
        head: The head; its parameters are not changed.
        stage: Number of convolutions before the cut, counted from 1.

    Raises:
        ValueError: If the head has no such towers, or fewer convolutions than `stage`.
    """

    def __init__(self, head: Any, stage: int) -> None:
        name = type(head).__name__
        prefixes = [p for p in _PREDICTORS if hasattr(head, f'{p}_cls')]
        if not (hasattr(head, 'cls_convs') and hasattr(head, 'reg_convs') and prefixes):
            raise ValueError(
                f'{name} has no towers `cls_convs` and `reg_convs` with predictors '
                f'behind them ({", ".join(f"{p}_cls" for p in _PREDICTORS)}); choose '
                'a head such as that of RetinaNet, FCOS, ATSS or GFL'
            )
        self.depth = min(len(head.cls_convs), len(head.reg_convs))
        if not 1 <= stage <= self.depth:
            raise ValueError(
                f'stage={stage}: {name} has {self.depth} convolutions per tower; set '
                f'`stage` to 1 to {self.depth}'
            )
        self.head = head
        self.stage = stage
        self.prefix = prefixes[0]
        centerness = hasattr(head, f'{self.prefix}_centerness')
        self.kinds = ('cls', 'reg', 'centerness') if centerness else ('cls', 'reg')

    def sources(self, where: str) -> dict[str, str]:
        """Return the paths at which to record each tower, before the activation.

        Sets the activation's `inplace` to False so the recorded tensor survives.

        Args:
            where: Path of the head in its model.
        """
        found = {}
        for tower in ('cls', 'reg'):
            last = self._convs(tower)[self.stage - 1]
            if hasattr(last.activate, 'inplace'):
                last.activate.inplace = False
            part = last.norm_name if last.with_norm else 'conv'
            found[f'{tower}_tower'] = f'{where}.{tower}_convs.{self.stage - 1}.{part}'
        return found

    def prediction_sources(self, where: str) -> dict[str, str]:
        """Return the paths at which to record the raw, scaled predictions.

        Args:
            where: Path of the head in its model.
        """
        found = {kind: f'{where}.{self.prefix}_{kind}' for kind in self.kinds}
        if hasattr(self.head, 'scales'):
            found['reg'] = f'{where}.scales.*'
        return found

    def finish(self, kind: str, level: int, features: Tensor) -> Tensor:
        """Run the features of one tower through the rest of the head.

        Args:
            kind: 'cls', 'reg' or 'centerness'.
            level: Level of the pyramid.
            features: Maps (N, C, H, W) before the activation at the split.

        Returns:
            The raw prediction (N, A * D, H, W) as `prediction_sources` records it.
        """
        tower = self.tower_of(kind)
        last, *rest = list(self._convs(tower))[self.stage - 1 :]
        features = last.activate(features)
        for conv in rest:
            features = conv(features)
        prediction = getattr(self.head, f'{self.prefix}_{kind}')(features)
        if kind == 'reg' and hasattr(self.head, 'scales'):
            prediction = self.head.scales[level](prediction)
        return prediction

    def tower_of(self, kind: str) -> str:
        """Return the tower, 'cls' or 'reg', of a kind of prediction."""
        if kind != 'centerness':
            return kind
        # FCOS has a config key for it; ATSS always predicts it from the box tower.
        return 'reg' if getattr(self.head, 'centerness_on_reg', True) else 'cls'

    def _convs(self, tower: str) -> Any:
        return getattr(self.head, f'{tower}_convs')
