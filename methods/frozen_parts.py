"""Whether what frozen layers answer is kept and read, or computed in each step: both are timed.

    times = time_both(read, run, device)       # each called with the numbers of a few batches
    times.faster                               # KEPT or RUNS

Kept states differ from computed ones in last digits, for they are computed in other company: what
was chosen is recorded, and holds when the run is continued.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from device import pins

KEPT, RUNS = "kept", "runs"
BATCHES = 5  # the first of them warms up


@dataclass
class Times:
    """Seconds a batch."""

    kept: float
    runs: float

    @property
    def faster(self) -> str:
        return KEPT if self.kept <= self.runs else RUNS

    def __str__(self) -> str:
        milliseconds = f"{1000 * self.kept:.1f} ms to read them, {1000 * self.runs:.1f} to run it"
        return f"{milliseconds}, a batch"


def time_both(
    read: Callable[[int], object], run: Callable[[int], object], device: torch.device
) -> Times:
    """By turns, until the device has done it; the medians."""
    seconds: dict[str, list[float]] = {KEPT: [], RUNS: []}
    for number in range(BATCHES):
        for name, action in ((KEPT, read), (RUNS, run)):
            started = time.perf_counter()
            action(number)
            if pins(device):
                getattr(torch, device.type).synchronize()
            seconds[name].append(time.perf_counter() - started)
    return Times(*(statistics.median(seconds[name][1:]) for name in (KEPT, RUNS)))
