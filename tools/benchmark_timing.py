"""Measure time and memory of steps; part of tools/benchmark.py."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from torch.profiler import ProfilerActivity, profile

Step = Callable[[], Any]


def seconds_of(steps: Mapping[str, Step], clear: Step, repeats: int) -> dict:
    """Return the seconds of steps that run in turn, after two rounds of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 2):
        for name, step in steps.items():
            clear()
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return {name: values[2:] for name, values in times.items()}


def peak_bytes(step: Step) -> int:
    """Return how far a step raises what torch's CPU allocator holds, at its peak."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    events = [
        e for e in trace.profiler.kineto_results.events() if e.name() == '[memory]'
    ]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def ratios_of(times: Mapping[str, list[float]], other: str) -> list[float]:
    """Return the ratios of a step's times to another's.

    Neighbouring runs are compared, because the load of the machine changes slowly.
    """
    return [a / b for a, b in zip(times['step'], times[other], strict=True)]


def ratio_of(times: Mapping[str, list[float]], other: str) -> float | None:
    """Return the median ratio of a step's time to another's, None without the other."""
    return median(ratios_of(times, other)) if other in times else None
