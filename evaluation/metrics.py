"""What a classifier's probabilities are worth, as numbers that go into metrics.json unchanged.

Every `<name>_ci95` is [low, high]; where there is none, `no_interval` says why by name. A number
that these rows cannot give (the recall of a class that no row has) is absent, not zero. Losses
are in nats. With intervals come the facts that a comparison reads: `primary`, the metric that was
trained and chosen and carries a verdict; `interval_method`; and how many `groups` n rows are in.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.outcomes import Diverged
from evaluation.stats import (
    FEW_GROUPS,
    METHOD,
    Function,
    Interval,
    Ratio,
    group_index,
    interval,
    proportion_interval,
)

PREFERENCE_CLASSES = ("A", "B", "tie")
TIE = 2
SWAP = [1, 0, 2]  # where the columns A, B, tie stand after A and B changed places
CALIBRATION_BINS = 15

Metrics = dict[str, int | float | str | list | dict]
# What an answer without a model gets: for each figure, its name and whether more is better.
CONSTANTS = {
    "accuracy": ("constant_accuracy", True),
    "log_loss": ("prior_entropy", False),
    "loss": ("unigram_entropy", False),  # token frequencies, whatever the context
    "response_loss": ("response_unigram_entropy", False),
    "nats_per_token": ("unigram_entropy", False),
}


def digits_of(low: float, high: float, most: int = 6) -> int:
    """Decimal places that leave two digits of half the interval: 3 for [0.621, 0.693]."""
    half = (high - low) / 2
    if not (half > 0 and math.isfinite(half)):
        return 4
    return min(most, max(0, 1 - math.floor(math.log10(half))))


def with_interval(value: float, low: float, high: float, sign: str = "") -> str:
    """As exactly as its interval allows: 0.658 [0.621, 0.693]; sign "+": of a difference."""
    if math.isnan(low):
        return f"{value:{sign}.4f}"
    digits = digits_of(low, high)
    return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def interval_facts(
    primary: str, groups: Sequence[Hashable], weights: np.ndarray | None = None
) -> Metrics:
    """What metrics.json says of its intervals, beside them. effective_groups: as many of equal
    size would say as much, size being the sum of `weights` (n,), the targets of a row, or 1."""
    sizes = np.bincount(group_index(groups), weights)
    return {
        "primary": primary,
        "interval_method": METHOD,
        "groups": len(sizes),
        "effective_groups": round(float(sizes.sum() ** 2 / (sizes**2).sum()), 1),
    }


def doubtful_groups(metrics: Mapping[str, Any]) -> str:
    """What a reader of intervals has to know of their groups: how many, below FEW_GROUPS, and
    that some outweigh the others; "" where neither is the case or metrics.json is too old."""
    groups, effective = metrics.get("groups"), metrics.get("effective_groups")
    if not isinstance(groups, int) or not isinstance(effective, int | float):
        return ""
    unit = "rows" if groups == metrics.get("n") else "groups of rows"
    if effective < groups / 2:
        return (
            f"{groups:,} {unit} of such different size that they count as {effective:.0f}: where "
            "the figure rises with their size its interval is too narrow"
        )
    return f"{groups} {unit}" if groups < FEW_GROUPS else ""


def add_interval(result: Metrics, name: str, found: Interval) -> None:
    """`<name>_ci95`, or in `no_interval` why there is none."""
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        problem = found.problem or "an end is beyond what a float holds"
        result.setdefault("no_interval", {})[name] = problem
    else:
        result[f"{name}_ci95"] = [float(found.low), float(found.high)]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (…, classes) in float64."""
    exponent = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exponent / exponent.sum(axis=-1, keepdims=True)


