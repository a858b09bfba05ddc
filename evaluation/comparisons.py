"""Is B better than A? Two models on the same rows, or arms of several seeds each.

What is hard for both cancels: rows enter by the difference of their influences (`stats`), whole
groups at once. Two runs are two models: what is said of them holds for these two files of weights.
A change of method is judged over seeds, whose own spread counts as well. How much a design can
see: `planning`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluation.stats import (
    LEAST_FREEDOM,
    NO_SPREAD,
    NONE,
    Groups,
    Influence,
    group_index,
    quantile,
    why_none,
    wilson_limits,
)

MIN_SEEDS = 3  # below that the spread between seeds is hardly known
ALPHA = 0.05


@dataclass(frozen=True)
class Discordant:
    """Rows that one model alone has right, of independent rows: for accuracy, in place of t."""

    gained: int
    lost: int
    rows: int

    @property
    def p(self) -> float:
        return mid_p(self.gained, self.lost)

    def interval(self, level: float) -> tuple[float, float]:
        """Of the difference of two accuracies on the same rows: it excludes 0 exactly where the
        mid-p test does at 1 − level.

        The difference is (2π − 1)ψ: π, the share of the discordant rows that were gained, has the
        limits that the mid-p binomial test does not reject; ψ, the share of discordant rows,
        Wilson's. They are put together as in Zou & Donner 2008 (Stat. Med. 27(10), section 2),
        each variance taken at the limit, so that at π = ½ nothing of ψ is left.
        """
        discordant = self.gained + self.lost
        share = discordant / self.rows
        low_share, high_share = wilson_limits(share, self.rows, float(quantile(level, np.inf)))
        if not discordant:
            return -float(high_share), float(high_share)
        low, high = (2 * pi - 1 for pi in mid_p_limits(self.gained, discordant, 1 - level))
        middle = 2 * self.gained / discordant - 1

        def limit(end: float, outwards: float) -> float:
            # away from 0 fewer discordant rows, on the other side of it more, are the wider case
            other = high_share if end * outwards > 0 else low_share
            width = math.hypot(share * (middle - end), end * (share - other))
            return share * middle + outwards * width

        return limit(low, -1.0), limit(high, 1.0)


@dataclass
class Difference:
    """B − A in the unit of the metric.

    error: its standard error, NaN where it is not known, and then `problem` says why; freedom: of
    Student's t. row_variance: the part of error² that more rows would shrink; seed_parts: the
    part of each cell's seeds with its degrees of freedom, none for two models. correlation:
    between the seeds of two arms that share them, where they do. weighted: by
    `weighted_quantile` in place of Student's t with `freedom` degrees.
    """

    a: float
    b: float
    error: float
    freedom: float
    row_variance: float = math.nan
    row_freedom: float = math.inf
    seed_parts: tuple[tuple[float, int], ...] = ()
    correlation: float = math.nan
    discordant: Discordant | None = None
    problem: str = ""
    weighted: bool = False

    @property
    def parts(self) -> tuple[list[float], list[float]]:
        """(variances, degrees of freedom) of seeds and rows; the variances add up to error²."""
        both = (*self.seed_parts, (self.row_variance, self.row_freedom))
        return [variance for variance, _ in both], [freedom for _, freedom in both]

    @property
    def value(self) -> float:
        return self.b - self.a

    @property
    def p(self) -> float:
        """Two-sided, of no difference; 1 where nothing is known of the error."""
        if self.discordant:
            return self.discordant.p
        if math.isnan(self.error):
            return 1.0
        if self.weighted:
            return float(weighted_p(np.array(abs(self.value) / self.error), *self.parts))
        from scipy.special import stdtr

        return float(2 * stdtr(min(self.freedom, 1e9), -abs(self.value) / self.error))

    def at_small_level(self, level: float) -> Difference:
        """For a test far below 5 %: with degrees of freedom that `small_level_width` leaves it."""
        if not self.seed_parts or math.isnan(self.error):
            return self
        from scipy.special import stdtridf

        seeds = sum(part for part, _ in self.seed_parts)
        rows = (self.row_variance, self.row_freedom)
        width = float(small_level_width(seeds, freedom_of(self.seed_parts), *rows, level))
        return replace(self, freedom=float(stdtridf(1 - level / 2, width / self.error)))

    def among_others(self) -> Difference:
        """For a test that shares the 5 % with others. Where one block of seeds is what is known
        least, Satterthwaite's degrees of freedom fall apart far below 5 %: three paired seeds and
        rows of a third of their variance err 1.5 times as often as they say at 5 %, 3.1 times at a
        sixth of it, 5.3 at a seventeenth; `weighted_quantile` never more than it says."""
        return replace(self, weighted=True) if len(self.seed_parts) == 1 else self

    def interval(self, level: float = 1 - ALPHA) -> tuple[float, float]:
        """It excludes 0 exactly where p < 1 − level. NaN where nothing is known of the error."""
        if self.discordant:
            return self.discordant.interval(level)
        if math.isnan(self.error):
            return NONE
        if self.weighted:
            width = float(weighted_quantile(level, *self.parts)) * self.error
        else:
            width = float(quantile(level, self.freedom)) * self.error
        return self.value - width, self.value + width


def weighted_quantile(
    level: np.ndarray | float, variances: Sequence, freedoms: Sequence
) -> np.ndarray:
    """Of a sum of variances, each with Student's t of its own degrees of freedom: never too narrow
    (Banerjee 1960, Sankhyā 22).

    Satterthwaite's one number is not enough far below 5 %: where few seeds lie together by luck,
    what rows add by chance lends them the freedom of many rows. At 5 % shared by six contrasts that
    are blocked by three seeds it errs .084 (docs/statistics.md has what this errs).
    """
    return _width(level, variances, freedoms) / np.sqrt(sum(variances))


def _width(level: np.ndarray | float, variances: Sequence, freedoms: Sequence) -> np.ndarray:
    """Half of the interval."""
    parts = [
        np.where(np.asarray(v) > 0, v * quantile(level, np.asarray(f, float)) ** 2, 0.0)
        for v, f in zip(variances, freedoms, strict=True)
    ]
    return np.sqrt(sum(parts))


def weighted_p(t: np.ndarray, variances: Sequence, freedoms: Sequence) -> np.ndarray:
    """Two-sided p, below 1 − level exactly where |t| is above `weighted_quantile`; by bisection of
    its logarithm, to 1e-16."""
    low, high = np.full(np.shape(t), math.log(1e-16)), np.zeros(np.shape(t))
    for _ in range(50):
        middle = (low + high) / 2
        beyond = t > weighted_quantile(-np.expm1(middle), variances, freedoms)
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return np.exp(high)


def freedom_of(parts: Sequence[tuple[float, float]]) -> float:
    """Satterthwaite's degrees of freedom of a sum of variances, each with its own."""
    spread = sum(part**2 / freedom for part, freedom in parts)
    return sum(part for part, _ in parts) ** 2 / spread if spread > 0 else 0.0


