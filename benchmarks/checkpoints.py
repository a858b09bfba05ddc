"""What checkpoints cost: one run in one process, blocks of steps that begin with one and without.

python bench.py checkpoints --repeats 5 --steps 10
python bench.py checkpoints --repeats 20 --steps 10 --threads 1      # a core is left to the writer

The steps of `python bench.py preference`; what --save_every with as many steps costs. A block has a
few of them, always of the same batches, and ends when its checkpoint is whole on the disk: steps
behind that are alike with and without, and only add to the noise of a machine that drifts. The
thread that writes needs a core: on a machine whose cores all compute it takes its seconds from
them.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import WARM_UP, Line, Measured, preference

BLOCK = 2  # steps, in which a checkpoint is written many times over


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
    used: dict[bool, list[float]] = {True: [], False: []}  # CPU seconds of the training thread
    held, waited = [], []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        arguments.folder = Path(folder)
        words = preference.words(arguments)
        config, _ = parse_settings(run_2_appendprompt.Config, [*words, "--stop_after=null"])
        with core.distributed(config) as world, runs.Run(config, world) as under_test:
            experiment = Preference(config, world, under_test.folder)
            state = experiment.build_state(experiment.load_encoder())
            under_test.resume(state, experiment)
            first = 0
            for block in range(-1, 2 * arguments.repeats):
                saves = bool(block % 2) == bool(block // 2 % 2)  # on off off on on off off …
                state.loader.seek(first)
                started, worked = time.perf_counter(), time.thread_time()
                if saves:
                    under_test.save(state)
                begun = time.perf_counter()
                for _ in range(WARM_UP if block < 0 else BLOCK):
                    under_test.after_step(state, core.train_step(state, experiment.loss_sum))
                trained = time.perf_counter()
                under_test.settle()
                ended = time.perf_counter()
                if block >= 0:
                    times[saves].append(ended - started)
                    used[saves].append(time.thread_time() - worked)
                if block < 0:
                    first = state.loader.position
                if block >= 0 and saves:
                    held.append(begun - started)
                    waited.append(ended - trained)
            newest = sorted((under_test.folder / "train/weights").glob("step_*"))[-1]
            size = sum(path.stat().st_size for path in newest.iterdir())
            under_test.end("stopped", "measured")
    step = statistics.median(times[False]) / BLOCK
    ratios, cpu = (
        [
            1 + (on - off) / (arguments.steps / BLOCK * off)
            for on, off in zip(each[True], each[False], strict=True)
        ]
        for each in (times, used)
    )
    line = Line(
        what=f"a checkpoint every {arguments.steps} steps",
        peer="the same run without",
        unit="time of a step",
        ratios=ratios,
        note=f"{size / 1e6:.0f} MB, of which the copy takes {statistics.median(held):.3f} s and "
        f"the end of the writing {statistics.median(waited):.3f} s of training; {step:.2f} s a "
        f"step on {arguments.threads} of {os.cpu_count()} cores; mean ratio {mean_of(ratios)}, of "
        f"the training thread's CPU seconds {mean_of(cpu)}",
    )
    return Measured(
        [line],
        [
            {"with": times[True], "without": times[False], "held": held, "waited": waited},
            {"with_cpu": used[True], "without_cpu": used[False]},
        ],
    )


def mean_of(ratios: list[float]) -> str:
    """The mean and its interval of 95 %, of pairs that are taken to be independent."""
    mean = statistics.mean(ratios)
    if len(ratios) < 2:
        return f"{mean:.3f}"
    from scipy.stats import t

    half = t.ppf(0.975, len(ratios) - 1) * statistics.stdev(ratios) / len(ratios) ** 0.5
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"
