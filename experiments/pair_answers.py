"""What is made of a model's answers to pairs, p(A, B) and p(B, A): figures, lines, evidence."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import core
from data import arena, probes
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
    rows: Sequence[PairRow],
    p: np.ndarray,
    swapped: np.ndarray,
    val_rows: Sequence[PairRow],
    p_val: np.ndarray,
) -> Result:
    """What a test says of p(A, B) and p(B, A) (rows, classes); p_val (val_rows, classes): what it
    is judged by, and what the temperature is fitted on."""
    labels, val_labels = (np.array([row.label for row in part]) for part in (rows, val_rows))
    groups = [row.group for row in rows]
    figures = pair_metrics(rows, p, swapped)
    figures |= calibrated_metrics(p, labels, groups, fitted_temperature(p_val, val_labels))
    lines = [prediction_line(row, values) for row, values in zip(rows, p, strict=True)]
    classes = CLASSES[: p.shape[1]]
    return Result(figures, lines, Answers(p_val, val_labels, classes, [r.group for r in val_rows]))


LEAST_FOR_STYLE = 200  # training rows


def style_answers(
    train: list[PairRow], val: list[PairRow], test: list[PairRow], classes: int, world: core.World
) -> np.ndarray | None:
    """p (val + test, classes) of style alone, fitted on the training rows by rank 0 and kept in the
    cache for other runs on them; None where there are too few."""
    if len(train) < LEAST_FOR_STYLE:
        return None
    contents = [f"{row.split} {arena.row_hash(row)} {row.label}" for row in (*train, *val, *test)]
    key = {"kind": "answers of style, version 1", "classes": classes, "rows": fingerprint(contents)}

    def build() -> np.ndarray:
        p = None
        if world.rank == 0:
            world.say(f"style alone, for comparison: fitting on {len(train):,} rows")
            try:
                p = features.fit(train, words=False, classes=classes).probabilities([*val, *test])
            except ValueError as error:
                world.say(f"note: no comparison with style ({error})")
        return world.from_rank_0(np.zeros((0, classes)) if p is None else p)

    p, _ = feature_cache.cached_features(key, build, world)
    return np.asarray(p) if len(p) else None


MOST_PROBED = 300  # test rows


def probe(
    answer: Callable[[list[PairRow]], tuple[np.ndarray, np.ndarray]],
    rows: list[PairRow],
    p: np.ndarray,
    swapped: np.ndarray,
) -> dict[str, Any]:
    """Shares of verdicts that turn, of the first rows by a hash: `padded`, to the answer that was
    not preferred, once it is made longer with empty words; `plain`, where both lose their Markdown
    (of the rows that have some); `swapped`, where A and B change places. answer: both orders of
    rows, as it gave p and swapped (rows, classes)."""
    order = sorted(range(len(rows)), key=lambda place: arena.row_hash(rows[place]))[:MOST_PROBED]
    rows, p, swapped = [rows[place] for place in order], p[order], swapped[order]
    verdicts = p.argmax(axis=1)
    other = p[:, :2].argmin(axis=1)  # the side that is made longer
    longer = [probes.padded(row, int(side)) for row, side in zip(rows, other, strict=True)]
    bare = [probes.plain(row) for row in rows]
    marked = np.array([row != each for row, each in zip(rows, bare, strict=True)])
    found = {
        "n": len(rows),
        "padded": float((answer(longer)[0].argmax(axis=1) == other).mean()),
        "swapped": float((metrics.swap_classes(swapped).argmax(axis=1) != verdicts).mean()),
        "n_plain": int(marked.sum()),
    }
    if marked.any():
        turned = answer([row for row, has in zip(bare, marked, strict=True) if has])[0]
        found["plain"] = float((turned.argmax(axis=1) != verdicts[marked]).mean())
    return found


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


def pair_metrics(rows: Sequence[PairRow], p: np.ndarray, swapped: np.ndarray) -> metrics.Metrics:
    """Figures of labelled rows, from p(A, B) and p(B, A) (rows, classes)."""
    return metrics.preference_metrics(
        p,
        swapped,
        np.array([row.label for row in rows]),
        [row.group for row in rows],
        np.array([sum(map(len, row.response_a)) for row in rows]),
        np.array([sum(map(len, row.response_b)) for row in rows]),
    )


def _logits(p: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(p, np.finfo(np.float64).tiny))


def fitted_temperature(p_val: np.ndarray, val_labels: np.ndarray) -> float:
    return metrics.fit_temperature(_logits(p_val), val_labels)


def calibrated_metrics(
    p: np.ndarray, labels: np.ndarray, groups: list, temperature: float
) -> metrics.Metrics:
    """log_loss and calibration error after a temperature that was fitted on validation."""
    calibrated = metrics.apply_temperature(_logits(p), temperature)
    classes = CLASSES[: p.shape[1]]
    after = metrics.classification_metrics(calibrated, labels, groups, classes)
    result: metrics.Metrics = {"temperature": temperature}
    for name in ("log_loss", "log_loss_ci95", "expected_calibration_error"):
        base, interval, _ = name.partition("_ci95")
        if name in after:
            result[f"{base}_calibrated{interval}"] = after[name]
    return result


def prediction_line(row: PairRow, p: np.ndarray) -> dict[str, Any]:
    """A line of predictions.csv for p (classes,), with its texts."""
    return {
        "id": row.id,
        "group": row.group,
        "label": CLASSES[row.label],
        "prediction": CLASSES[int(p.argmax())],
        **{f"p_{name}": float(value) for name, value in zip(CLASSES, p, strict=False)},
        "text": {
            "prompt": "\n\n".join(row.prompt),
            "response A": "\n\n".join(row.response_a),
            "response B": "\n\n".join(row.response_b),
        },
    }


def predict_pairs(state: Any, data: PairData, average: bool) -> tuple[np.ndarray, np.ndarray]:
    """p(A, B) and p(B, A) (rows, classes) of every row, on all ranks."""
    values = core.evaluate_rows(state, data, pairs.pair_outputs, rows_each(data.max_length))
    p, swapped = map(metrics.softmax, np.split(values, 2, axis=1))
    if average:
        p = metrics.average_swapped(p, swapped)
        swapped = metrics.swap_classes(p)
    return p, swapped
