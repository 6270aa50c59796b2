"""One method: what it learns from, fits, costs and gained."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kdtoolbox.recipes.results import Gain


@dataclass(frozen=True)
class Method:
    """One method: a folder of configs/ with its recipes.

    Attributes:
        folder: The folder, such as 'pkd'.
        name: The name of the method, such as 'PKD'.
        paper: URL of the paper.
        learns_from: What its losses compare, such as 'features'.
        pairs: The kinds of pairs for which its wires exist, from `kinds.PAIRS`.
        students: The models that its recipes train, such as 'retinanet'.
        recipes: The files of its recipes that have a student.
        step_ratios: The time of a distilled step in units of the student's own, by the
            recipe of DigitScenes. Empty if not measured.
        loss_ratios: The time of its losses in units of a plain mean squared error.
            Losses on other wires than feature maps have none.
        published: Gains that papers and other toolboxes report.
        ours: Gains that we have measured on DigitScenes.
    """

    folder: str
    name: str
    paper: str
    learns_from: tuple[str, ...]
    pairs: tuple[str, ...]
    students: tuple[str, ...]
    recipes: tuple[Path, ...]
    step_ratios: Mapping[str, float]
    loss_ratios: Mapping[str, float]
    published: tuple[Gain, ...]
    ours: tuple[Gain, ...]
