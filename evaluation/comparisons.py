"""Is B better than A? Two models on the same rows, or two arms of several seeds each.

Rows are resampled in whole groups, for both models at once (`stats.resampled_sums`), so that
what is hard for both cancels. Two runs are two models: what is said of them holds for these two
files of weights. A change of method is judged over seeds, whose own spread counts as well.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.stats import group_index

REPEATS = 10_000
MIN_SEEDS = 3  # below that the spread between seeds is hardly known
POWER = 0.8


@dataclass
class Difference:
    """B − A in the unit of the metric, with its 95 % interval and two-sided p-value.

    `row_variance`: the part of its variance that more rows would shrink (at this many groups);
    `seed_variance`: the sum over both arms of the variance between seeds, None for two models.
    """

    a: float
    b: float
    low: float
    high: float
    p: float
    row_variance: float
    seed_variance: float | None = None

    @property
    def value(self) -> float:
        return self.b - self.a


FEW_GROUPS = 40  # below, percentiles of a bootstrap are too narrow


def two_models(
    a: float, b: float, resampled_a: np.ndarray, resampled_b: np.ndarray, num_groups: int = 10**9
) -> Difference:
    """The paired cluster bootstrap of one model against one other.

    a, b: the metric on the rows; resampled_a, resampled_b (repeats,): the same resamples of the
    rows for both. Percentile interval; p is twice the smaller share of resamples on one side of 0.
    """
    differences = resampled_b - resampled_a
    if num_groups < FEW_GROUPS:
        from scipy.stats import t

        error = math.sqrt(differences.var() * num_groups / (num_groups - 1))
        width = t.ppf(0.975, num_groups - 1) * error
        p = 2 * t.sf(abs(b - a) / error, num_groups - 1) if error else float(a == b)
        return Difference(a, b, b - a - width, b - a + width, float(p), error**2)
    low, high = np.quantile(differences, [0.025, 0.975])
    smaller = min((differences <= 0).sum(), (differences >= 0).sum())
    p = min(1.0, 2 * (smaller + 1) / (len(differences) + 1))
    return Difference(a, b, float(low), float(high), float(p), float(differences.var()))


def unpaired(a: float, b: float, resampled_a: np.ndarray, resampled_b: np.ndarray) -> Difference:
    """Two models on different rows: their resamples are independent, so variances add."""
    from scipy.stats import norm

    variance = float(resampled_a.var() + resampled_b.var())
    width = norm.ppf(0.975) * math.sqrt(variance)
    p = 2 * norm.sf(abs(b - a) / math.sqrt(variance)) if variance else float(a == b)
    return Difference(a, b, b - a - width, b - a + width, float(p), variance)


def mcnemar(
    right_a: np.ndarray,
    right_b: np.ndarray,
    groups: Sequence[Hashable],
    repeats: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p-value of equal accuracy, from right_a, right_b (n,) bool on the same rows.

    Where every row is a group of its own: McNemar's exact test, a binomial one on the rows that
    only one model has right (McNemar 1947, Psychometrika 12). Rows that share a group are not
    independent: then the answers of the two models are exchanged in whole groups at random.
    """
    change = np.asarray(right_b, dtype=int) - np.asarray(right_a, dtype=int)
    index = group_index(groups)
    num_groups = int(index.max()) + 1
    if num_groups == len(change):
        from scipy.stats import binomtest

        gained, lost = int((change > 0).sum()), int((change < 0).sum())
        return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    by_group = np.bincount(index, change)
    by_group = by_group[by_group != 0]
    generator = np.random.default_rng(seed)
    exchanged = np.empty(repeats)
    for repeat in range(repeats):
        exchanged[repeat] = by_group @ (2 * generator.integers(2, size=len(by_group)) - 1)
    as_extreme = (np.abs(exchanged) >= abs(by_group.sum())).sum()
    return float((as_extreme + 1) / (repeats + 1))


