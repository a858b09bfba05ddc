"""The metrics of GLUE and SuperGLUE that are no plain accuracy, each with its interval.

Every one is a function of column sums, so value and interval come from one formula: the sums of
all the rows, and of whole groups drawn with replacement (`stats.cluster_bootstrap`).

    added_metrics(("f1", "matthews_correlation"), predictions, labels, groups)

As in evaluation.metrics, `<name>_ci95` is [low, high], and what the rows cannot give is absent.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from evaluation.metrics import Metrics
from evaluation.stats import cluster_bootstrap, mean_of_rows, proportion_interval

FLAT = 1e-12  # a variance below this share of the mean square is rounding: the values are constant


def added_metrics(
    names: Sequence[str],
    predictions: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[Hashable],
    intervals: bool = True,
) -> Metrics:
    """`names` of predictions (n,) and labels (n,), rows grouped by `groups` (n,).

    f1, f1_a: F1 of class 1 for labels 0 and 1 (MultiRC calls it F1_a: over all answer options);
        0 when class 1 occurs nowhere, as in scikit-learn
    matthews_correlation: for labels 0 and 1: Pearson's for two binary variables; 0 when either is
        constant, as in scikit-learn
    pearson: correlation of real values; absent when either is constant
    spearman: pearson of the ranks (ties share their mean rank). For the interval each row keeps
        its rank among all rows: resampling does not rank anew, which costs little width
    loss: mean squared error

    ValueError for an unknown name, lengths that differ, or no rows.
    """
    predictions = np.asarray(predictions, dtype=np.float64)
    labels = np.asarray(labels, dtype=np.float64)
    if not predictions.shape == labels.shape == (len(groups),) or not len(groups):
        raise ValueError(
            f"predictions {predictions.shape}, labels {labels.shape}, {len(groups)} groups: "
            "expected one of each a row, and at least one row"
        )
    result: Metrics = {}
    for name in names:
        if name not in STATISTICS:
            raise ValueError(f"metric {name!r}: expected one of {', '.join(STATISTICS)}")
        build_columns, formula = STATISTICS[name]
        columns = build_columns(predictions, labels)  # (n, k)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(formula(np.append(columns.sum(axis=0), len(columns))))
        if np.isnan(value):
            continue
        result[name] = value
        if intervals:
            low, high = cluster_bootstrap(columns, groups, formula)
            if not np.isnan(low):
                result[f"{name}_ci95"] = [low, high]
    return result


def regression_metrics(
    values: np.ndarray, labels: np.ndarray, groups: Sequence[Hashable], intervals: bool = True
) -> Metrics:
    """n · loss (mean squared error) · pearson · spearman · constant_loss, the lowest squared error
    of an answer without a model: the variance of these labels. Errors as in `added_metrics`."""
    result: Metrics = {"n": len(labels)}
    result |= added_metrics(("loss", "pearson", "spearman"), values, labels, groups, intervals)
    return result | {"constant_loss": float(np.var(labels))}


def exact_match(
    hits: np.ndarray,
    questions: Sequence[Hashable],
    groups: Sequence[Hashable],
    intervals: bool = True,
) -> Metrics:
    """exact_match: share of the questions all of whose rows are hits.

    hits (n,) bool; questions (n,) the question of each row; groups (n,) what is resampled
    together (a passage), the same for all rows of a question.
    """
    answered: dict[Hashable, bool] = {}
    group_of: dict[Hashable, Hashable] = {}
    for hit, question, group in zip(hits, questions, groups, strict=True):
        answered[question] = answered.get(question, True) and bool(hit)
        group_of[question] = group
    right = np.array(list(answered.values()))
    result: Metrics = {"exact_match": float(right.mean())}
    if intervals:
        low, high = proportion_interval(right, list(group_of.values()))
        if not np.isnan(low):
            result["exact_match_ci95"] = [low, high]
    return result


def _overlap(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.stack([predictions * labels, predictions + labels], axis=1)


def _f1(sums: np.ndarray) -> np.ndarray:
    """2·TP / (predicted + true), from sums (…, 3): TP, predicted + true, rows."""
    return np.where(sums[..., 1] > 0, 2 * sums[..., 0] / sums[..., 1], 0.0)


def _moments(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x - x.mean(), y - y.mean()  # sums of large numbers would cancel
    return np.stack([x, y, x * x, y * y, x * y], axis=1)


def _correlation(sums: np.ndarray) -> np.ndarray:
    """Pearson's r from sums (…, 6) of x, y, x², y², xy and the rows; NaN for a constant."""
    x, y, xx, yy, xy, n = np.moveaxis(sums, -1, 0)
    varies = (n * xx - x * x > FLAT * n * xx) & (n * yy - y * y > FLAT * n * yy)
    # rounding must not give a perfect correlation more than 1
    r = np.clip((n * xy - x * y) / np.sqrt((n * xx - x * x) * (n * yy - y * y)), -1, 1)
    return np.where(varies, r, np.nan)


def _matthews(sums: np.ndarray) -> np.ndarray:
    return np.nan_to_num(_correlation(sums), nan=0.0)


def _rank_moments(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return _moments(rankdata(x), rankdata(y))


def _squared_error(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return ((predictions - labels) ** 2)[:, None]


# name: columns of the rows (n, k), and the statistic of their sums (…, k + 1)
STATISTICS = {
    "f1": (_overlap, _f1),
    "f1_a": (_overlap, _f1),
    "matthews_correlation": (_moments, _matthews),
    "pearson": (_moments, _correlation),
    "spearman": (_rank_moments, _correlation),
    "loss": (_squared_error, mean_of_rows),
}
