"""From the command to the first step, in seconds.

python bench.py startup --repeats 5

run_2_appendprompt.py on 400 pairs of film reviews in a CSV file, at most 64 tokens a side, 32 pairs
a step, beside _minimal_trainer.py on the same file. Each side runs once uncounted, so that caches
are warm. Ours evaluates the untrained model before its first step. The note says when the first
batch reached the model, of that evaluation or of the step; the rate is to the end of the step.
"""

import argparse
import contextlib
import csv
import sys
import time
from typing import Any

import files
from benchmarks import lines_of_run, preference, run_side

WHAT, PEER = "command to first step", "Trainer in a minimal script"
RATE, TOLERANCE = "seconds", 0.1  # both losses are of an untrained head on 32 pairs, of other rows
COUNTED = False
ROWS = 400


def prepare(arguments: argparse.Namespace) -> None:
    """Writes the rows and runs each side once."""
    from data import arena, reviews

    if arguments.data == "hub":
        rows, _ = reviews.load_review_pairs()
    else:
        rows = arena.read_pairs(arguments.data, skip_bad_rows=True).rows
    path = files.cache_folder() / "startup_pairs.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "response_a", "response_b", "winner"])
        for row in rows[:ROWS]:
            texts = ("\n".join(turns) for turns in (row.prompt, row.response_a, row.response_b))
            writer.writerow([*texts, ("A", "B", "tie")[row.label]])
    arguments.data = str(path)
    for side in ("ours", "peer"):
        run_side(side, arguments)


def words(arguments: argparse.Namespace) -> list[str]:
    given = [w for w in preference.words(arguments) if not w.startswith(("--limit", "--stop"))]
    return [*given, "--max_length=64", "--stop_after=1", "--split=row"]


def since_start(moment: float) -> float:
    """Seconds from the start of this process to a moment in Unix time."""
    import psutil

    return moment - psutil.Process().create_time()


def first_moments() -> tuple[list[float], list[float]]:
    """Where the moments will stand at which the first batch reaches a model, and at which its
    optimizer has made a step."""
    from torch.nn.modules import module
    from torch.optim import optimizer

    begun: list[float] = []
    ended: list[float] = []

    def note(*_: Any) -> None:
        begun.append(time.time())
        hook.remove()

    hook = module.register_module_forward_pre_hook(note)
    optimizer.register_optimizer_step_post_hook(lambda *_: ended.append(time.time()))
    return begun, ended


def ours(arguments: argparse.Namespace) -> dict:
    import run_2_appendprompt
    from settings import parse_settings

    begun, ended = first_moments()
    config, given = parse_settings(run_2_appendprompt.Config, words(arguments), "bench.py")
    with contextlib.redirect_stdout(sys.stderr):
        run_2_appendprompt.main(config, given)
    return figures(begun, ended, lines_of_run(arguments.folder / "run")[0]["train_loss"])


def peer(arguments: argparse.Namespace) -> dict:
    begun, ended = first_moments()
    from benchmarks import _minimal_trainer
    from models.pretrained import find_model

    model, output = find_model(arguments.model), str(arguments.folder / "peer")
    with contextlib.redirect_stdout(sys.stderr):
        loss = _minimal_trainer.main(arguments.data, model, output)
    return figures(begun, ended, loss)


def figures(begun: list[float], ended: list[float], loss: float) -> dict:
    return {"seconds": since_start(ended[0]), "begun": since_start(begun[0]), "loss": loss}