def small_level_width(seeds, freedom, rows, row_freedom, level):
    """Half of the interval at 1 − level, as `weighted_quantile` has it, from the seeds' and the
    rows' part of the variance."""
    return _width(1 - level, (seeds, rows), (freedom, row_freedom))


# --------------------------------------------------------------------- accuracy, row by row


def mid_p(gained: int, lost: int) -> float:
    """McNemar's test with mid-p: a binomial one on the rows that only one model has right, half of
    the probability of what was seen counted. Two-sided. Fagerland, Lydersen & Laake 2013, BMC Med.
    Res. Methodol. 13:91, whose exact form is too careful. 1 without such rows."""
    from scipy.stats import binom

    n, fewer = gained + lost, min(gained, lost)
    if n == 0 or gained == lost:
        return 1.0
    return float(2 * (binom.cdf(fewer, n, 0.5) - binom.pmf(fewer, n, 0.5) / 2))


def mid_p_limits(hits: int, n: int, alpha: float) -> tuple[float, float]:
    """The shares (low, high) of hits of n that a mid-p binomial test does not reject at alpha."""
    from scipy.optimize import brentq
    from scipy.stats import binom

    def above(share: float) -> float:  # P(X > hits) + half of P(X = hits), grows with the share
        return float(binom.sf(hits, n, share) + binom.pmf(hits, n, share) / 2)

    low = brentq(lambda s: above(s) - alpha / 2, 0, 1) if hits else 0.0
    high = brentq(lambda s: above(s) - (1 - alpha / 2), 0, 1) if hits < n else 1.0
    return float(low), float(high)


# ------------------------------------------------------------------------------ two models


