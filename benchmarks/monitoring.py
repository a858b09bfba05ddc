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

from benchmarks import WARM_UP, Line, Measured


class Counted:
    """A monitor that can be switched off, and the seconds that its calls took."""

    def __init__(self, monitor: Any):
        self.monitor, self.seconds, self.on = monitor, 0.0, True

    def sample(self, *moments: float) -> dict[str, float]:
        if not self.on:
            return {}
        started = time.perf_counter()
        amounts = self.monitor.sample(*moments)
        self.seconds += time.perf_counter() - started
        return amounts

    def add(self, **amounts: float) -> None:
        if self.on:
            self.monitor.add(**amounts)


def run(arguments: argparse.Namespace) -> Measured:
    """The ratio of the time a step takes, with monitoring to without."""
    import torch

    import core
    import finetune_gpt2
    import runs
    from experiments.classification import Classification
    from experiments.phases import with_recipe
    from settings import parse_settings

    torch.set_num_threads(arguments.threads)
    total = 2 * arguments.repeats * arguments.steps + WARM_UP
    words = ["--task=reviews", "init=random", "size=tiny", "--max_length=32", "--batch=8"]
    words += ["--limit=600", "--head_epochs=0", "--eval_every=1000000", "--page=false"]
    config, _ = parse_settings(finetune_gpt2.Config, words, "bench.py")
    times: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        config = dataclasses.replace(config, out=str(Path(folder) / "run"), epochs=float(total))
        config = with_recipe(config, False)
        with core.distributed(config) as world:
            under_test = runs.Run(config, world)
            counted = under_test.monitor = Counted(under_test.monitor)  # before its log has it
            with under_test:
                experiment = Classification(config, world)
                state = experiment.build_state(experiment.load_model())
                under_test.resume(state, experiment)
                for block in range(-1, 2 * arguments.repeats):
                    counted.on = bool(block % 2) == bool(block // 2 % 2)  # on off off on on off …
                    started = time.perf_counter()
                    for _ in range(WARM_UP if block < 0 else arguments.steps):
                        experiment.begin_step(state)
                        under_test.after_step(state, core.train_step(state, experiment.loss_sum))
                    if block >= 0:
                        times[counted.on].append(time.perf_counter() - started)
                under_test.end("stopped", "measured")
    ratios = [on / off for on, off in zip(times[True], times[False], strict=True)]
    step = sum(times[True]) / arguments.repeats / arguments.steps
    note = f"{1000 * step:.1f} ms a step; inside the monitor "
    note += f"{counted.seconds / sum(times[True]):.3%} of the time"
    if len(ratios) > 1:
        first, _, third = statistics.quantiles(ratios, n=4)
        note = f"quartiles {first:.3f} to {third:.3f}; {note}"
    line = Line("monitoring", "the same run without", "time of a step", ratios, note=note)
    return Measured([line], [{"with": times[True], "without": times[False]}])
