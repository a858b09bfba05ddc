"""How time and memory of ours grow with rows, length and vocabulary. No peer: tables.

python bench.py scaling --steps 5 --output bench.json

rows: run_2_appendprompt.py on a CSV of so many pairs of short texts, nothing in the cache: seconds
to the end of the first step (reading, splitting, tokenising). length: its steps on 8 pairs whose
sides are that long. vocabulary: pretrain_bert.py (the model of `python bench.py mlm`) with so many
word pieces. Each point is a process of its own; --tasks length=512 measures one.
"""

import argparse
import contextlib
import csv
import itertools
import json
import os
import sys
from pathlib import Path

from benchmarks import (
    WARM_UP,
    Measured,
    mlm,
    preference,
    rates_of_run,
    run_side,
    startup,
    tokenising,
)

COUNTED = False
POINTS = {
    "rows": [1_000, 10_000, 100_000],
    "length": [64, 128, 256, 512],
    "vocabulary": [8_000, 30_522, 60_000],
}
QUICK = {"rows": [100, 200], "length": [16, 32]}


def run(arguments: argparse.Namespace) -> Measured:
    """A table a quantity."""
    measured = Measured()
    points = QUICK if arguments.quick else POINTS
    if "=" in arguments.tasks:
        axis, value = arguments.tasks.split("=")
        points = {axis: [int(value)]}
    for axis, values in points.items():
        table = []
        for value in values:
            arguments.tasks = f"{axis}={value}"
            point = {axis: value, **run_side("ours", arguments)}
            measured.runs.append(point)
            names = ("seconds to the first step", "seconds a step", "peak_memory_gib")
            table.append({name: point[name] for name in (axis, *names) if name in point})
            print(", ".join(f"{name} {number:,.2f}" for name, number in table[-1].items()))
        measured.tables[f"How ours grows with {axis}"] = table
    return measured


def ours(arguments: argparse.Namespace) -> dict:
    """One point."""
    axis, value = arguments.tasks.split("=")
    measure = {"rows": with_rows, "length": with_length, "vocabulary": with_vocabulary}[axis]
    return measure(arguments, int(value))


def write_pairs(path: Path, rows: int, words: int, arguments: argparse.Namespace) -> Path:
    """An arena file of distinct pairs whose sides have so many words of real text."""
    stream = itertools.cycle(" ".join(tokenising.known_texts(arguments)[:5000]).split())
    winners = ("winner_model_a", "winner_model_b", "winner_tie")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["id", "model_a", "model_b", "prompt", "response_a", "response_b", *winners]
        )
        for number in range(rows):
            texts = [" ".join(itertools.islice(stream, words)) for _ in range(2)]
            cells = [json.dumps([text]) for text in (f"Which is better, {number}?", *texts)]
            writer.writerow([number, "x", "y", *cells, *(int(number % 3 == k) for k in range(3))])
    return path


def with_rows(arguments: argparse.Namespace, rows: int) -> dict:
    arguments.data = str(write_pairs(arguments.folder / "rows.csv", rows, 20, arguments))
    os.environ["ABLATE_CACHE"] = str(arguments.folder / "cache")
    few = ["--max_length=64", "--stop_after=1", f"--val_frac={10 / rows}", f"--limit={rows}"]
    train(arguments, few)
    log = arguments.folder / "run/train/metrics/metrics.jsonl"  # one line, when the step ends
    return {"seconds to the first step": startup.since_start(log.stat().st_mtime)}


def with_length(arguments: argparse.Namespace, length: int) -> dict:
    rows = 10 * (arguments.steps + WARM_UP) + 50
    arguments.data = str(write_pairs(arguments.folder / "rows.csv", rows, length, arguments))
    train(arguments, ["--batch=8", f"--max_length={length}"])
    return {"seconds a step": 8 / rates_of_run(arguments.folder / "run")["examples_per_second"]}


def train(arguments: argparse.Namespace, more: list[str]) -> None:
    """run_2_appendprompt.py with some of preference's settings replaced."""
    import run_2_appendprompt
    from settings import parse_settings

    names = tuple(word.split("=")[0] for word in more)
    words = [word for word in preference.words(arguments) if not word.startswith(names)]
    config, given = parse_settings(run_2_appendprompt.Config, [*words, *more], "bench.py")
    with contextlib.redirect_stdout(sys.stderr):
        run_2_appendprompt.main(config, given)


def with_vocabulary(arguments: argparse.Namespace, size: int) -> dict:
    mlm.MLM["vocab_size"] = size
    rates = mlm.ours(arguments)
    return {"seconds a step": mlm.MLM["batch"] / rates["examples_per_second"]}
