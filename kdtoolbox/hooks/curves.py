"""Show numbers of hooks in the log and in all visualization backends."""

from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner


def show(runner: Runner, name: str, value: float) -> None:
    """Log a scalar of the training, such as ``weight/loss_pkd``.

    mmengine's ``LoggerHook`` passes it on to the log and to all backends. They get the
    newest value. It is not a loss, so nothing sums it.
    """
    key = f'train/{name}'
    if key not in runner.message_hub.log_scalars:
        # The log averages all scalars with 'loss' in their name over many iterations.
        # A history of one value has that value as its mean.
        runner.message_hub.log_scalars[key] = HistoryBuffer(max_length=1)
    runner.message_hub.update_scalar(key, value)
