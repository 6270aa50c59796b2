"""Suggest the weights that give losses a wanted share of the gradient."""

from collections.abc import Mapping

from kdtoolbox.diagnosis.measurements import LossReport

DEFAULT_SHARE = 0.3
"""Enough to be felt, and the task still decides; `--suggest-weights` sets another."""


def suggest_weight(report: LossReport, share: float) -> float | None:
    """Return the ``loss_weight`` that gives a loss a share of the gradient.

    The gradient of a loss is proportional to its weight. The share is that of the loss
    against the task alone, at the layer that the loss trains.

    Args:
        report: What was measured for the loss.
        share: The wanted share, between 0 and 1.

    Returns:
        The weight, or None if the loss or the task had no gradient there.

    Raises:
        ValueError: If the share is not between 0 and 1.

    Example:
        >>> report = LossReport(1.0, weight=2.0, place='student.fpn')
        >>> report.gradients['student.fpn'] = report.task['student.fpn'] = 3.0
        >>> suggest_weight(report, 0.2)
        0.5
    """
    if not 0 < share < 1:
        raise ValueError(
            f'--suggest-weights: expected a share between 0 and 1, got {share}; write '
            'for example --suggest-weights 0.3'
        )
    own, task = (at.get(report.place or '') for at in (report.gradients, report.task))
    if not (report.weight and own and task):
        return None
    return report.weight * share / (1 - share) * task / own


def suggest_weights(losses: Mapping[str, LossReport], share: float) -> dict[str, float]:
    """Return the suggested weight of each loss that has one, to three digits."""
    found = {name: suggest_weight(report, share) for name, report in losses.items()}
    return {name: float(f'{weight:.3g}') for name, weight in found.items() if weight}


def config_lines(weights: Mapping[str, float]) -> list[str]:
    """Return the weights as a line of a config and as a flag of the tools.

    Example:
        >>> for line in config_lines(dict(loss_cwd=2.5)):
        ...     print(line)
        model = dict(losses=dict(loss_cwd=dict(loss_weight=2.5)))
        --cfg-options model.losses.loss_cwd.loss_weight=2.5
    """
    entries = [f'{k}=dict(loss_weight={v!r})' for k, v in weights.items()]
    options = [f'model.losses.{k}.loss_weight={v!r}' for k, v in weights.items()]
    return [
        f'model = dict(losses=dict({", ".join(entries)}))',
        f'--cfg-options {" ".join(options)}',
    ]
