"""Intervals of figures whose rows belong together (a prompt, a passage, a document).

Rows that share a group are not independent, groups are often few, and some are much larger than
others. One engine serves every figure. To first order a figure differs from its truth by a sum
over groups, Σ u_g (its influences); then

    V = Σ u_g² / (1 − h_g)                       h_g: the share of the weight that group g has

is the cluster-robust variance CR2, and its degrees of freedom are those of Bell & McCaffrey, under
a working model in which rows of a group correlate by ρ (estimated, Imbens & Kolesár). Few groups
or one that outweighs the others make them few: below two there is no interval.

    interval(losses, prompts)                                    # a mean
    interval(np.stack([sums, tokens], 1), documents, Ratio(0, 1))
    interval(hits, prompts, Ratio(kind="share"))

Bell & McCaffrey 2002, Survey Methodology 28(2); Imbens & Kolesár 2016, Rev. Econ. Stat. 98(4),
section IV; Pustejovsky & Tipton 2018, J. Bus. Econ. Stat. 36(4), section 2. What it covers and
what not: docs/statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

METHOD = "CR2-BM/1"  # name and version: every metrics.json says which made its intervals
FEW_GROUPS = 40  # below, tables and pages say how many there were
LEAST_FREEDOM = 2.0
NO_SPREAD = 1e-9  # a standard error below this share of the figure is rounding

Statistic = Callable[[np.ndarray], np.ndarray]
# how an interval is made from V: `skewed` for losses and other means, which have a long tail;
# `share` within 0..1; `correlation` within -1..1; `plain` for what is as often above as below
KINDS = ("skewed", "share", "correlation", "plain")


@dataclass(frozen=True)
class Ratio:
    """Σ of one column over Σ of another (by number; -1 is the number of rows): means, ratios."""

    numerator: int = 0
    denominator: int = -1
    kind: str = "skewed"

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        return sums[..., self.numerator] / sums[..., self.denominator]


@dataclass(frozen=True)
class Function:
    """Any other smooth function of column sums that doubling all of them leaves unchanged."""

    formula: Statistic
    kind: str = "plain"

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        return self.formula(sums)


class Interval(NamedTuple):
    """(low, high), NaN where there is none; then `problem` says why."""

    low: float
    high: float
    freedom: float = math.inf
    problem: str = ""


NONE = (math.nan, math.nan)


# --------------------------------------------------------------------------------- groups


def group_index(groups: Sequence[Hashable]) -> np.ndarray:
    """Number the groups 0..G-1 in sorted order: (n,) int, the group of each row.

    Groups are compared as text, so ids that were written to predictions.csv and read back give
    the same groups, and the same intervals, as the ids in memory did.
    """
    names = [str(group) for group in groups]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def checked(columns: np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    """Columns as (n, k + 1) with the number of rows last. ValueError for no rows, NaN or Inf in
    the columns, and lengths that differ."""
    columns = np.asarray(columns, dtype=np.float64)
    columns = columns.reshape(len(columns), -1) if columns.size else columns
    if len(columns) == 0 or len(columns) != len(groups):
        raise ValueError(f"{len(columns)} rows and {len(groups)} groups: one group per row, n >= 1")
    if not np.isfinite(columns).all():
        row = int(np.argmin(np.isfinite(columns).all(axis=1)))
        raise ValueError(f"row {row} has NaN or Inf: a figure of it has no interval")
    return np.column_stack([columns, np.ones(len(columns))])


@dataclass
class Influence:
    """A figure and what each row contributes to its distance from the truth, to first order.

    rows (n,): they add up to 0; leverage (n,): each row's share of the weight, adding up to 1.
    """

    value: float
    rows: np.ndarray
    leverage: np.ndarray


def influence(columns: np.ndarray, statistic: Statistic) -> Influence:
    """Of a statistic of the sums of columns (n, k + 1), the last being the number of rows."""
    sums = columns.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(sums))
        if isinstance(statistic, Ratio):
            weight = columns[:, statistic.denominator]
            total = weight.sum()
            rows = (columns[:, statistic.numerator] - value * weight) / total
            return Influence(value, rows, weight / total)
        rows = columns @ _gradient(statistic, sums, np.abs(columns).sum(axis=0))
    return Influence(value, rows, np.full(len(columns), 1 / len(columns)))


def _gradient(statistic: Statistic, sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """By central differences, a hundred-thousandth of each column's size (k,) to both sides."""
    step = 1e-5 * sizes
    apart = statistic(sums + np.diag(step)) - statistic(sums - np.diag(step))
    return np.divide(apart, 2 * step, out=np.zeros_like(sums), where=step > 0)


# ------------------------------------------------------------------------------ the engine
# Groups are on the last axis of every array; what stands before it (repetitions) goes through.


