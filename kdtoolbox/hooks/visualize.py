"""Draw pictures of a distillation during its training."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from kdtoolbox.distillers import Distiller, Pretrainer
from kdtoolbox.distillers.observing import Observer, Step
from kdtoolbox.registry import HOOKS
from kdtoolbox.visualization import KINDS, Pictures, draw_models, draw_step


@HOOKS.register_module()
class DistillationVisualizationHook(Hook):
    """Draw features, masks, channels and predictions in every N-th iteration.

    The pictures go to the runner's visualizer and so to all its ``vis_backends``, under
    names such as ``features_loss_cwd_0``, with the iteration as their step. Only the
    main process draws. The training computes the same numbers with and without it.

    Args:
        interval: Number of iterations from one drawing to the next. The first
            iteration of a training is drawn, too.
        images: Number of images of the batch that are drawn.
        what: Some of features, predictions, masks, channels and attention. What a
            recipe does not have, such as the masks of FGD, is left out.

    Raises:
        ValueError: If a number is below 1, ``what`` has an unknown name, or the model
            is no distiller.

    Example:
        >>> hook = DistillationVisualizationHook(interval=500, what=['features'])
        >>> [iteration for iteration in range(1200) if hook.is_due(iteration)]
        [0, 499, 999]
    """

    def __init__(
        self, interval: int = 1000, images: int = 1, what: Sequence[str] = KINDS
    ) -> None:
        if interval < 1 or images < 1:
            raise ValueError(
                'DistillationVisualizationHook: expected interval and images >= 1, got '
                f'{interval} and {images}'
            )
        unknown = sorted({what} if isinstance(what, str) else set(what) - set(KINDS))
        if unknown:
            raise ValueError(
                f'DistillationVisualizationHook: expected `what` as a list of some of '
                f'{list(KINDS)}, got {unknown}'
            )
        self.interval = interval
        self.images = images
        self.what = tuple(what)
        self._added: list[Observer] = []
        self._seen: Step | None = None
        self._drawn: list[Pictures] = []

    def is_due(self, iteration: int) -> bool:
        """Return whether an iteration, counted from 0, is drawn."""
        return iteration == 0 or (iteration + 1) % self.interval == 0

    def before_train(self, runner: Runner) -> None:
        """Check that there is something to draw."""
        model = _distiller(runner)
        if not isinstance(model, Distiller):
            raise ValueError(
                'DistillationVisualizationHook: expected a kdtoolbox.Distiller, got a '
                f'{type(model).__name__}; remove the hook from `custom_hooks`'
            )
        if isinstance(model, Pretrainer) and 'predictions' in self.what:
            others = [kind for kind in self.what if kind != 'predictions']
            raise ValueError(
                'DistillationVisualizationHook: a Pretrainer has no heads and predicts '
                f'nothing; set `what={others}`'
            )

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Observe the model's step if this iteration is due."""
        if is_main_process() and self.is_due(runner.iter):
            self._added = [partial(self._draw, runner)]
            _distiller(runner).observers += self._added

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Stop observing, draw predictions and hand all pictures to the visualizer."""
        if not self._added:
            return
        model = _distiller(runner)
        model.observers.remove(self._added.pop())
        if self._seen is not None and 'predictions' in self.what:
            note = f'{_note(runner)} The predictions are made after the iteration.'
            found = draw_models(model, self._seen, _meta(runner), note, self.images)
            for pictures, predicted in zip(self._drawn, found, strict=True):
                pictures |= predicted
        for number, pictures in enumerate(self._drawn):
            for name, picture in pictures.items():
                place = f'{name}_{number}'
                runner.visualizer.add_image(place, picture, runner.iter + 1)
        self._seen, self._drawn = None, []

    def _draw(self, runner: Runner, step: Step) -> None:
        model, note = _distiller(runner), _note(runner)
        self._drawn = draw_step(
            model, step, self.what, _meta(runner), note, self.images
        )
        # Without the wires, whose graph would stay in memory until the drawing ends.
        self._seen = Step(step.inputs, step.data_samples, {}, {}, {})


def _distiller(runner: Runner) -> Any:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _meta(runner: Runner) -> Mapping[str, Any]:
    return runner.visualizer.dataset_meta or {}


def _note(runner: Runner) -> str:
    return f'Iteration {runner.iter + 1} of the training.'
