"""What a comparison can see, by the test that will be run: its power at a stated difference.

design = Design(seeds=3, seed_std=0.01, row_variance=0.004**2, row_freedom=400, comparisons=7)
power(design, 0.03)             # of 0.03 in the metric's unit
detectable(design)              # what is called in four of five experiments
seeds_needed(design, 0.03)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluation.comparisons import ALPHA, MIN_SEEDS, weighted_quantile

POWER = 0.8
MOST_SEEDS = 1000
NODES = 14  # of Gauss and Legendre's rule, for each variance that is estimated
WELL_KNOWN = 150  # from so many degrees of freedom on a variance is taken as known
MOST_ROWS = 10**8


@dataclass(frozen=True)
class Design:
    """Two arms of `seeds` runs each, or two models (seeds=1), on the same rows.

    seed_std: standard deviation between the seeds of an arm; row_variance: the part of the
    variance of a difference that rows add, with row_freedom degrees; comparisons: as many share
    the 5 %; correlation: of the arms' seeds, where pairing is declared, else None; weighted: the
    test is by `weighted_quantile`.
    """

    seeds: int = 1
    seed_std: float = 0.0
    row_variance: float = 0.0
    row_freedom: float = 1e9
    comparisons: int = 1
    correlation: float | None = None
    weighted: bool = False


def power(design: Design, difference: float) -> float:
    """The chance that the test of `contrast` calls a true `difference`, two-sided at 5 % shared
    by the comparisons (the first of Holm's steps).

    Integrated over the variances that the seeds and rows may show, with Satterthwaite's degrees
    of freedom taken from each, as the test takes them: planning with 2k − 2 promises .80 where
    three seeds an arm keep .68.
    """
    from scipy.special import chdtri, ndtr, stdtrit

    k, paired = design.seeds, design.correlation is not None
    parts = []  # (true variance, its degrees of freedom)
    if k > 1 and design.seed_std > 0:
        each = design.seed_std**2 / k
        if paired:
            parts = [(2 * each * (1 - design.correlation), k - 1)]
        else:
            parts = [(each, k - 1)] * 2
    if design.row_variance > 0:
        parts.append((design.row_variance, max(design.row_freedom, 1.0)))
    parts = [(variance, freedom) for variance, freedom in parts if variance > 0]
    if not parts:
        return float(difference != 0)
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    nodes, weights = (nodes + 1) / 2, weights / 2
    seen, chance = [], np.ones(1)
    for axis, (variance, freedom) in enumerate(parts):
        if freedom > WELL_KNOWN:
            values, chances = np.array([variance]), np.ones(1)
        else:
            values, chances = variance * chdtri(freedom, 1 - nodes) / freedom, weights
        others = [other for other in range(len(parts)) if other != axis]
        seen.append(np.expand_dims(values, others))
        chance = chance * np.expand_dims(chances, others)
    total = sum(seen)
    freedom = total**2 / sum(part**2 / f for part, (_, f) in zip(seen, parts, strict=True))
    level = 1 - ALPHA / design.comparisons
    if design.weighted:
        threshold = weighted_quantile(level, seen, [f for _, f in parts]) * np.sqrt(total)
    else:
        threshold = stdtrit(freedom, (1 + level) / 2) * np.sqrt(total)
    error = math.sqrt(sum(variance for variance, _ in parts))
    called = ndtr((abs(difference) - threshold) / error)
    called += ndtr((-abs(difference) - threshold) / error)
    return float((chance * called).sum())


def detectable(design: Design, wanted: float = POWER) -> float:
    """The smallest true difference with this power, by bisection; 0 where nothing varies."""
    total = 2 * design.seed_std**2 / design.seeds + design.row_variance
    if total == 0:
        return 0.0
    low, high = 0.0, math.sqrt(total)
    while power(design, high) < wanted:
        low, high = high, 2 * high
    while high - low > 1e-5 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if power(design, middle) >= wanted else (middle, high)
    return high


def seeds_needed(design: Design, difference: float, wanted: float = POWER) -> int | None:
    """Seeds an arm, three at least; None when these rows do not suffice with any number."""
    return _smallest(
        lambda k: power(replace(design, seeds=k), difference) >= wanted, MIN_SEEDS, MOST_SEEDS
    )


def rows_needed(
    design: Design,
    difference: float,
    row_std: float,
    freedom_share: float = 1.0,
    wanted: float = POWER,
) -> int | None:
    """Rows (or groups) of this standard deviation; None when no number suffices with these seeds.

    row_std: of the difference of two arms on one row (for accuracy with disagreeing share ψ,
    √(ψ − d²)); freedom_share: degrees of freedom of n unequal groups over those of n equal ones.
    """

    def suffices(n: int) -> bool:
        freedom = max(1.0, (n - 1) * freedom_share)
        more = replace(design, row_variance=row_std**2 / n, row_freedom=freedom)
        return power(more, difference) >= wanted

    return _smallest(suffices, 2, MOST_ROWS)


def standard_deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1))


def spread_range(std: float, freedom: int, level: float = 0.9) -> tuple[float, float]:
    """What a standard deviation may be that was estimated with so many degrees of freedom."""
    from scipy.special import chdtri

    tail = (1 - level) / 2
    low, high = (math.sqrt(freedom / chdtri(freedom, p)) for p in (tail, 1 - tail))
    return std * low, std * high


def _smallest(suffices: Callable[[int], bool], least: int, largest: int) -> int | None:
    """The smallest whole number from `least` on that suffices, by bisection."""
    low, high = least - 1, least
    while not suffices(high):
        low, high = high, 2 * high
        if low > largest:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high