@dataclass
class Groups:
    """Sums over the rows of each group, all (…, G).

    influence: of the rows' influences; squares: of their squares; leverage: of the leverages;
    leverage_squares: of theirs.
    """

    influence: np.ndarray
    squares: np.ndarray
    leverage: np.ndarray
    leverage_squares: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, leverage: np.ndarray, index: np.ndarray) -> Groups:
        """From rows (n,) and the group of each."""
        sums = [np.bincount(index, x) for x in (rows, rows**2, leverage, leverage**2)]
        return cls(*sums)

    @property
    def variance(self) -> np.ndarray:
        """CR2: (…)"""
        return (self.influence**2 * self._inflation).sum(-1)

    @property
    def _inflation(self) -> np.ndarray:
        return 1 / np.maximum(1 - self.leverage, 1e-12)

    @property
    def correlation(self) -> np.ndarray:
        """ρ of two rows of one group, 0..1 (Imbens & Kolesár 2016, eq. 20, with weights); 1 where
        no row differs from the figure, for copies say nothing of it."""
        own = self.squares.sum(-1)
        pairs = (self.leverage**2 - self.leverage_squares).sum(-1)
        own_weight = self.leverage_squares.sum(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            shared = ((self.influence**2).sum(-1) - own) / pairs
            rho = shared / (own / own_weight)
        return np.clip(np.nan_to_num(rho, nan=1.0, posinf=1.0, neginf=0.0), 0.0, 1.0)

    @property
    def freedom(self) -> np.ndarray:
        """Bell & McCaffrey's degrees of freedom of `variance`: (…).

        V is a quadratic form ε'Mε of what the groups add; under the working model its first two
        moments are those of a χ² with (tr MΩ)² / tr MΩMΩ degrees. With one parameter M is
        D − D h1' − 1h'D + 1(h'Dh)1', so that both traces are sums over groups.
        """
        h, d = self.leverage, self._inflation
        rho = self.correlation[..., None]
        omega = self.leverage_squares + rho * (h**2 - self.leverage_squares)
        a, c = d * h, (d * h * h).sum(-1, keepdims=True)
        total, first, second = (
            (omega * x).sum(-1, keepdims=True) for x in (np.ones_like(a), a, a * a)
        )
        trace = (omega * (d + c - 2 * a)).sum(-1)
        crossed = (c * total) ** 2 + 2 * second * total + 2 * first**2 - 4 * c * first * total
        own = (omega**2 * ((d + c - 2 * a) ** 2 - (c - 2 * a) ** 2)).sum(-1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            freedom = trace**2 / (crossed + own)[..., 0]
        return np.where((h > 0).sum(-1) > 1, np.nan_to_num(freedom, nan=0.0), 0.0)

    @property
    def effective(self) -> np.ndarray:
        """As many groups of equal size would say as much, if rows of a group were copies."""
        return 1 / (self.leverage**2).sum(-1)

    @property
    def skewness(self) -> np.ndarray:
        """Third moment of the figure over V^1.5: (…), with the usual factor for few groups."""
        n = self.effective
        factor = n**2 / np.maximum((n - 1) * (n - 2), 1e-12)
        third = np.minimum(np.where(n > 2, factor, np.inf), 3.0) * (self.influence**3).sum(-1)
        return third / np.maximum(self.variance, 1e-300) ** 1.5


def quantile(level: float, freedom: np.ndarray) -> np.ndarray:
    """Student's t that leaves (1 − level) / 2 above it."""
    from scipy.special import stdtrit

    return stdtrit(np.minimum(freedom, 1e9), (1 + level) / 2)


def limits(
    value: np.ndarray, groups: Groups, kind: str, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(low, high, degrees of freedom) of figures `value` (…); NaN where there is no interval."""
    variance, freedom = groups.variance, groups.freedom
    error = np.sqrt(variance)
    spread = error > NO_SPREAD * np.abs(value)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = quantile(level, freedom)
        if kind == "share":
            low, high = _share_limits(value, variance, groups, t, spread)
            there = freedom >= LEAST_FREEDOM
        else:
            low, high = _LIMITS[kind](value, error, groups, t)
            there = spread & (freedom >= LEAST_FREEDOM)
    return np.where(there, low, np.nan), np.where(there, high, np.nan), freedom


def _plain_limits(value, error, groups, t):  # noqa: ARG001 - all kinds are called alike
    return value - t * error, value + t * error


def _skewed_limits(value, error, groups, t):
    """Hall's monotone cubic takes the skewness out of Student's t: the interval reaches further
    to where the long tail is. Hall 1992, J. R. Stat. Soc. B 54(1), section 2."""
    skew = groups.skewness

    def inverse(y):
        return np.where(np.abs(skew) > 1e-6, 3 / skew * (np.cbrt(1 + skew * (y - skew / 6)) - 1), y)

    return value - error * inverse(t), value - error * inverse(-t)


def _correlation_limits(value, error, groups, t):  # noqa: ARG001
    """On Fisher's scale, where they are nearly symmetric."""
    centre, width = np.arctanh(value), t * error / (1 - value**2)
    return np.tanh(centre - width), np.tanh(centre + width)


_LIMITS = {
    "plain": _plain_limits,
    "skewed": _skewed_limits,
    "correlation": _correlation_limits,
}


def _share_limits(value, variance, groups, t, spread):
    """Wilson's interval of as many independent rows as would have the variance V, with Student's
    t. As in Korn & Graubard 1998 (Survey Methodology 24(2)) but for Wilson's in place of Clopper
    and Pearson's, which is wider than it needs to be (Dean & Pagano 2015, J. Surv. Stat. Methodol.
    3(4)). Where all rows agree: as if the rows of a group were copies."""
    rows = 1 / groups.leverage_squares.sum(-1)
    effective = np.where(spread, value * (1 - value) / variance, groups.effective)
    return wilson_limits(value, np.minimum(effective, rows), t)


def wilson_limits(share, n, z):
    """Wilson's score interval (low, high) of a share of n rows; z: the quantile."""
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.where(share <= 0, 0.0, middle - half), np.where(share >= 1, 1.0, middle + half)


# ------------------------------------------------------------------------------ for figures


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share of n independent rows, as (low, high) in 0..1.

    Unlike the normal approximation it keeps a width at 0 of n and n of n. ValueError when n < 1
    or successes lies outside 0..n. Wilson 1927, JASA 22.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a share needs 0 <= successes <= n and n >= 1, not {successes} of {n}")
    low, high = wilson_limits(successes / n, n, float(quantile(level, np.inf)))
    return float(low), float(high)


def interval(
    columns: np.ndarray,
    groups: Sequence[Hashable],
    statistic: Statistic = Ratio(),  # noqa: B008 - frozen
    level: float = 0.95,
) -> Interval:
    """The interval of a statistic of column sums, whole groups taken as drawn at random.

    `columns` is (n,) or (n, k), one line per row; the statistic takes sums (…, k + 1), the last
    being the number of rows: a Ratio, or a Function. The default is the mean of the first column.
    Shares of rows that are groups of their own have Wilson's interval.

    There is none, and `problem` says why, for one group, for less than two degrees of freedom,
    and where no group differs from the others. ValueError as in `checked`.
    """
    columns = checked(columns, groups)
    index = group_index(groups)
    kind = getattr(statistic, "kind", "plain")
    if len(columns) == int(index.max()) + 1 and kind == "share" and isinstance(statistic, Ratio):
        weight = columns[:, statistic.denominator]
        if (weight == 1).all():
            hits = round(float(columns[:, statistic.numerator].sum()))
            return Interval(*wilson_interval(hits, len(columns), level))
    return interval_of(influence(columns, statistic), index, kind, level)


def interval_of(
    figure: Influence, index: np.ndarray, kind: str = "skewed", level: float = 0.95
) -> Interval:
    """`interval` of a figure whose influences are known; index (n,): the group of each row."""
    if not math.isfinite(figure.value) or not np.isfinite(figure.rows).all():
        return Interval(*NONE, 0.0, "the figure is not defined on these rows")
    groups = Groups.of(figure.rows, figure.leverage, index)
    low, high, freedom = (float(x) for x in limits(np.float64(figure.value), groups, kind, level))
    problem = why_none(groups) if math.isnan(low) else ""
    return Interval(low, high, freedom, problem)


def why_none(groups: Groups) -> str:
    """In words, why there is no interval over these groups."""
    there = groups.leverage > 0
    count = int(there.sum())
    if count < 2:
        return "all rows are in one group"
    if groups.freedom < LEAST_FREEDOM:
        largest = groups.leverage.max()
        return (
            f"{groups.freedom:.1f} degrees of freedom from {count} groups, the largest of which "
            f"has {largest:.0%} of the weight"
        )
    return f"the {count} groups do not differ"


def proportion_interval(
    hits: np.ndarray, groups: Sequence[Hashable], level: float = 0.95
) -> Interval:
    """`interval` of the share of True in `hits`, (n,) bool, with `groups` (n,)."""
    return interval(np.asarray(hits, dtype=bool), groups, Ratio(kind="share"), level)


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean over seeds with its interval: Student's t over the seeds, on these rows.

    NaN for one seed, and for seeds that do not differ: a spread of nothing is no spread known.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, *NONE
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    if error <= NO_SPREAD * abs(mean):
        return mean, *NONE
    width = float(quantile(level, len(values) - 1)) * error
    return mean, mean - width, mean + width