def two_models(
    a: Influence,
    b: Influence,
    groups: Sequence[Hashable],
    right: tuple[np.ndarray, np.ndarray] | None = None,
) -> Difference:
    """One model against one other on the same rows, with the group of each row.

    right: for accuracy, which rows a and b have right, (n,) bool each; where every row is a group
    of its own they are compared by `Discordant`.
    """
    index = group_index(groups)
    if right is not None and int(index.max()) + 1 == len(index):
        change = right[1].astype(int) - right[0].astype(int)
        gained, lost = int((change > 0).sum()), int((change < 0).sum())
        both = Discordant(gained, lost, len(change))
        variance = ((gained + lost) / len(change) - change.mean() ** 2) / len(change)
        error, freedom = math.sqrt(max(variance, 0.0)), len(change) - 1
        return Difference(a.value, b.value, error, freedom, variance, freedom, discordant=both)
    return contrast([[a], [b]], [-1.0, 1.0], index)


def unpaired(a: Difference, b: Difference) -> Difference:
    """Two arms or models on different rows; a, b: each against nothing (`contrast` of one cell).

    Their variances add, with Satterthwaite's degrees of freedom.
    """
    variances = np.array([a.error**2, b.error**2])
    total = float(variances.sum())
    if not total > 0:
        problem = a.problem or b.problem or "neither varies"
        return Difference(a.b, b.b, math.nan, 0.0, problem=problem)
    freedom = total**2 / (variances**2 / np.array([a.freedom, b.freedom])).sum()
    return Difference(
        a.b,
        b.b,
        math.sqrt(total),
        float(freedom),
        a.row_variance + b.row_variance,
        min(a.row_freedom, b.row_freedom),
        a.seed_parts + b.seed_parts,
    )


# ---------------------------------------------------------------------------- over seeds


def contrast(
    cells: Sequence[Sequence[Influence]],
    weights: Sequence[float],
    index: np.ndarray,
    paired: bool = False,
    weighted: bool = False,
) -> Difference:
    """Σ weight × mean of a cell, on the same rows; index (n,): the group of each row.

    A cell holds the runs of one setting: the arms are [A, B] with weights [−1, 1]; in a grid,
    where a factor is judged with the others blocked, all settings with ±1/blocks. With one run a
    cell it is a difference of models; with more, seeds and rows both count as drawn at random:

        V = Σ_p w_p² s_p² / k_p + max(Σ_pq w_p w_q c_pq, 0)

    s_p²: variance between the k_p seeds of cell p. c_pq: mean covariance, over groups of rows,
    between two different runs of cells p and q; what a single run adds by its own chance answers
    is in s² already and must not be counted twice. Degrees of freedom by Satterthwaite. It is the
    analysis of a reader study, seeds for readers and rows for cases, readers nested in treatments:
    Obuchowski & Rockette 1995, Commun. Stat. Simul. 24; Hillis 2007, Stat. Med. 26.

    paired: run s of every cell has the same seed, declared before any result. Then the seeds' part
    is the variance of their own contrasts, with k − 1 degrees of freedom (readers crossed).
    weighted: for many contrasts at once, `weighted_quantile`.
    """
    counts = [len(cell) for cell in cells]
    values = [np.array([run.value for run in cell]) for cell in cells]
    a = -sum(w * v.mean() for w, v in zip(weights, values, strict=True) if w < 0)
    b = sum(w * v.mean() for w, v in zip(weights, values, strict=True) if w > 0)
    own = np.concatenate([[w / k] * k for w, k in zip(weights, counts, strict=True)])
    runs = [run for cell in cells for run in cell]
    of_rows = sum(c * run.rows for c, run in zip(own, runs, strict=True))
    leverage = np.mean([run.leverage for run in runs], axis=0)
    if not np.isfinite(of_rows).all():
        return Difference(a, b, math.nan, 0.0, problem="the figure is not defined in each run")
    groups = Groups.of(of_rows, leverage, index)
    each = np.stack([np.bincount(index, run.rows) for run in runs])  # (runs, G)
    variance, freedom, rows, seeds, correlation = (
        np.asarray(x)
        for x in contrast_variance(
            values, np.split(each, np.cumsum(counts)[:-1]), weights, groups, paired
        )
    )
    scale = max(abs(a), abs(b))
    found = Difference(
        *(float(a), float(b), math.sqrt(variance), float(freedom), float(rows)),
        float(groups.freedom),
        tuple((float(v), int(k)) for v, k in seeds),
        float(correlation),
        weighted=weighted and seeds.size > 0,
    )
    if found.error > NO_SPREAD * scale and found.freedom >= (
        LEAST_FREEDOM if not seeds.size else 0
    ):
        return found
    if found.error <= NO_SPREAD * scale:
        problem = "the runs do not differ in any row" if found.value == 0 else "nothing varies"
    else:
        problem = why_none(groups)
    return replace(found, error=math.nan, problem=problem)


