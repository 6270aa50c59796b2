"""Fit the connectors of a recipe, and add those that two wires need."""

import inspect
from typing import Any, get_type_hints

from kdtoolbox.recipes.fitted import (
    Fitted,
    free_name,
    output_shapes,
    partner_of,
    source_of,
    targets_of,
    width_of,
)
from kdtoolbox.recipes.templates import class_of, kinds_of


def fit_connector(name: str, fitted: Fitted) -> None:
    """Set the channels of a connector and compute the shapes of its output."""
    config = fitted.connectors[name]
    inputs = fitted.shapes.get(config['input'])
    target = next(targets_of(name, fitted), None)
    target = source_of(target, fitted) if target else None
    compared = fitted.shapes.get(target) if target else None
    if inputs is None:
        return
    if inputs[0] and len(inputs[0]) == 3 and config['type'] == 'ConvConnector':
        config['input'] = _tokens(config['input'], fitted)
        inputs = fitted.shapes[config['input']]
    widths = [width_of(shape) for shape in inputs]
    goals = [width_of(shape) for shape in compared] if compared else widths
    if 'in_channels' in config:
        takes_lists = (
            get_type_hints(class_of(config).__init__)['in_channels'] is not int
        )
        listed = isinstance(config['in_channels'], list) or len(inputs) > 1
        config['in_channels'] = widths if listed and takes_lists else widths[0]
    if 'out_channels' in config and config['type'] != 'TranslatorConnector':
        config['out_channels'] = _outputs(config['out_channels'], goals, name, fitted)
    if 'channels' in config:
        config['channels'] = goals[0]
        if widths != goals and len(widths) == len(goals):
            config['input'] = _project(config['input'], widths, goals, fitted)
    set_levels(config, len(inputs))
    fitted.shapes[name] = output_shapes(name, fitted)


def set_levels(config: dict[str, Any], count: int) -> None:
    """Set ``num_levels`` where a connector or loss takes it."""
    known = inspect.signature(class_of(config)).parameters
    if 'num_levels' in config or ('num_levels' in known and count > 1):
        config['num_levels'] = count


def _outputs(given: Any, goals: list[int], name: str, fitted: Fitted) -> Any:
    """Return the output channels of a connector: those of the teacher's wire."""
    for loss in fitted.losses.values():
        # NORM compares several maps of the student with each of the teacher.
        if loss['type'] == 'NORMLoss' and loss['student'] == name:
            return 4 * goals[0]
    return goals if isinstance(given, list) or len(set(goals)) > 1 else goals[0]


def _tokens(wire: str, fitted: Fitted) -> str:
    """Add a connector that reshapes the tokens of a wire; return its name."""
    side, _, record = wire.partition('.')
    name = f'{side}_{record}_maps'
    if name not in fitted.connectors:
        count = fitted.shapes[wire][0][1]
        skip = min(range(count), key=lambda n: (not _is_square(count - n), n))
        config = dict(type='TokenConnector', input=wire)
        fitted.connectors[name] = config | (dict(skip=skip) if skip else {})
        fitted.shapes[name] = output_shapes(name, fitted)
    return name


def _is_square(count: int) -> bool:
    return int(count**0.5) ** 2 == count


def align_wires(loss: dict[str, Any], fitted: Fitted) -> None:
    """Add the connectors that a loss needs between two wires of unlike shapes."""
    kinds = kinds_of(loss)
    for key, kind in kinds.items():
        if key.startswith('teacher') or 'map' not in kind or key not in loss:
            continue
        partner = partner_of(key, loss)
        wires = {loss[key], loss.get(partner)}
        if not wires <= fitted.shapes.keys():
            continue
        _reshape(loss, key, fitted)
        _reshape(loss, partner, fitted)
        allowed = kinds.get(partner, kind)
        if 'channels' not in allowed:
            _align_channels(loss, key, loss[partner], fitted)
        if 'size' not in allowed or 'one size' in allowed:
            _align_sizes(loss, key, loss[partner], fitted)


def _reshape(loss: dict[str, Any], key: str, fitted: Fitted) -> None:
    if len(fitted.shapes[loss[key]][0]) == 3:
        loss[key] = _tokens(loss[key], fitted)


def _align_channels(
    loss: dict[str, Any], key: str, partner: str, fitted: Fitted
) -> None:
    widths, goals = (
        [shape[1] for shape in fitted.shapes[wire]] for wire in (loss[key], partner)
    )
    if widths == goals or len(widths) != len(goals):
        return
    # In front of the recipe's own connectors, which keep the number of channels.
    chain = _chain(loss[key], fitted)
    first = chain[-1] if chain else None
    wire = fitted.connectors[first]['input'] if first else loss[key]
    name = _project(wire, widths, goals, fitted)
    if first is None:
        loss[key] = name
        return
    fitted.connectors[first]['input'] = name
    for later in reversed(chain):
        fit_connector(later, fitted)


def _project(wire: str, widths: list[int], goals: list[int], fitted: Fitted) -> str:
    """Add a convolution that projects a wire to other channels; return its name."""
    name = free_name('aligned', fitted)
    fitted.connectors[name] = dict(
        type='ConvConnector',
        input=wire,
        in_channels=widths if len(widths) > 1 else widths[0],
        out_channels=goals if len(set(goals)) > 1 else goals[0],
    )
    fitted.shapes[name] = output_shapes(name, fitted)
    return name


def _chain(wire: str, fitted: Fitted) -> list[str]:
    """Return the connectors behind a wire, the last one first."""
    chain = []
    while wire in fitted.connectors:
        if fitted.connectors[wire]['type'] != 'TokenConnector':
            chain.append(wire)
        wire = fitted.connectors[wire]['input']
    return chain


def _align_sizes(loss: dict[str, Any], key: str, partner: str, fitted: Fitted) -> None:
    own, other = (
        [shape[2:] for shape in fitted.shapes[wire]] for wire in (loss[key], partner)
    )
    if own == other or len(own) != len(other):
        return
    config = dict(type='ResizeConnector', input=loss[key], like=partner)
    for name, made in fitted.connectors.items():
        if made == config:
            loss[key] = name
            return
    name = free_name('resized', fitted)
    fitted.connectors[name] = config
    fitted.shapes[name] = output_shapes(name, fitted)
    loss[key] = name
