"""`predict`: a saved preference run answers new rows, for a submission or one pair at a time."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

import console
import core
from commands.verdicts import note_failures
from data import arena
from data.records import require_one_part
from evaluation.metrics import PREFERENCE_CLASSES as CLASSES
from experiments.saved_pairs import open_run
from files import csv_text, write_text
from models import pretrained
from settings import Section


@dataclass
class PredictConfig(Section):
    """Settings of `predict`: a saved run answers new rows."""

    WRITES_A_FILE = True
    ONLY_WITH = {
        "output": "data",
        "skip_bad_rows": "data",
        "prompt": "data=null",
        "response_a": "data=null",
        "response_b": "data=null",
    }

    run_folder: str = ""
    """run folder (or a folder of saved weights)"""
    data: str | None = None
    """CSV, JSONL or parquet of rows; winners are not needed"""
    output: str = "submission.csv"
    """where the probabilities for --data go"""
    prompt: str | None = None
    """one prompt, with --response_a and --response_b; without --data or these, a JSON object
    a line is read from standard input"""
    response_a: str | None = None
    """one answer A"""
    response_b: str | None = None
    """one answer B"""
    weights: Literal["best", "final"] | None = None
    """which weights of the run; null: those that it was tested with"""
    calibrated: bool = False
    """divide the logits by the temperature that the run fitted on validation"""
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"] = "auto"
    """where to compute"""
    skip_bad_rows: bool = False
    """leave out rows that cannot be read, listing them beside --output"""


class Predictor:
    """The answers of a saved run, (rows, 3) of A, B, tie."""

    def __init__(self, config: PredictConfig, world: core.World | None = None):
        """world: of processes that answer together; None: this one alone."""
        if not config.run_folder:
            raise ValueError("predict needs --run_folder FOLDER")
        world = world or core.single_world(config.device)
        if world.rank == 0:
            note_failures(config.run_folder)
        weights = config.weights or pretrained.tested_weights(config.run_folder)
        self.answer = open_run(config.run_folder, world, weights, config.calibrated)
        self.classes = CLASSES[: self.answer.classes]
        self.precision = self.answer.precision

    def __call__(self, rows: Sequence[arena.PairRow]) -> np.ndarray:
        """Probabilities (rows, classes) of A, B and, where the run knows them, ties."""
        return self.answer(rows)

    def both_orders(self, rows: Sequence[arena.PairRow]) -> tuple[np.ndarray, np.ndarray]:
        """p(A, B) and p(B, A), each (rows, classes), uncalibrated."""
        return self.answer.both_orders(rows)


def with_ties(p: np.ndarray) -> np.ndarray:
    """p (rows, classes) as (rows, 3): of a run that knows no ties they have 0."""
    return np.pad(p, ((0, 0), (0, len(CLASSES) - p.shape[1])))


def predict(config: PredictConfig) -> None:
    """submission.csv from rows without winners, one pair from the command line, or JSON lines."""
    if config.data is not None:
        require_one_part(config.data)
        pairs = arena.read_pairs(  # before the model, whose imports are slow
            config.data,
            require_labels=False,
            skip_bad_rows=config.skip_bad_rows,
            bad_rows_file=Path(config.output).with_suffix(".bad_rows.csv"),
        )
        predictor = Predictor(config)
        for line in (pairs.reading, *arena.said_repairs(pairs.repairs)):
            console.say(line)
        ids = [row.id for row in pairs.rows]
        arena.write_submission(config.output, ids, with_ties(predictor(pairs.rows)))
        console.say(f"{len(ids):,} rows: {config.output}")
        if pairs.drawn:  # the sides are those of the run's predictions.csv, and in no other file
            sides = Path(config.output).with_suffix(".chosen.csv")
            lines = [(row.id, CLASSES[row.label]) for row in pairs.rows]
            write_text(sides, csv_text(("id", "chosen"), lines))
            console.say(f"on which side each chosen answer stood, A or B: {sides}")
        return
    predictor = Predictor(config)
    if config.response_a is not None and config.response_b is not None:
        record = {"prompt": config.prompt or "", "response_a": config.response_a}
        lines = [json.dumps(record | {"response_b": config.response_b})]
    elif config.response_a is None and config.response_b is None and config.prompt is None:
        lines = sys.stdin
    else:
        raise ValueError("predict: give --response_a and --response_b (and --prompt), or --data")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            row = arena.read_json_row(line, f"standard input, line {number}")
            p = predictor([row])[0]
            names = predictor.classes
            answer = {f"p_{name}": round(float(p[k]), 6) for k, name in enumerate(names)}
            console.answer(json.dumps({"prediction": names[int(p.argmax())], **answer}))