def classification_metrics(
    probabilities: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[Hashable],
    class_names: Sequence[str],
    intervals: bool = True,
    primary: str = "log_loss",
) -> Metrics:
    """Metrics of probabilities (n, k) against labels (n,) in 0..k-1, rows grouped by `groups` (n,).

    n · accuracy · log_loss, the same as loss (nats) · f1_macro, over the classes that occur in
    labels or predictions · recall_<class> · confusion_matrix, rows = true class, columns =
    predicted · expected_calibration_error · and what an answer without a model gets:
    constant_accuracy, the share of the commonest label, constant_class, prior_entropy of the label
    shares and uniform_log_loss = ln k (nats).

    Intervals are those of evaluation.stats. The calibration error has none: it is a sum of
    absolute values, biased upwards, and the interval of a perfectly calibrated model would never
    hold 0 (0 of 100 simulated, n = 2,000).
    `intervals=False` skips them all, for evaluations during training.

    ValueError when a row is not a probability distribution, a label is outside 0..k-1, lengths
    differ, or there are no rows.
    """
    from scipy.stats import entropy
    from sklearn.metrics import confusion_matrix, f1_score, log_loss

    probabilities, labels = _checked(probabilities, labels)
    num_rows, num_classes = probabilities.shape
    if len(groups) != num_rows or len(class_names) != num_classes:
        raise ValueError(
            f"probabilities are {probabilities.shape}, with {len(groups)} groups and "
            f"{len(class_names)} class names: expected one group a row, one name a column"
        )
    predictions = probabilities.argmax(axis=1)
    shares = np.bincount(labels, minlength=num_classes) / num_rows
    loss = float(log_loss(labels, probabilities, labels=range(num_classes)))
    result: Metrics = {"n": num_rows}
    if intervals:
        result |= interval_facts(primary, groups)
    _add_share(result, "accuracy", predictions == labels, groups, intervals)
    result |= {"log_loss": loss, "loss": loss}
    result["f1_macro"] = float(f1_score(labels, predictions, average="macro"))
    if intervals:
        columns = classification_columns(labels, predictions, num_classes, probabilities)
        of_loss = interval(columns, groups, LOG_LOSS)
        for name in ("log_loss", "loss"):
            add_interval(result, name, of_loss)
        add_interval(result, "f1_macro", interval(columns, groups, F1_MACRO))
    for label, name in enumerate(class_names):
        rows = np.flatnonzero(labels == label)
        hits, groups_of_rows = predictions[rows] == label, [groups[row] for row in rows]
        _add_share(result, f"recall_{name}", hits, groups_of_rows, intervals)
    return result | {
        "confusion_matrix": confusion_matrix(
            labels, predictions, labels=range(num_classes)
        ).tolist(),
        "expected_calibration_error": expected_calibration_error(probabilities, labels),
        "constant_accuracy": float(shares.max()),
        "constant_class": str(class_names[int(shares.argmax())]),
        "prior_entropy": float(entropy(shares)),
        "uniform_log_loss": math.log(num_classes),
    }


def classification_columns(
    labels: np.ndarray,
    predictions: np.ndarray,
    num_classes: int,
    probabilities: np.ndarray | None = None,
) -> np.ndarray:
    """What accuracy, F1 and log loss are sums of: (n, 1 + 3k) for labels, predictions (n,).

    Row loss in nats (0 without probabilities), then three one-hots: hit, label, prediction.
    With the number of rows behind them, the sums go to accuracy_of, f1_macro_of, matthews_of and
    LOG_LOSS.
    """
    one_hot = np.eye(num_classes)
    losses = np.zeros(len(labels)) if probabilities is None else _row_losses(probabilities, labels)
    hits = one_hot[labels] * (predictions == labels)[:, None]
    return np.column_stack([losses, hits, one_hot[labels], one_hot[predictions]])


