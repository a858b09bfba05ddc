"""The metrics of GLUE and SuperGLUE that are no plain accuracy, each with its interval.

Every one is a function of column sums, so value and interval come from one formula (`stats`).

    added_metrics(("f1", "matthews_correlation"), predictions, labels, groups)

As in evaluation.metrics, `<name>_ci95` is [low, high], `no_interval` says why there is none, and
what the rows cannot give is absent.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from evaluation.metrics import Metrics, add_interval, interval_facts
from evaluation.stats import (
    Function,
    Ratio,
    checked,
    group_index,
    influence,
    interval_of,
    proportion_interval,
)

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
    spearman: pearson of the ranks (ties share their mean rank)
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
        build_columns, statistic = STATISTICS[name]
        columns = checked(build_columns(predictions, labels), groups)  # (n, k + 1)
        figure = influence(columns, statistic)
        if np.isnan(figure.value):
            continue
        if name == "spearman":
            figure.rows = spearman_influence(predictions, labels)
        result[name] = figure.value
        if intervals:
            found = interval_of(figure, group_index(groups), statistic.kind)
            add_interval(result, name, found)
    return result


def regression_metrics(
    values: np.ndarray, labels: np.ndarray, groups: Sequence[Hashable], intervals: bool = True
) -> Metrics:
    """n · loss (mean squared error) · pearson · spearman · constant_loss, the lowest squared error
    of an answer without a model: the variance of these labels. Errors as in `added_metrics`."""
    result: Metrics = {"n": len(labels)}
    if intervals:
        result |= interval_facts("pearson", groups)
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
        add_interval(result, "exact_match", proportion_interval(right, list(group_of.values())))
    return result


def _overlap(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Twice the overlap, and predicted + true: F1 is the ratio of their sums."""
    return np.stack([2 * predictions * labels, predictions + labels], axis=1)


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


def rank_moments(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`_moments` of the ranks, ties sharing theirs: (n, 5)."""
    from scipy.stats import rankdata

    return _moments(rankdata(x), rankdata(y))


def spearman_influence(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n,) what each row adds to Spearman's correlation, the ranks of the others included.

    With F, G the shares below a value (ties half) the correlation is cov(F, G) / √(var F · var G);
    a row enters by its own F and G, and by moving those of all rows above it.
    """

    def share_below(values: np.ndarray) -> np.ndarray:
        from scipy.stats import rankdata

        return (rankdata(values) - 0.5) / len(values)

    def mean_above(values: np.ndarray, of: np.ndarray) -> np.ndarray:
        """Mean over all rows of `of` where their value is above this row's, half where equal."""
        _, place = np.unique(values, return_inverse=True)
        each = np.bincount(place, of)
        return ((each[::-1].cumsum()[::-1] - each / 2) / len(values))[place]

    f, g = share_below(x), share_below(y)

    def moved(p: np.ndarray, q: np.ndarray, of_p: np.ndarray, of_q: np.ndarray) -> np.ndarray:
        total = p * q + mean_above(of_p, q) + mean_above(of_q, p)
        return (total - total.mean()) / len(p)

    spread_f, spread_g = f.var(), g.var()
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.cov(f, g, bias=True)[0, 1] / np.sqrt(spread_f * spread_g)
        of_spreads = moved(f, f, x, x) / spread_f + moved(g, g, y, y) / spread_g
        return moved(f, g, x, y) / np.sqrt(spread_f * spread_g) - r / 2 * of_spreads


def _squared_error(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return ((predictions - labels) ** 2)[:, None]


def _f1(sums: np.ndarray) -> np.ndarray:
    """2·TP / (predicted + true), from their sums; 0 where there is neither."""
    twice, both = sums[..., 0], sums[..., 1]
    return np.divide(twice, both, out=np.zeros_like(twice), where=both > 0)


F1 = Function(_f1, "share")
# name: columns of the rows (n, k), and the statistic of their sums (…, k + 1)
STATISTICS = {
    "f1": (_overlap, F1),
    "f1_a": (_overlap, F1),
    "matthews_correlation": (_moments, Function(_matthews, "correlation")),
    "pearson": (_moments, Function(_correlation, "correlation")),
    "spearman": (rank_moments, Function(_correlation, "correlation")),
    "loss": (_squared_error, Ratio()),
}
