"""What is made of a model's answers to pairs, p(A, B) and p(B, A): figures, lines, evidence."""

from typing import Any

import numpy as np

import core
from data import arena
from data.arena import PairRow
from data.pairs import PairData
from data.rows import fingerprint
from evaluation import metrics
from evaluation.beyond_style import beyond_style
from evaluation.metrics import PREFERENCE_CLASSES as CLASSES
from evaluation.outcomes import Answers
from experiments.experiment import Result, rows_each
from methods import feature_cache
from models import features, pairs


def test_result(
    rows: list[PairRow],
    p: np.ndarray,
    swapped: np.ndarray,
    val_rows: list[PairRow],
    p_val: np.ndarray,
) -> Result:
    """What a test says of p(A, B) and p(B, A) (rows, 3); p_val (val_rows, 3): what it is judged by,
    and what the temperature is fitted on."""
    evidence = answers_to(val_rows, p_val)
    labels, groups = np.array([row.label for row in rows]), [row.group for row in rows]
    lengths = (
        np.array([sum(map(len, side)) for side in sides])
        for sides in ([row.response_a for row in rows], [row.response_b for row in rows])
    )
    figures = metrics.preference_metrics(p, swapped, labels, groups, *lengths)
    figures |= calibrated_metrics(p, labels, groups, p_val, evidence.labels)
    lines = [prediction_line(row, values) for row, values in zip(rows, p, strict=True)]
    return Result(figures, lines, evidence)


def answers_to(rows: list[PairRow], p: np.ndarray) -> Answers:
    """p (rows, 3) with the labels."""
    return Answers(p, np.array([row.label for row in rows]), CLASSES, [row.group for row in rows])


LEAST_FOR_STYLE = 200  # training rows


def style_answers(
    train: list[PairRow], val: list[PairRow], test: list[PairRow], world: core.World
) -> np.ndarray | None:
    """p (val + test, 3) of style alone, fitted on the training rows by rank 0 and kept in the cache
    for other runs on them; None where there are too few."""
    if len(train) < LEAST_FOR_STYLE:
        return None
    contents = [f"{row.split} {arena.row_hash(row)} {row.label}" for row in (*train, *val, *test)]
    key = {"kind": "answers of style, version 1", "rows": fingerprint(contents)}

    def build() -> np.ndarray:
        p = None
        if world.rank == 0:
            world.say(f"style alone, for comparison: fitting on {len(train):,} rows")
            try:
                p = features.fit(train, words=False).probabilities([*val, *test])
            except ValueError as error:
                world.say(f"note: no comparison with style ({error})")
        return world.from_rank_0(np.zeros((0, 3)) if p is None else p)

    p, _ = feature_cache.cached_features(key, build, world)
    return np.asarray(p) if len(p) else None


def compare_answers(
    others: np.ndarray,
    val: list[PairRow],
    p_val: np.ndarray,
    test: list[PairRow],
    p: np.ndarray,
) -> dict[str, Any]:
    """`beyond_style`: what p adds to others (val + test, 3)."""
    val_labels, labels = (np.array([row.label for row in rows]) for rows in (val, test))
    parts = (others[: len(val)], p_val, val_labels), (others[len(val) :], p, labels)
    return beyond_style(*parts, [row.group for row in test])


def calibrated_metrics(
    p: np.ndarray, labels: np.ndarray, groups: list, p_val: np.ndarray, val_labels: np.ndarray
) -> metrics.Metrics:
    """log_loss and calibration error after a temperature that was fitted on validation."""
    tiny = np.finfo(np.float64).tiny
    temperature = metrics.fit_temperature(np.log(np.maximum(p_val, tiny)), val_labels)
    calibrated = metrics.apply_temperature(np.log(np.maximum(p, tiny)), temperature)
    after = metrics.classification_metrics(calibrated, labels, groups, CLASSES)
    result: metrics.Metrics = {"temperature": temperature}
    for name in ("log_loss", "log_loss_ci95", "expected_calibration_error"):
        base, interval, _ = name.partition("_ci95")
        if name in after:
            result[f"{base}_calibrated{interval}"] = after[name]
    return result


def prediction_line(row: PairRow, p: np.ndarray) -> dict[str, Any]:
    """A line of predictions.csv for p (3,), with its texts."""
    return {
        "id": row.id,
        "group": row.group,
        "label": CLASSES[row.label],
        "prediction": CLASSES[int(p.argmax())],
        **{f"p_{name}": float(p[k]) for k, name in enumerate(CLASSES)},
        "text": {
            "prompt": "\n\n".join(row.prompt),
            "response A": "\n\n".join(row.response_a),
            "response B": "\n\n".join(row.response_b),
        },
    }


def predict_pairs(state: Any, data: PairData, average: bool) -> tuple[np.ndarray, np.ndarray]:
    """p(A, B) and p(B, A) (rows, 3) of every row, on all ranks."""
    values = core.evaluate_rows(state, data, pairs.pair_outputs, rows_each(data.max_length))
    p, swapped = metrics.softmax(values[:, :3]), metrics.softmax(values[:, 3:])
    if average:
        p = metrics.average_swapped(p, swapped)
        swapped = p[:, metrics.SWAP]
    return p, swapped
