"""What monitoring costs: one run in one process, blocks of steps with it and without, in turns.

python bench.py monitoring --repeats 20 --steps 20 --threads 1

A small GPT-2 classifies reviews. Beside the ratio, which other work on the machine blurs, the
seconds inside the monitor itself, as a share of the training time.
"""

import argparse
import contextlib
import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import WARM_UP, Found, Line


class Counted:
    """A monitor, and the seconds that its calls took."""

    def __init__(self, monitor: Any):
        self.monitor, self.seconds = monitor, 0.0

    def sample(self, *moments: float) -> dict[str, float]:
        started = time.perf_counter()
        found = self.monitor.sample(*moments)
        self.seconds += time.perf_counter() - started
        return found

    def add(self, **amounts: float) -> None:
        self.monitor.add(**amounts)


def run(arguments: argparse.Namespace) -> Found:
    """The ratio of the time a step takes, with monitoring to without."""
    import torch

    import core
    import finetune_gpt2
    import runs
    from settings import parse_settings
    from tasks import texts, tuning

    torch.set_num_threads(arguments.threads)
    total = 2 * arguments.repeats * arguments.steps + WARM_UP
    words = ["--task=reviews", "init=random", "size=tiny", "--max_length=32", "--batch=8"]
    words += ["--limit=600", "--head_epochs=0", "--eval_every=1000000", "--page=false"]
    config, _ = parse_settings(finetune_gpt2.Config, words, "bench.py")
    times: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        config = dataclasses.replace(config, out=str(Path(folder) / "run"), epochs=float(total))
        config = tuning.with_recipe(config, False)
        with core.distributed(config) as world, runs.Run(config, world) as under_test:
            task = texts.Classification(config, world, under_test)
            state = task.build_state(task.load_model())
            under_test.resume(state, task.evaluate)
            counted = Counted(under_test.monitor)
            for block in range(-1, 2 * arguments.repeats):
                watched = bool(block % 2) == bool(block // 2 % 2)  # on off off on on off off …
                under_test.monitor = counted if watched else None
                started = time.perf_counter()
                for _ in range(WARM_UP if block < 0 else arguments.steps):
                    task.begin_step()
                    under_test.after_step(state, core.train_step(state, task.loss_sum))
                if block >= 0:
                    times[watched].append(time.perf_counter() - started)
            under_test.status, under_test.exit_reason = "stopped", "measured"
    ratios = [on / off for on, off in zip(times[True], times[False], strict=True)]
    step = sum(times[True]) / arguments.repeats / arguments.steps
    note = f"{1000 * step:.1f} ms a step; inside the monitor "
    note += f"{counted.seconds / sum(times[True]):.3%} of the time"
    if len(ratios) > 1:
        first, _, third = statistics.quantiles(ratios, n=4)
        note = f"quartiles {first:.3f} to {third:.3f}; {note}"
    line = Line("monitoring", "the same run without", "time of a step", ratios, note=note)
    return Found([line], [{"with": times[True], "without": times[False]}])
