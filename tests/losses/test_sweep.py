"""All losses over random shapes, boxes, labels, precisions and values.

The fast tests check one scene, those marked e2e many. The scenes are the same in each
run; KDTOOLBOX_SWEEP=500 tries 500 new ones instead.
"""

import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from pkgutil import resolve_name
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import (
    HealthCheck,
    assume,
    currently_in_test_context,
    given,
    seed,
    settings,
)
from sweep_cases import CASES, FURTHER, SPECIAL, Case
from sweep_runs import build, run
from sweep_scenes import SITUATIONS, USUAL, Inputs, Scene, make_inputs, scenes
from torch import Tensor

THOROUGH = int(os.environ.get('KDTOOLBOX_SWEEP', 0))
every_loss = pytest.mark.parametrize('name', CASES)
one_scene_or_many = pytest.mark.parametrize(
    'many', [False, pytest.param(True, marks=pytest.mark.e2e)], ids=['one', 'many']
)
Check = Callable[[str, Case, Scene], None]


def sweep(name: str, check: Check, examples: int) -> None:
    """Check a loss on random scenes, or on the usual one if `examples` is 1."""
    cases = CASES[name]
    if examples == 1:
        check(name, cases[0], cases[0].prepare(USUAL))
        return

    @settings(
        max_examples=THOROUGH or max(examples // cases[0].cost, 2),
        derandomize=not THOROUGH,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(scene=scenes())
    def check_scene(scene: Scene) -> None:
        case = cases[scene.variant % len(cases)]
        check(name, case, case.prepare(scene))

    if not THOROUGH:
        # Each loss has its own scenes, the same in each run.
        seed(zlib.crc32(name.encode()))(check_scene)
    check_scene()


def terms_of(name: str, case: Case, scene: Scene, inputs: Inputs) -> dict[str, Tensor]:
    """Run a new loss."""
    with torch.random.fork_rng():
        loss = build(name, case, scene, inputs.wires['student'][0].dtype)
        return run(loss, scene, inputs)


def gradients_of(
    name: str, case: Case, scene: Scene, inputs: Inputs
) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
    """Return the terms and the gradients of the student's wires."""
    wires = {
        key: [
            x.clone().requires_grad_() if x.is_floating_point() else x for x in levels
        ]
        for key, levels in inputs.wires.items()
    }
    terms = terms_of(name, case, scene, replace(inputs, wires=wires))
    shown = [terms[key] for key in case.shown or terms]
    torch.stack(shown).sum().backward()
    student = {key: wires[key] for key in wires if key.startswith('student')}
    for key in wires.keys() - student.keys() - {'classifier'} | set(case.fixed):
        assert all(x.grad is None for x in wires[key]), f'{key} gets a gradient'
    return terms, {
        key: [x.grad for x in levels]
        for key, levels in student.items()
        if key not in case.fixed
    }


class Held:
    """Replays in all later runs what a function returned in the first run.

    Args:
        target: The path of the function; empty for none.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.results: list[Any] = []

    def run(self, step: Callable) -> Any:
        if not self.target:
            return step()
        function, replay = resolve_name(self.target), iter(list(self.results))

        def held(*args: Any, **options: Any) -> Any:
            result = next(replay, None)
            if result is None:
                result = function(*args, **options)
                self.results.append(detached(result))
            return result

        with mock.patch(self.target, held):
            return step()


def detached(result: Tensor | tuple[Tensor, ...]) -> Any:
    if isinstance(result, tuple):
        return tuple(x.detach() for x in result)
    return result.detach()


def assert_slope(name: str, case: Case, scene: Scene) -> None:
    """Compare the gradient with finite differences along a random direction."""
    scene = replace(scene, dtype=torch.float64, values=('normal', 'normal'))
    inputs, held = make_inputs(scene, case.example.names), Held(case.held)
    terms, gradients = held.run(lambda: gradients_of(name, case, scene, inputs))
    generator = torch.Generator().manual_seed(scene.seed)
    directions = {
        key: [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in levels]
        for key, levels in gradients.items()
    }

    def value(step: float) -> float:
        moved = {
            key: [x + step * d for x, d in zip(inputs.wires[key], levels, strict=True)]
            for key, levels in directions.items()
        }
        changed = replace(inputs, wires=inputs.wires | moved)
        found = held.run(lambda: terms_of(name, case, scene, changed))
        return float(sum(found[key].detach() for key in case.shown or found))

    products = torch.cat(
        [
            (gradient * direction).flatten()
            for key, levels in directions.items()
            for gradient, direction in zip(gradients[key], levels, strict=True)
        ]
    )
    here, step = value(0.0), 1e-6
    ahead, behind = (value(step) - here) / step, (here - value(-step)) / step
    scale = abs(ahead) + abs(behind) + float(products.abs().sum())
    # Rounding of a value is large when it is divided by the step.
    scale += 1e-5 * abs(here) + 1e-5 * case.scale
    if currently_in_test_context():
        # Skip scenes with a kink or a jump between the two points.
        assume(abs(ahead - behind) <= 1e-4 * scale)
    assert abs((ahead + behind) / 2 - float(products.sum())) <= 1e-4 * scale


def assert_finite(name: str, case: Case, scene: Scene) -> None:
    """Check the values and gradients of a loss in one precision."""
    inputs = make_inputs(scene, case.example.names)
    terms, gradients = gradients_of(name, case, scene, inputs)
    largest = max(
        (float(x.abs().max()) for x in inputs.wires['student'] if x.numel()), default=0
    )
    rounding = 1e-6 * case.scale * max(1, largest) ** 2
    for key, term in terms.items():
        assert term.shape == (), key
        assert term.isfinite(), key
        assert case.signed or term >= -rounding, f'{key}: {term}'
    wide, expected = torch.promote_types(scene.dtype, torch.float32), gradients
    if wide != scene.dtype:
        _, expected = gradients_of(name, case, scene, inputs.to(wide))
    for key, levels in gradients.items():
        for found, goal in zip(levels, expected[key], strict=True):
            assert found.dtype == scene.dtype
            assert goal.isfinite().all()
            # Half precision gives the same gradient up to rounding.
            goal = goal.to(scene.dtype)
            torch.testing.assert_close(found, goal, rtol=1e-2, atol=1e-6)


def test_special_cases_belong_to_registered_losses() -> None:
    assert len(CASES) > 20
    assert {*SPECIAL, *FURTHER} <= set(CASES)


@one_scene_or_many
@every_loss
def test_every_loss_is_finite_with_the_right_gradient_over_shapes_and_boxes_and_dtypes(
    name: str, many: bool
) -> None:
    def check(name: str, case: Case, scene: Scene) -> None:
        for dtype, *values, pixels in SITUATIONS:
            situation = replace(scene, dtype=dtype, values=tuple(values), pixels=pixels)
            assert_finite(name, case, case.prepare(situation))
        assert_finite(name, case, scene)
        assert_slope(name, case, scene)

    sweep(name, check, 8 if many else 1)


@one_scene_or_many
@every_loss
def test_the_order_of_the_images_changes_no_loss(name: str, many: bool) -> None:
    def check(name: str, case: Case, scene: Scene) -> None:
        scene = replace(scene, dtype=torch.float64, values=('normal', 'normal'))
        inputs = make_inputs(scene, case.example.names)
        expected = terms_of(name, case, scene, inputs)
        found = terms_of(name, case, scene, inputs.turned())
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)

    if all(case.random for case in CASES[name]):
        pytest.skip('draws other numbers for each image')
    sweep(name, check, 6 if many else 1)


@one_scene_or_many
@every_loss
def test_precisions_agree(name: str, many: bool) -> None:
    def check(name: str, case: Case, scene: Scene) -> None:
        # Losses without rows return the logarithm of the least number of a precision.
        scene = replace(scene, values=('normal', 'normal'), rows=max(scene.rows, 1))
        inputs = make_inputs(scene, case.example.names)
        single = terms_of(name, case, scene, inputs.to(torch.float32))
        precisions = {scene.dtype: 1e-2, torch.float64: case.precise}
        precisions.pop(torch.float32, None)
        if case.random:
            # Other numbers are drawn in double precision.
            del precisions[torch.float64]
        for dtype, rtol in precisions.items():
            found = terms_of(name, case, scene, inputs.to(dtype))
            for key, term in found.items():
                goal, atol = single[key].to(term.dtype), 1e-6 * case.scale
                torch.testing.assert_close(term, goal, rtol=rtol, atol=atol)

    sweep(name, check, 6 if many else 1)
