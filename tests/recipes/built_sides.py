"""Sides of recipes for tests, each built once."""

import json

from kdtoolbox.recipes.sides import Side

_sides: dict[str, Side] = {}


def side(name: str, model: dict) -> Side:
    """Return a side. Most tests look at the same two or three models."""
    key = name + json.dumps(model)
    if key not in _sides:
        _sides[key] = Side(name, model)
    return _sides[key]