def two_arms(
    a: np.ndarray,
    b: np.ndarray,
    resampled_a: np.ndarray,
    resampled_b: np.ndarray,
    num_groups: int,
) -> Difference:
    """Arm B against arm A, seeds and rows both taken as drawn at random.

    a (seeds of A,), b (seeds of B,): the metric on all rows; resampled_a (repeats, seeds of A),
    resampled_b: on the same resamples of the rows. Resampling three seeds would give an interval
    that is far too narrow (a bootstrap of 3 values misses a third of their variance and knows no
    t distribution), so seeds enter by their variance s² and rows by the bootstrap's covariances:

        V = s²_A / k_A + s²_B / k_B + max(c_AA + c_BB − 2 c_AB, 0)

    c_AA, c_BB, c_AB: mean covariance between two different runs of A, of B, of A with B; what a
    single run adds by its own chance answers is in s² already and must not be counted twice.
    Interval and p from a t distribution with Satterthwaite's degrees of freedom. It is the
    analysis of a reader study, seeds for readers and rows for cases, readers nested in
    treatments: Obuchowski & Rockette 1995, Commun. Stat. Simul. 24; Hillis 2007, Stat. Med. 26.
    ValueError with fewer than two seeds in an arm.
    """
    from scipy.stats import t

    if min(len(a), len(b)) < 2:
        raise ValueError(f"{len(a)} and {len(b)} seeds: two an arm at least")
    seed_parts = np.array([np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)])
    covariance = np.cov(np.column_stack([resampled_a, resampled_b]), rowvar=False)
    own = np.split(np.arange(len(a) + len(b)), [len(a)])

    def between(rows: np.ndarray, columns: np.ndarray) -> float:
        return float(covariance[np.ix_(rows, columns)][rows[:, None] != columns].mean())

    rows = between(own[0], own[0]) + between(own[1], own[1]) - 2 * between(*own)
    rows = max(rows, 0.0)
    variance = seed_parts.sum() + rows
    freedom = np.array([len(a) - 1, len(b) - 1])
    difference = float(np.mean(b) - np.mean(a))
    seeds = float(np.var(a, ddof=1) + np.var(b, ddof=1))
    if variance == 0:  # identical answers everywhere
        p = float(difference == 0)
        return Difference(np.mean(a), np.mean(b), difference, difference, p, rows, seeds)
    df = variance**2 / ((seed_parts**2 / freedom).sum() + rows**2 / max(num_groups - 1, 1))
    width = t.ppf(0.975, df) * math.sqrt(variance)
    p = 2 * t.sf(abs(difference) / math.sqrt(variance), df)
    return Difference(
        float(np.mean(a)),
        float(np.mean(b)),
        difference - width,
        difference + width,
        float(p),
        rows,
        seeds,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being several (Holm 1979), by statsmodels."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []


def detectable_difference(
    num_groups: float, row_std: float, seeds: int = 1, seed_std: float = 0.0
) -> float:
    """The smallest difference that a comparison sees with 80 % power, two-sided at 5 %.

    row_std: standard deviation of the paired difference of one group (for accuracy with disagreeing
    share ψ, √(ψ − d²)); seed_std: between the seeds of one arm. The variance is that of `two_arms`:
    2 seed_std² / seeds + row_std² / num_groups.
    """
    from scipy.stats import t

    seed_part, row_part = 2 * seed_std**2 / seeds, row_std**2 / num_groups
    variance = seed_part + row_part
    if variance == 0:
        return 0.0
    if seed_part and seeds < 2:
        return math.nan  # one seed says nothing of the spread between seeds
    spread = (seed_part / 2) ** 2 * 2 / (seeds - 1) if seed_part else 0.0
    df = variance**2 / (spread + row_part**2 / max(num_groups - 1, 1))
    return float((t.ppf(0.975, df) + t.ppf(POWER, df)) * math.sqrt(variance))


def rows_needed(
    difference: float, row_std: float, seeds: int = 1, seed_std: float = 0.0
) -> int | None:
    """Groups of rows for 80 % power; None when no number of rows suffices with these seeds."""
    return _smallest(
        lambda n: detectable_difference(n, row_std, seeds, seed_std) <= abs(difference), 10**8
    )


def seeds_needed(
    difference: float, num_groups: float, row_std: float, seed_std: float
) -> int | None:
    """Seeds an arm for 80 % power; None when these rows do not suffice with any number."""
    return _smallest(
        lambda k: detectable_difference(num_groups, row_std, k, seed_std) <= abs(difference), 10**4
    )


def _smallest(suffices, largest: int) -> int | None:
    """The smallest whole number from 2 on that suffices, by bisection."""
    low, high = 1, 2
    while not suffices(high):
        low, high = high, 2 * high
        if low > largest:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high