def contrast_variance(
    values: Sequence[np.ndarray],
    each: Sequence[np.ndarray],
    weights: Sequence[float],
    groups: Groups,
    paired: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list, np.ndarray]:
    """(V, its degrees of freedom, the rows' part, [(part, degrees) of seeds], r) of `contrast`.

    values: (…, k) of each cell; each: (…, k, G) influences of its runs; groups: of the contrast.
    """
    counts = [v.shape[-1] for v in values]
    nan = np.full(np.shape(values[0])[:-1], np.nan)
    if max(counts) == 1:
        return groups.variance, groups.freedom, groups.variance, [], nan
    if min(counts) == 1 or (paired and len(set(counts)) > 1):
        raise ValueError(f"{counts} seeds: two in each cell at least, as many in each if paired")
    inflation = 1 / np.maximum(1 - groups.leverage, 1e-12)
    sums = [x.sum(axis=-2) for x in each]
    rows = np.zeros(nan.shape)
    for p, q in itertools.product(range(len(each)), repeat=2):
        products, pairs = sums[p] * sums[q], counts[p] * counts[q]
        if p == q or paired:  # not of a run with itself, nor with the one of the same seed
            products, pairs = products - (each[p] * each[q]).sum(axis=-2), pairs - counts[p]
        rows = rows + weights[p] * weights[q] * (products * inflation).sum(-1) / pairs
    rows = np.maximum(rows, 0.0)
    correlation = nan
    if paired:
        of_seeds = sum(w * v for w, v in zip(weights, values, strict=True))
        seeds = [(of_seeds.var(axis=-1, ddof=1) / counts[0], counts[0] - 1)]
        if len(values) == 2:
            a, b = (v - v.mean(axis=-1, keepdims=True) for v in values)
            spread = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
            correlation = np.divide((a * b).sum(-1), spread, out=nan.copy(), where=spread > 0)
    else:
        seeds = [
            (w**2 * v.var(axis=-1, ddof=1) / k, k - 1)
            for w, v, k in zip(weights, values, counts, strict=True)
        ]
    variance = rows + sum(part for part, _ in seeds)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = sum(part**2 / degrees for part, degrees in seeds)
        spread = spread + rows**2 / np.maximum(groups.freedom, 1e-12)
        freedom = np.nan_to_num(variance**2 / spread, nan=0.0)
    return variance, freedom, rows, seeds, correlation


# ------------------------------------------------------------------------- several at once


def levels(p_values: Sequence[float], fixed: bool = False) -> list[float]:
    """The level of each comparison's test, for a chance of one false call in `ALPHA` of all.

    Holm 1979 (Scand. J. Stat. 6): the smallest p at α/m, the next at α/(m − 1), and from the first
    that is not below its level on all at that one. An interval of 1 − level then excludes 0
    exactly where the comparison is called. fixed: α/m for all, which is what remains of Holm's
    steps where "the same" may be called as well (`verdict`): a comparison that is settled by one
    of its two nulls can still go wrong by the other (Shaffer 1986, J. Am. Stat. Assoc. 81).
    """
    count = len(p_values)
    if fixed:
        return [ALPHA / count] * count
    found, called = [0.0] * count, 0
    for i in sorted(range(count), key=lambda i: p_values[i]):
        found[i] = ALPHA / (count - called)
        called += p_values[i] < found[i]
    return found


def corrected(p_values: Sequence[float], fixed: bool = False) -> list[float]:
    """p-values that are below `ALPHA` exactly where p is below its level of `levels`."""
    count = len(p_values)
    if fixed:
        return [min(1.0, p * count) for p in p_values]
    found, largest = [0.0] * count, 0.0
    for rank, i in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[i] * (count - rank)))
        found[i] = largest
    return found


def verdict(low: float, high: float, higher_is_better: bool, margin: float | None = None) -> str:
    """better, worse, the same, or undecided: by where the interval of B − A lies.

    With a margin, an interval inside ± margin is "the same", or where it also excludes 0 "better,
    by less than" the margin.
    """
    if math.isnan(low):
        return "undecided"
    small = margin is not None and -margin < low and high < margin
    if low <= 0 <= high:
        return "the same" if small else "undecided"
    word = "better" if (low > 0) == higher_is_better else "worse"
    return f"{word}, by less than {margin:g}" if small else word
