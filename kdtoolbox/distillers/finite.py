"""Stop a step with NaN or Inf and report the first tensor that has them."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank
from torch import Tensor, nn

from kdtoolbox.checkpoints.finite_values import (
    all_finite,
    listed,
    non_finite,
    tensors_of,
)
from kdtoolbox.checkpoints.writing import write_whole

Seen = dict[str, Any]
"""The tensors of a step in the order of its data path: for each name one tensor, or a
list with one per level."""

IMAGES = 'the images of the batch'

LOWER = (
    'go on from an earlier checkpoint with a lower learning rate or loss_weight, '
    'or with optim_wrapper.clip_grad=dict(max_norm=35); where float16 overflows set '
    "optim_wrapper.dtype='bfloat16'"
)
"""The advice for numbers that training itself has made too large."""

_CURES = {
    IMAGES: 'look at their files and at the transforms of the pipeline',
    'teacher.': 'look at the checkpoint and the normalisation of model.teacher; where '
    "float16 overflows set optim_wrapper.dtype='bfloat16'",
    '': LOWER,
}


class NonFiniteError(ValueError):
    """A NaN or Inf in the images, records, connectors or losses of a step.

    Attributes:
        report: Values for ``json``: the ``message``; the ``tensors`` in the order of
            the data path, each with its name, shape, type, number of NaN and Inf and
            range of its finite values; the meta information of the ``samples``.
    """

    def __init__(self, message: str, report: dict | None = None) -> None:
        super().__init__(message)
        self.report = report or {}

    def write(self, folder: str | Path, iteration: int) -> None:
        """Write the report to a folder and add the file's path to the message."""
        path = Path(folder) / f'nonfinite_iter_{iteration}_rank_{get_rank()}.json'
        with write_whole(path) as file:
            file.write(json.dumps(self.report, indent=1).encode())
        self.args = (f'{self}\nThe batch and all ranges are in {path}',)


@contextmanager
def finite_step(
    data_samples: Sequence[Any], model: nn.Module | None = None
) -> Iterator[Seen]:
    """Yield a dict, and check at the end that all tensors in it are finite.

    The check also runs if the block raises an error: an assigner that fails on a NaN
    names neither the origin of the NaN nor the batch.

    Args:
        data_samples: The batch's samples, for the report.
        model: The error names those of its weights that were not finite before.

    Raises:
        NonFiniteError: If anything is not finite.

    Example:
        >>> with finite_step([]) as seen:
        ...     seen['model.connectors.a'] = [torch.ones(2), torch.zeros(3)]
        ...     seen['model.losses.loss_a'] = torch.tensor(float('nan'))
        Traceback (most recent call last):
        ...
        kdtoolbox.distillers.finite.NonFiniteError: model.losses.loss_a: NaN. ...
    """
    seen: Seen = {}
    try:
        try:
            yield seen
        except Exception:
            check_finite(seen, data_samples)
            raise
        check_finite(seen, data_samples)
    except NonFiniteError as error:
        broken = non_finite(dict(model.named_parameters())) if model else []
        if broken:
            error.args = (f'{error}. Not finite before this step: {listed(broken)}',)
            error.report['message'] = str(error)
        raise


@torch.no_grad()
def check_finite(seen: Seen, data_samples: Sequence[Any]) -> None:
    """Raise NonFiniteError if a tensor is not finite; synchronise only once."""
    tensors = dict(tensors_of(seen))
    if not all_finite(tensors.values()):
        raise _explain(tensors, data_samples)


def _explain(tensors: Mapping[str, Tensor], samples: Sequence[Any]) -> NonFiniteError:
    found = [describe(name, tensor, len(samples)) for name, tensor in tensors.items()]
    metas = [meta_of(sample) for sample in samples]
    first, *others = [x for x in found if x['nan'] or x['inf']]
    message = f'{first["name"]}: {_count(first)}'
    if first['images']:
        paths = [f'{i} ({metas[i].get("img_path")})' for i in first['images']]
        message += f', in image {", ".join(paths)}'
    cure = next(cure for key, cure in _CURES.items() if key in first['name'])
    message += f'. No weight has moved in this step; {cure}'
    if others:
        message += f'. Not finite either: {_grouped(x["name"] for x in others)}'
    report = dict(message=message, tensors=found, samples=metas)
    return NonFiniteError(message, report)


def _grouped(names: Iterable[str]) -> str:
    levels: dict[str, list[str]] = defaultdict(list)
    for name in names:
        place, separator, level = name.partition(', level ')
        levels[place + separator].append(level)
    return '; '.join(place + ', '.join(found) for place, found in levels.items())


def describe(name: str, tensor: Tensor, num_images: int = 0) -> dict[str, Any]:
    """Return the entry of a tensor in a report, with the images that are not finite."""
    # The device may be short of memory.
    tensor = tensor.cpu()
    finite = tensor.isfinite()
    values = tensor[finite]
    images = []
    # Rows of RoIs or queries are not images, even if their number is the same.
    if tensor.dim() > 2 and len(tensor) == num_images:
        images = (~finite.flatten(1).all(1)).nonzero().flatten().tolist()
    return dict(
        name=name,
        shape=list(tensor.shape),
        dtype=str(tensor.dtype),
        nan=int(tensor.isnan().sum()),
        inf=int(tensor.isinf().sum()),
        min=float(values.min()) if values.numel() else None,
        max=float(values.max()) if values.numel() else None,
        images=images,
    )


def _count(entry: Mapping[str, Any]) -> str:
    kinds = {kind: entry[kind.lower()] for kind in ('NaN', 'Inf')}
    found = [kind for kind, number in kinds.items() if number]
    if not entry['shape']:
        return found[0]
    numbers = ' and '.join(f'{kinds[kind]} {kind}' for kind in found)
    return f'{numbers} among {torch.Size(entry["shape"]).numel()} values'


def meta_of(sample: Any) -> dict[str, Any]:
    """Return the entry of a sample in a report."""
    meta = dict(getattr(sample, 'metainfo', {}))
    objects = getattr(sample, 'gt_instances', None)
    if objects is not None:
        meta['num_boxes'] = len(objects)
    return json.loads(json.dumps(meta, default=_plain, skipkeys=True))


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, 'tolist') else str(value)
