"""A saved preference run of this project as a judge: offline, both orders, without a question."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from commands.answers import asked_of
from commands.predict import PredictConfig, Predictor, with_ties
from data import reviews
from data.arena import PairRow, exchanged_row
from evaluation.asking import Pair, without_asking
from evaluation.metrics import PREFERENCE_CLASSES as CLASSES
from evaluation.metrics import apply_temperature, swap_classes
from evaluation.stats import interval
from experiments.instructions import weights_digest
from files import read_yaml
from models import features


class PreferenceJudge:
    """A saved preference run of this project: 100 · p(answer beats the reference), ties half.

    Both orders are asked and averaged, so 50 is as good as the reference. measured: for a passport,
    which finds out itself what the run knows, any run will do.
    """

    version = "both orders"  # of the question, which has no words

    def __init__(self, run: Path, device: str, measured: bool = False):
        self.run = run
        check_preference_run(run, measured)
        weights = json.loads((run / "test/metrics/metrics.json").read_text())["tested_with"]
        self.identity = weights_digest(str(run / "train/weights" / weights)) or str(run.resolve())
        self.predictor = Predictor(  # the weights that were tested and calibrated
            PredictConfig(run_folder=str(run), weights=weights, device=device, calibrated=True)
        )

    def __repr__(self) -> str:
        return f"preference({self.run.name!r})"

    def score(self, rows: Sequence[dict[str, str]]) -> np.ndarray:
        """(rows, 1), 0 for an empty response."""
        wins = self.wins([pair_of(row, row["model_response"], row["output"]) for row in rows])
        empty = np.array([not row["model_response"].strip() for row in rows])
        return np.where(empty, 0.0, wins.mean(axis=1))[:, None]

    def compare(self, rows: Sequence[dict], others: Sequence[dict]) -> np.ndarray:
        """(rows, 2) as asking.compare_answers: from 0, the others' response is better, to 100."""
        texts = [
            (asked_of(a), a["model_response"], b["model_response"])
            for a, b in zip(rows, others, strict=True)
        ]
        wins = self.wins([pair_of(a, *each[1:]) for a, each in zip(rows, texts, strict=True)])
        for row, each in enumerate(texts):
            if known := without_asking(Pair("", *each)):
                wins[row] = known.score
        return wins

    def wins(self, pairs: Sequence[PairRow]) -> np.ndarray:
        """(rows, 2) 100 · p of A, a tie half, with A first and with B first."""
        return 100 * (self.orders(pairs) @ [1.0, 0.0, 0.5]).T

    def orders(self, pairs: Sequence[PairRow]) -> np.ndarray:
        """(2, rows, 3): p of A, B and tie with A first, and with B first."""
        both = [*pairs, *map(exchanged_row, pairs)]
        first, second = np.split(with_ties(self.predictor(both)), 2)
        return np.stack([first, swap_classes(second)])


def pair_of(row: dict[str, str], a: str, b: str) -> PairRow:
    """Two responses to what a row asks; a preference run reads no id."""
    return PairRow("", [asked_of(row)], [a], [b], None, row["group"], "")


def check_preference_run(run: Path, measured: bool = False) -> None:
    """ValueError unless the run knew more than the shares of the classes about its test rows,
    which must be answers to prompts (and not pairs of film reviews). measured: whatever it knew."""
    try:
        settings = read_yaml(run / "config.yaml")
        with open(run / "test/metrics/predictions.csv", newline="") as file:
            lines = list(csv.DictReader(file))
        names = [name for name in CLASSES if name != "tie" or "p_tie" in lines[0]]
        p = np.array([[float(line[f"p_{name}"]) for name in names] for line in lines])
        labels = np.array([names.index(line["label"]) for line in lines])
        best = run / "train/weights/best"
        counted = (best / features.FILE).exists()  # counting reads the prompt's words
        facts = {} if counted else json.loads((best / "preference.json").read_text())
        temperature = json.loads((run / "test/metrics/metrics.json").read_text())["temperature"]
    except (OSError, KeyError, IndexError, ValueError, TypeError) as error:
        missing = getattr(error, "filename", None)
        why = f": {Path(missing).name} is missing" if missing else ""
        raise ValueError(f"{run} is no finished preference run{why}") from None
    if settings.get("data") in ("reviews", "reviews_control"):
        raise ValueError(
            f"{run} cannot judge: it learned about film reviews, not about answers to instructions"
            f" ({reviews.NOTICE})"
        )
    if not facts.get("with_prompt", counted):
        raise ValueError(f"{run} cannot judge: it does not read the prompt (use run_2 or run_5)")
    # by the temperature that the run fitted on validation, as the judge's answers are
    p = apply_temperature(np.log(np.maximum(p, 1e-300)), temperature)
    shares = np.bincount(labels, minlength=len(names)) / len(labels)
    rows = np.arange(len(labels))
    # against the best constant answer, which these rows themselves give: no easy opponent
    gain = np.log(np.maximum(p[rows, labels], 1e-12)) - np.log(shares[labels])
    low, high, *_ = interval(gain, [line["group"] for line in lines])
    if not (measured or low > 0):
        raise ValueError(
            f"{run} cannot judge: on its {len(lines)} test rows it is not better than the constant "
            f"answer (gain {gain.mean():.4f} nats a row, 95 % interval {low:.4f} to {high:.4f}); "
            "train it on more rows, or use --by gemini or openai"
        )
