"""What checkpoints cost: one run in one process, blocks of steps that end with one and without.

python bench.py checkpoints --repeats 5 --steps 20

The steps of `python bench.py preference`; what --save_every with as many steps costs. Beside the
ratio, which other work on the machine blurs, the seconds inside saving as a share of the time.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import WARM_UP, Line, Measured, preference

GOAL = 0.02  # of the time


def run(arguments: argparse.Namespace) -> Measured:
    """The ratio of the time of a step, with saving to without."""
    import torch

    import core
    import run_2_appendprompt
    import runs
    from experiments.preference import Preference
    from settings import parse_settings

    torch.set_num_threads(arguments.threads)
    times: dict[bool, list[float]] = {True: [], False: []}
    saving = []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        arguments.folder = Path(folder)
        words = preference.words(arguments)
        config, _ = parse_settings(run_2_appendprompt.Config, [*words, "--stop_after=null"])
        with core.distributed(config) as world, runs.Run(config, world) as under_test:
            experiment = Preference(config, world, under_test.folder)
            state = experiment.build_state(experiment.load_encoder())
            under_test.resume(state, experiment)
            for block in range(-1, 2 * arguments.repeats):
                saves = bool(block % 2) == bool(block // 2 % 2)  # on off off on on off off …
                started = time.perf_counter()
                for _ in range(WARM_UP if block < 0 else arguments.steps):
                    under_test.after_step(state, core.train_step(state, experiment.loss_sum))
                trained = time.perf_counter()
                if saves:
                    under_test.save(state)
                if block >= 0:
                    times[saves].append(time.perf_counter() - started)
                    saving += [time.perf_counter() - trained] if saves else []
            under_test.end("stopped", "measured")
    step = (sum(times[True]) + sum(times[False]) - sum(saving)) / arguments.repeats
    step /= 2 * arguments.steps
    save = statistics.median(saving)
    line = Line(
        what=f"a checkpoint every {arguments.steps} steps",
        peer="the same run without",
        unit="time of a step",
        ratios=[on / off for on, off in zip(times[True], times[False], strict=True)],
        note=f"inside saving {save / (save + arguments.steps * step):.2%} of the time "
        f"({save:.2f} s a checkpoint, {step:.2f} s a step: {GOAL:.0%} at one every "
        f"{save / (GOAL * step):.0f} steps)",
    )
    return Measured([line], [{"with": times[True], "without": times[False], "saving": saving}])
