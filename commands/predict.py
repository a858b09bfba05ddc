"""`predict`: a saved preference run answers new rows, for a submission or one pair at a time."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import console
import core
from commands.verdicts import note_failures
from data import arena
from data import pairs as pair_data
from data.pairs import PairData
from data.tokens import Ragged
from device import autocast, choose_attention, choose_precision
from evaluation import metrics
from evaluation.metrics import PREFERENCE_CLASSES as CLASSES
from experiments.preference import predict_pairs
from files import damage
from models import pairs, pretrained


@dataclass
class PredictConfig:
    """Settings of `predict`: a saved run answers new rows."""

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
    weights: Literal["best", "final"] = "best"
    """which weights of the run"""
    calibrated: bool = False
    """divide the logits by the temperature that the run fitted on validation"""
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"] = "auto"
    """where to compute"""
    skip_bad_rows: bool = False
    """leave out rows that cannot be read, listing them beside --output"""


class Predictor:
    """A saved run, opened again."""

    def __init__(self, config: PredictConfig):
        if not config.run_folder:
            raise ValueError("predict needs --run_folder FOLDER")
        folder = Path(config.run_folder)
        if (folder / "train/weights").is_dir():
            folder = folder / "train/weights" / config.weights
        if problem := damage(folder):
            raise ValueError(f"{folder} is no whole folder of saved weights ({problem})")
        note_failures(config.run_folder)
        self.facts = json.loads((folder / "preference.json").read_text())
        self.world = core.single_world(config.device)
        model_config = pretrained.load_config(str(folder))
        machine, kernels = self.world.machine, pretrained.kernels_of(model_config)
        device = self.world.device.type
        precision = self.facts.get("precision", "auto")  # the run's own, for the run's own answers
        self.precision = choose_precision(precision, device, machine, kernels)
        attention = choose_attention("auto", device, self.precision, machine, kernels)
        self.tokenizer = pretrained.load_tokenizer(str(folder), model_config)
        encoder = pretrained.load_encoder(str(folder), attention=attention)
        pretrained.read_first_token_alone(encoder)
        self.classes = tuple(self.facts.get("classes", CLASSES))  # older runs: three
        hidden, classes = encoder.config.hidden_size, len(self.classes)
        head = pairs.build_head(self.facts["head"], hidden, classes=classes)
        self.model = core.PairClassifier(encoder, head)
        pairs.restore_model(self.model, folder)
        self.model.to(self.world.device).eval()
        self.temperature = 1.0
        if config.calibrated:
            saved = json.loads((Path(config.run_folder) / "test/metrics/metrics.json").read_text())
            if saved["tested_with"] != config.weights:
                raise ValueError(
                    f"--calibrated: the temperature is that of the {saved['tested_with']} weights, "
                    f"not of the {config.weights} ones (--weights)"
                )
            self.temperature = saved["temperature"]

    def __call__(self, rows: Sequence[arena.PairRow]) -> np.ndarray:
        """Probabilities (rows, classes) of A, B and, where the run knows them, ties."""
        p, _ = self.both_orders(rows)
        if self.temperature == 1.0:
            return p
        return metrics.apply_temperature(np.log(np.maximum(p, 1e-300)), self.temperature)

    def both_orders(self, rows: Sequence[arena.PairRow]) -> tuple[np.ndarray, np.ndarray]:
        """p(A, B) and p(B, A), each (rows, classes), uncalibrated."""
        facts, tokenizer = self.facts, self.tokenizer
        shape = (facts["max_length"], facts["with_prompt"], facts["prompt_frac"])
        quiet = len(rows) == 1  # answers to JSON lines stand alone on standard output
        ids = Ragged.from_rows(pair_data.build_sequences(rows, tokenizer, *shape, quiet))
        count = len(rows)
        data = PairData(
            ids, np.arange(count), np.zeros(count, int), tokenizer.pad_token_id, facts["max_length"]
        )
        return predict_pairs(self, data, facts["swap"] in ("tta", "both"))

    def autocast(self) -> Any:
        return autocast(self.world.device, self.precision)


def with_ties(p: np.ndarray) -> np.ndarray:
    """p (rows, classes) as (rows, 3): of a run that knows no ties they have 0."""
    return np.pad(p, ((0, 0), (0, len(CLASSES) - p.shape[1])))


def predict(config: PredictConfig) -> None:
    """submission.csv from rows without winners, one pair from the command line, or JSON lines."""
    predictor = Predictor(config)
    if config.data is not None:
        rows, _, _, reading = arena.read_pairs(
            config.data,
            require_labels=False,
            skip_bad_rows=config.skip_bad_rows,
            bad_rows_file=Path(config.output).with_suffix(".bad_rows.csv"),
        )
        console.say(reading)
        arena.write_submission(config.output, [row.id for row in rows], with_ties(predictor(rows)))
        console.say(f"{len(rows):,} rows: {config.output}")
        return
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
