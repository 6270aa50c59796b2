"""Add to each fault the lines that mend it."""

import difflib
import re

from mmengine.registry import MODELS

from kdtoolbox.inspection.context import Context
from kdtoolbox.inspection.loss_cures import loss_cure
from kdtoolbox.inspection.record_cures import record_cure
from kdtoolbox.inspection.reports import Faults
from kdtoolbox.inspection.retrial import fault_behind
from kdtoolbox.inspection.trial import Trial


def add_cures(context: Context, trial: Trial, tried: Faults, faults: Faults) -> None:
    """Add the lines to paste to the faults of recorders, connectors and losses.

    Args:
        context: What is known about the distillation.
        trial: What its parts have made of images.
        tried: The faults that the images have shown.
        faults: All faults. A fault behind that of a loss is added.
    """
    parts, shapes = context.parts, context.shapes
    for side, outlined in context.outlines.items():
        for name, recorder in parts.named[side].items():
            for fault in faults.of(f'model.recorders.{side}.{name}'):
                told = (side, name, recorder, fault.problem)
                cure = record_cure(*told, parts.models[side], outlined)
                faults.cure(fault, cure)
    for name, ends in parts.connections.items():
        for fault in tried.of(f'model.connectors.{name}'):
            if shapes.keys() >= {*ends.values()}:
                faults.cure(fault, connector_cure(name, context))
    for name, ends in parts.comparisons.items():
        if not shapes.keys() >= {*ends.values()} or name in trial.compared:
            continue
        for fault in tried.of(f'model.losses.{name}'):
            cure = loss_cure(name, fault.problem, context)
            faults.cure(fault, cure)
            if cure:
                _try_again(name, context, trial, faults)


def _try_again(name: str, context: Context, trial: Trial, faults: Faults) -> None:
    """Try a loss with the shapes and arguments of its cure; it may fail once more."""
    error = fault_behind(name, context, trial)
    if error is not None:
        cure = loss_cure(name, str(error), context)
        faults(error, cure if 'boxes' in str(error) else '')


def connector_cure(name: str, context: Context) -> str:
    """Return the arguments of a connector that disagree with its input, corrected."""
    config = context.model['connectors'][name]
    shapes = context.shapes.get(context.parts.connections[name].get('input', ''), ())
    if not shapes or any(len(shape) < 3 for shape in shapes):
        return ''
    if {len(shape) for shape in shapes} == {3} and config['type'] != 'TokenConnector':
        source = context.parts.connections[name]['input']
        connector = f"dict(type='TokenConnector', input='{source}')"
        made = context.name('maps', connector)
        return f"connectors=dict({made}={connector}, {name}=dict(input='{made}'))"
    widths = [shape[1] for shape in shapes]
    channels = widths[0] if len({*widths}) == 1 else widths
    right = dict(in_channels=channels, channels=channels, num_levels=len(shapes))
    wrong = {k: v for k, v in right.items() if k in config and config[k] != v}
    text = ', '.join(f'{key}={value}' for key, value in wrong.items())
    return f'connectors=dict({name}=dict({text}))' if text else ''


def type_cure(problem: str) -> str:
    """Return the type of mmdet or mmseg that was meant by an unknown one, or ''."""
    found = re.search(r'(\w+) is not in the (\w+)::model registry', problem)
    if found is None or found[2] not in MODELS.children:
        return ''
    scope = MODELS.children[found[2]]
    scope.import_from_location()
    close = difflib.get_close_matches(found[1], scope.module_dict, n=1)
    return f"did you mean type='{close[0]}'?" if close else ''
