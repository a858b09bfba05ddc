"""`features`: what counting alone gets, on the same rows: the opponent of an encoder.

    python run_1_distilbert.py features --data train.csv --out results/features
    python report.py compare results/features results/distilbert/…
    python run_1_distilbert.py predict --run_folder results/features --data test.csv

Length, layout, signs and words of both answers (data/style.py), boosted trees and a logistic
regression (models/features.py). On the arena's 55,000 votes such features beat most encoders of
DeBERTa-base's size: an accuracy says little without them.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import console
import core
from data.rows import count_splits
from evaluation.metrics import swap_classes
from evaluation.outcomes import RULES, Course, verdicts_of
from experiments.pair_answers import test_result
from experiments.preference import HUB_DATA, load_rows
from files import write_folder
from models import features as model_of_features
from runs.fitted import new_folder, write_fitted_run
from runs.results import last_lines
from settings import Section, read_so_far, require_read


@dataclass
class Config(Section):
    """Settings of the command `features`; those of the rows are named as in training."""

    data: str = HUB_DATA
    """arena CSV, JSONL or parquet file, hub id, or one of: reviews, reviews_control"""
    minus_one: Literal["a", "b"] | None = None
    """who wins where a winner is -1 (1: the other, 0: a tie); null: such numbers are refused"""
    extra_train: str | None = None
    """second file, whose rows are added to the training rows"""
    split: Literal["prompt", "row"] = "prompt"
    """what lies in one part only: all rows of a prompt, or (leaks) each row"""
    val_frac: float = 0.1
    """share of the prompts (or rows) for validation"""
    test_frac: float = 0.1
    """share of the prompts (or rows) for the test"""
    limit: int | None = None
    """rows in total at most (nested); null: all"""
    train_frac: float = 1.0
    """share of the training rows to use (nested)"""
    labels: Literal["true", "shuffled"] = "true"
    """shuffled: the control that must stay at chance"""
    words: bool = True
    """read words (TF-IDF) beside style; false: style alone"""
    skip_bad_rows: bool = False
    """leave out rows that cannot be used, listing them in bad_rows.csv"""
    seed: int = 0
    """of what trees draw"""
    out: str | None = None
    """run folder; null: results/features/ and the name of the data"""


def features(config: Config) -> None:
    """Fit, test once, write a run folder. ValueError where there is nothing to learn from."""
    folder = new_folder(config.out or Path("results/features") / Path(config.data).stem)
    rows, facts = load_rows(config, core.single_world("cpu"), folder)
    require_read(config, {*read_so_far(config), "words", "seed"})
    classes = tuple(facts["classes"])
    count_splits(rows, config.data)
    parts = {name: [row for row in rows if row.split == name] for name in ("train", "val", "test")}
    started = time.perf_counter()
    model = model_of_features.fit(parts["train"], config.seed, config.words, len(classes))
    facts |= {"seconds": round(time.perf_counter() - started, 3)}
    p_val, p = (model.probabilities(parts[name]) for name in ("val", "test"))
    result = test_result(parts["test"], p, swap_classes(p), parts["val"], p_val)
    result.metrics.update({"rounds": model.rounds, "inverse_penalty": model.penalty})
    verdicts = verdicts_of(Course(), result.evidence)
    facts |= {"verdicts": verdicts, "verdict_rules": RULES}
    write_folder(
        folder / "train/weights/best", lambda beside: model_of_features.save(model, beside)
    )
    result.metrics["tested_with"] = "best"
    fixed = {"model": "features", "prompt": True}
    write_fitted_run(folder, fixed, config, facts, result)
    console.say("\n".join([f"finished: {folder}", *last_lines(result.metrics, verdicts)]))
