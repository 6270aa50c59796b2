"""Measure time and memory of steps; part of tools/benchmark.py."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], Any]
STATISTICS = Path('/proc/stat')


def seconds_of(
    steps: Mapping[str, Step],
    clear: Step,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds of steps that run in turn, after two rounds of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 2):
        for name, step in steps.items():
            clear()
            start = clock()
            step()
            times[name].append(clock() - start)
    return {name: values[2:] for name, values in times.items()}


def peak_bytes(step: Step, clear: Step = int, device: str = 'cpu') -> int:
    """Return how far a step raises what torch's allocator holds, at its peak."""
    if device == 'cuda':
        return _measured_peak(step)
    # Every step allocates memory, but the profiler sometimes loses all events.
    for _ in range(5):
        clear()
        peak = _profiled_peak(step)
        if peak:
            return peak
    return 0


def _measured_peak(step: Step) -> int:
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() - held


def _profiled_peak(step: Step) -> int:
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


def quartiles_of(ratios: Sequence[float]) -> tuple[float, float]:
    """Return the lower and the upper quartile."""
    low, _, high = quantiles(ratios, n=4, method='inclusive')
    return low, high


@contextmanager
def others_load() -> Iterator[list[float]]:
    """Yield a list that gets the mean number of cores that other processes kept busy.

    It stays empty where there is no /proc.
    """
    load: list[float] = []
    if not STATISTICS.exists():
        yield load
        return
    start, busy, own = time.perf_counter(), _busy_seconds(), time.process_time()
    yield load
    others = _busy_seconds() - busy - (time.process_time() - own)
    load.append(max(0.0, others / (time.perf_counter() - start)))


def _busy_seconds() -> float:
    """Return the seconds that all cores together have worked since the start."""
    ticks = [int(x) for x in STATISTICS.read_text().splitlines()[0].split()[1:9]]
    idle, waiting = ticks[3:5]
    return (sum(ticks) - idle - waiting) / os.sysconf('SC_CLK_TCK')


def ratios_of(times: Mapping[str, list[float]], other: str) -> list[float]:
    """Return the ratios of a step's times to another's.

    Neighbouring runs are compared, because the load of the machine changes slowly.
    """
    return [a / b for a, b in zip(times['step'], times[other], strict=True)]


def ratio_of(times: Mapping[str, list[float]], other: str) -> float | None:
    """Return the median ratio of a step's time to another's, None without the other."""
    return median(ratios_of(times, other)) if other in times else None
