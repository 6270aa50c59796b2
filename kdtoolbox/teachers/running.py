"""Run a model only as deep as its recorders need."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from kdtoolbox.recorders import Recorder, Records, find_modules, record

# Parts whose forward needs only the output of `extract_feat`.
_HEADS = ('bbox_head', 'rpn_head', 'mask_head', 'decode_head', 'auxiliary_head')


def run(
    model: nn.Module,
    recorders: Mapping[str, Recorder],
    inputs: Tensor,
    data_samples: Sequence,
    where: str = 'recorders',
) -> Records:
    """Run a model until everything is recorded and return the records.

    Args:
        model: A detector, a segmentor, or a module that takes images alone.
        recorders: The recorders, in the format of ``record``.
        inputs: Images (N, C, H, W), normalised for this model.
        data_samples: Samples of the batch, for models whose forward reads them.
        where: Config path of the recorders, for errors.
    """
    with record(model, recorders, stop_early=True, where=where) as records:
        if hasattr(model, 'extract_feat'):
            _run_parts(model, _parts_of(model, recorders, where), inputs, data_samples)
        else:
            model(inputs)
    return records


def _parts_of(
    model: nn.Module, recorders: Mapping[str, Recorder], where: str
) -> set[str]:
    sources = [r if isinstance(r, str) else r['source'] for r in recorders.values()]
    return {
        path.partition('.')[0]
        for source in sources
        for path in find_modules(model, source, where)
    }


def _run_parts(
    model: Any, parts: set[str], inputs: Tensor, data_samples: Sequence
) -> None:
    # The head of a DETR needs decoder states, and the head of a cascade needs the
    # output of the stage before it.
    chained = hasattr(model, 'forward_transformer') or isinstance(
        getattr(model, 'decode_head', None), nn.ModuleList
    )
    if chained or not parts <= {'backbone', 'neck', *_HEADS}:
        model(inputs, data_samples, mode='tensor')
        return
    features = model.extract_feat(inputs)
    for part in _HEADS:
        if part in parts:
            head = getattr(model, part)
            # `mode='tensor'` would call `head.forward`, which runs no hooks, and
            # skip mmseg's auxiliary heads.
            for member in head if isinstance(head, nn.ModuleList) else [head]:
                # The head of Mask2Former also needs the samples.
                known = inspect.signature(member.forward).parameters
                more = [data_samples] if 'batch_data_samples' in known else []
                member(features, *more)
