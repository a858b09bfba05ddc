"""Phase 1, the head on frozen blocks: features computed once beside blocks that run in each step.

python bench.py phase1 --repeats 3 --epochs 3 --threads 1

A small random GPT-2, 400 film reviews of at most 256 tokens; seconds of the whole of phase 1, the
computing of the features included. One pass over the rows can save nothing: the first run gains
with the passes, the next one from the features on disk.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import Line, Measured

SETTINGS = ["--task=reviews", "init=random", "size=tiny", "--limit=500", "--max_length=256"]
SETTINGS += ["--batch=16", "--micro_batch=16", "--lr=1e-3", "--page=false", "--crop=false"]


def phase_1(folder: Path, epochs: str, cached: bool) -> tuple[float, float]:
    """(seconds, mean of the last five losses) of phase 1 in a new run folder."""
    import core
    import finetune_gpt2
    import runs
    from experiments.classification import Classification
    from experiments.phases import with_recipe
    from settings import parse_settings

    words = [*SETTINGS, f"--head_epochs={epochs}", f"--cache_features={cached}".lower()]
    config, _ = parse_settings(finetune_gpt2.Config, [*words, f"--out={folder}"], "bench.py")
    config = with_recipe(config, False)
    with core.distributed(config) as world, runs.Run(config, world) as run:
        experiment = Classification(config, world)
        state = experiment.build_state(experiment.load_model())
        started, losses = time.perf_counter(), []
        for _ in range(experiment.phase_2_step):
            experiment.begin_step(state)
            losses.append(core.train_step(state, experiment.loss_sum)["train_loss"])
        run.end("stopped", "measured")
        return time.perf_counter() - started, statistics.mean(losses[-5:])


def run(arguments: argparse.Namespace) -> Measured:
    """How many times faster the first and the next run are."""
    import torch

    torch.set_num_threads(arguments.threads)
    sides = {"each step": [], "first": [], "again": []}
    losses = []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        for repeat in range(arguments.repeats):
            os.environ["ABLATE_CACHE"] = str(Path(folder) / f"cache_{repeat}")
            for side in sides:
                out = Path(folder) / f"{repeat} {side}"
                seconds, loss = phase_1(out, arguments.epochs, side != "each step")
                sides[side].append(seconds)
                losses.append(loss)
    assert max(losses) - min(losses) < 1e-3, f"the losses differ: {losses}"
    measured = Measured(runs=[sides])
    for side in ("first", "again"):
        before, after = (statistics.median(sides[name]) for name in ("each step", side))
        measured.lines.append(
            Line(
                what=f"phase1, {arguments.epochs} passes, {side} run",
                peer="blocks in each step",
                unit="speed",
                ratios=[a / b for a, b in zip(sides["each step"], sides[side], strict=True)],
                note=f"{before:.1f} s against {after:.2f} s, loss {losses[-1]:.3f}",
            )
        )
    return measured