def _counts(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits, labels and predictions per class, each (…, k), of sums (…, 1 + 3k + 1)."""
    return tuple(np.split(sums[..., 1:-1], 3, axis=-1))


def accuracy_of(sums: np.ndarray) -> np.ndarray:
    return _counts(sums)[0].sum(-1) / sums[..., -1]


def f1_macro_of(sums: np.ndarray) -> np.ndarray:
    """Mean F1 over the classes that occur in labels or predictions."""
    hits, labels, predictions = _counts(sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nanmean(2 * hits / (labels + predictions), axis=-1)


def matthews_of(sums: np.ndarray) -> np.ndarray:
    """Matthews correlation for k classes, 0 where it is undefined. Gorodkin 2004, eq. 8."""
    hits, labels, predictions = _counts(sums)
    n = sums[..., -1]
    covariance = hits.sum(-1) * n - (labels * predictions).sum(-1)
    spread = (n**2 - (labels**2).sum(-1)) * (n**2 - (predictions**2).sum(-1))
    return np.divide(covariance, np.sqrt(spread), out=np.zeros_like(covariance), where=spread > 0)


def f1_second_of(sums: np.ndarray) -> np.ndarray:
    """F1 of the second class, that of GLUE's tasks with two; 0 where it is never met."""
    hits, labels, predictions = (part[..., 1] for part in _counts(sums))
    both = labels + predictions
    return np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0)


LOG_LOSS = Ratio()
ACCURACY = Function(accuracy_of, "share")
F1_MACRO = Function(f1_macro_of, "share")
F1_SECOND = Function(f1_second_of, "share")
MATTHEWS = Function(matthews_of, "correlation")


def preference_metrics(
    probabilities: np.ndarray,
    swapped: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[Hashable],
    length_a: np.ndarray,
    length_b: np.ndarray,
    intervals: bool = True,
) -> Metrics:
    """`classification_metrics` for the classes A, B, tie, and what a preference model may fall for.

    `probabilities` and `swapped` are (n, 3), or (n, 2) where there are no ties. `swapped` is the
    answer to the same row with A and B exchanged, in the order of that input: its column 0 is the
    response that stood first after the swap, which is B. `length_a`, `length_b` (n,) are in any one
    unit (characters, tokens).

    flip_consistency: share of rows whose answer survives the swap. On the n_unequal_length rows
    whose responses differ in length:
    length_bias: share of the longer response among predictions of A or B, minus the same share
    among labels of A or B; 0 = as drawn to length as people are, above 0 = more.
    longer_wins_agreement: share of rows where the model says that the longer one wins, not tie.
    longer_wins_accuracy: accuracy of that rule on the labels, a tie being an error.

    Errors and intervals as in `classification_metrics`.
    """
    classes = PREFERENCE_CLASSES[: np.shape(probabilities)[-1]]
    result = classification_metrics(probabilities, labels, groups, classes, intervals)
    labels = np.asarray(labels)
    swapped_back = swap_classes(_checked(swapped, labels)[0])
    predictions = np.asarray(probabilities).argmax(axis=1)
    _add_share(
        result, "flip_consistency", predictions == swapped_back.argmax(axis=1), groups, intervals
    )
    length_a, length_b = np.asarray(length_a), np.asarray(length_b)
    if length_a.shape != labels.shape or length_b.shape != labels.shape:
        raise ValueError(f"lengths are {length_a.shape}, {length_b.shape}, labels {labels.shape}")

    rows = np.flatnonzero(length_a != length_b)
    result["n_unequal_length"] = len(rows)
    groups = [groups[row] for row in rows]
    longer = (length_b > length_a)[rows].astype(int)  # class 0 = A, 1 = B
    predictions, labels = predictions[rows], labels[rows]
    columns = np.stack(
        [predictions == longer, predictions != TIE, labels == longer, labels != TIE], axis=1
    )
    if columns[:, 1].any() and columns[:, 3].any():
        result["length_bias"] = float(_length_bias(columns.sum(axis=0)))
        if intervals:
            add_interval(result, "length_bias", interval(columns, groups, Function(_length_bias)))
    _add_share(result, "longer_wins_agreement", columns[:, 0], groups, intervals)
    _add_share(result, "longer_wins_accuracy", columns[:, 2], groups, intervals)
    return result


def average_swapped(probabilities: np.ndarray, swapped: np.ndarray) -> np.ndarray:
    """Swap averaging at test time: mean of p(A, B) and the flipped p(B, A), both (n, 3) or, without
    ties, (n, 2), to that shape.

    `swapped` is in the order of the swapped input, as in `preference_metrics`.
    """
    probabilities, swapped = np.asarray(probabilities), np.asarray(swapped)
    if probabilities.shape != swapped.shape or probabilities.shape[-1] not in (2, 3):
        raise ValueError(f"expected two (n, 3), not {probabilities.shape} and {swapped.shape}")
    return (probabilities + swap_classes(swapped)) / 2


