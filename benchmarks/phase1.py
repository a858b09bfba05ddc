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

from benchmarks import Found, Line

SETTINGS = ["--task=reviews", "init=random", "size=tiny", "--limit=500", "--max_length=256"]
SETTINGS += ["--batch=16", "--micro_batch=16", "--lr=1e-3", "--page=false", "--crop=false"]


def phase_1(folder: Path, epochs: str, cached: bool) -> tuple[float, float]:
    """(seconds, mean of the last five losses) of phase 1 in a new run folder."""
    import core
    import finetune_gpt2
    import runs
    from settings import parse_settings
    from tasks import texts, tuning

    words = [*SETTINGS, f"--head_epochs={epochs}", f"--cache_features={cached}".lower()]
    config, _ = parse_settings(finetune_gpt2.Config, [*words, f"--out={folder}"], "bench.py")
    config = tuning.with_recipe(config, False)
    with core.distributed(config) as world, runs.Run(config, world) as run:
        task = texts.Classification(config, world, run)
        state = task.build_state(task.load_model())
        started, losses = time.perf_counter(), []
        for _ in range(task.phase_2_step):
            task.begin_step()
            losses.append(core.train_step(state, task.loss_sum)["train_loss"])
        run.status, run.exit_reason = "stopped", "measured"
        return time.perf_counter() - started, statistics.mean(losses[-5:])


def run(arguments: argparse.Namespace) -> Found:
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
    found = Found(runs=[sides])
    for side in ("first", "again"):
        before, after = (statistics.median(sides[name]) for name in ("each step", side))
        found.lines.append(
            Line(
                what=f"phase1, {arguments.epochs} passes, {side} run",
                peer="blocks in each step",
                unit="speed",
                ratios=[a / b for a, b in zip(sides["each step"], sides[side], strict=True)],
                note=f"{before:.1f} s against {after:.2f} s, loss {losses[-1]:.3f}",
            )
        )
    return found