def swap_classes(probabilities: np.ndarray) -> np.ndarray:
    """Columns A, B, tie, or A, B, with A and B exchanged."""
    return probabilities[..., SWAP[: probabilities.shape[-1]]]


def expected_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, num_bins: int = CALIBRATION_BINS
) -> float:
    """Mean distance between confidence and accuracy, in 0..1, over equal-width bins of confidence.

    `probabilities` (n, k), `labels` (n,); confidence is the largest probability, bin m holds
    ((m-1)/num_bins, m/num_bins]. Guo et al. 2017 (arXiv:1706.04599), eq. 3. Biased upwards when
    rows are few: a perfectly calibrated model with three classes shows about .06 on 300 rows and
    .024 on 2,000, so compare only on the same number of rows. ValueError as in
    `classification_metrics`.
    """
    probabilities, labels = _checked(probabilities, labels)
    confidence = probabilities.max(axis=1)
    gap = confidence - (probabilities.argmax(axis=1) == labels)
    inner_edges = np.arange(1, num_bins) / num_bins
    bins = np.digitize(confidence, inner_edges, right=True)
    return float(np.abs(np.bincount(bins, gap)).sum() / len(labels))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature in .05..20 with the lowest log loss of softmax(logits / T) on these rows.

    `logits` (n, k), or log-probabilities, which differ from logits by a constant per row; `labels`
    (n,). Fit it on rows that neither trained the model nor will test it. A result at a bound
    means that the rows have no best temperature (all right, or no better than chance).
    ValueError for NaN, Inf, or labels outside 0..k-1. Guo et al. 2017, section 4.2.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    logits, labels = _checked_shapes(logits, labels)
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits / math.exp(log_temperature), axis=1)[rows, labels].mean()

    bounds = (math.log(0.05), math.log(20))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x)


def apply_temperature(logits: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(logits / temperature): probabilities (n, k). ValueError unless temperature > 0."""
    if not temperature > 0:
        raise ValueError(f"a temperature is above 0, not {temperature}")
    from scipy.special import softmax

    return softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=-1)


def _clipped(probabilities: np.ndarray) -> np.ndarray:
    return np.clip(probabilities, np.finfo(np.float64).eps, None)  # sklearn's floor: 36 nats


def _row_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return -np.log(_clipped(probabilities[np.arange(len(labels)), labels]))


def _length_bias(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1] - sums[..., 2] / sums[..., 3]


def _add_share(
    result: Metrics, name: str, hits: np.ndarray, groups: Sequence[Hashable], intervals: bool
) -> None:
    if len(hits):
        result[name] = float(hits.mean())
        if intervals:
            add_interval(result, name, proportion_interval(hits, groups))


def _checked_shapes(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, labels = np.asarray(values, dtype=np.float64), np.asarray(labels)
    if values.ndim != 2 or labels.shape != (len(values),) or not len(values):
        raise ValueError(f"expected (n, k) and (n,) with n >= 1: {values.shape}, {labels.shape}")
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values).all(axis=1)))
        raise Diverged(f"row {row} has NaN or Inf: the model diverged, or fp16 overflowed")
    wrong = ~np.isin(labels, np.arange(values.shape[1]))
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"row {row} has label {labels[row]}, expected 0..{values.shape[1] - 1} as int"
        )
    return values, labels.astype(np.int64)


def _checked(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probabilities, labels = _checked_shapes(probabilities, labels)
    off = np.abs(probabilities.sum(axis=1) - 1)
    off[(probabilities < 0).any(axis=1)] = np.inf
    if off.max() > 1e-3:
        row = int(off.argmax())
        raise ValueError(
            f"row {row} is not a distribution: {probabilities[row].tolist()}. Give probabilities, "
            "not logits, from a softmax in fp32"
        )
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels  # to float64 precision
