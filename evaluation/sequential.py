"""Looking at results while seeds are still being added: what a look costs, and a boundary for it.

nominal_level(3, 10, 0.05)      # of a race of at most 10 seeds: p below it at a look is a verdict
error_rate([3, 5, 8])           # of the usual test that was looked at three times
in_vain(difference, 4, levels, None)    # "seeds": the other six would hardly decide it

A race is paired by seed and is looked at after every seed from the third on. Verdicts come from
the interval at the level of that look; these hold together, whatever the race then does
(repeated confidence intervals: Jennison & Turnbull 1989, J. R. Stat. Soc. B 51(3), section 2), so
that "better" and "the same" need no further correction. The levels are exact for the sequence of
paired t statistics, whose joint distribution is simulated: Jennison & Turnbull 1991 (Biometrika
78(1)) integrate it. What the rows add to the variance makes a verdict rarer, as each part has its
own degrees of freedom (`comparisons.small_level_width`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from evaluation.comparisons import ALPHA, MIN_SEEDS, Difference, small_level_width
from evaluation.stats import quantile

# At look k of N the level is that of the last look × (k / N)²: between equal levels (Pocock 1977),
# which waste the last look on t statistics of two degrees of freedom, and O'Brien and Fleming's,
# which hardly stop early. As a race may go on after it, a level is never spent twice.
SHAPE = 2.0
# Of the 5 %, for arms in which a seed diverged: no mean is left, so that they are judged by ranks,
# once, when all seeds are there. Both together stay within the 5 %.
KEPT_FOR_RANKS = 0.1
PATHS = 400_000
CHUNK = 50_000
MOST_LOOKED = 60  # seeds; the 20th look changes little


def paired_p(differences: np.ndarray) -> np.ndarray:
    """Two-sided p of the paired t after each seed from the third on: (…, N) → (…, N − 2)."""
    from scipy.special import stdtr

    k = np.arange(1, differences.shape[-1] + 1)[2:]
    sums = differences.cumsum(-1)[..., 2:]
    squares = (differences**2).cumsum(-1)[..., 2:]
    spread = np.maximum(squares - sums**2 / k, 1e-300)
    t = np.abs(sums) / np.sqrt(k * spread / (k - 1))
    return 2 * stdtr((k - 1).astype(float), -t)


@functools.cache
def _extremes(most: int) -> np.ndarray:
    """The smallest p over a race under the null, each divided by its look's share: sorted."""
    draw, found = np.random.default_rng(most), []
    share = look_share(np.arange(MIN_SEEDS, most + 1), most)
    for _ in range(PATHS // CHUNK):
        p = paired_p(draw.normal(size=(CHUNK, most)))
        found.append((p / share).min(-1))
    return np.sort(np.concatenate(found))


def look_share(seeds, most: int):
    return (np.asarray(seeds) / most) ** SHAPE


def nominal_level(seeds: int, most: int, alpha: float = ALPHA) -> float:
    """The level of the look after so many seeds, in a race of at most `most`, of which any false
    verdict has a chance of alpha. Simulated with a fixed seed: good to 2 % of itself at alpha .01.
    """
    if not MIN_SEEDS <= seeds <= most:
        raise ValueError(f"{seeds} seeds: a race looks from {MIN_SEEDS} to {most} seeds")
    if most == MIN_SEEDS:
        return alpha
    last = float(np.quantile(_extremes(most), alpha))
    return last * float(look_share(seeds, most))


def levels_of_race(most: int, arms: int) -> dict[int, float]:
    """The level of each look (by seeds), where so many arms race against one baseline.

    The 5 % are divided by the arms (Bonferroni: a verdict then never waits for another arm), after
    the part that is kept for ranks.
    """
    alpha = ALPHA * (1 - KEPT_FOR_RANKS) / max(arms, 1)
    return {k: nominal_level(k, most, alpha) for k in range(MIN_SEEDS, most + 1)}


def ranks_level(arms: int) -> float:
    """Of the one test by ranks of an arm in which a seed diverged."""
    return ALPHA * KEPT_FOR_RANKS / max(arms, 1)


@functools.cache
def _error_rate(looks: tuple[int, ...], paired: bool) -> float:
    from scipy.special import stdtr

    draw = np.random.default_rng(len(looks))
    repeats = CHUNK
    called = np.zeros(repeats, bool)
    a = draw.normal(size=(repeats, max(looks)))
    b = np.zeros_like(a) if paired else draw.normal(size=a.shape)
    for k in looks:
        parts = [x[:, :k].var(axis=1, ddof=1) / k for x in ((a,) if paired else (a, b))]
        variance = sum(parts)
        freedom = variance**2 / sum(part**2 / (k - 1) for part in parts)
        t = (b[:, :k].mean(1) - a[:, :k].mean(1)) / np.sqrt(variance)
        called |= 2 * stdtr(freedom, -np.abs(t)) < ALPHA
    return float(called.mean())


def error_rate(looks: Sequence[int], paired: bool = False) -> float:
    """How often some look at so many seeds an arm calls a difference where there is none, each
    tested at 5 % as if it were the only one: simulated, seeds alone counting (Armitage, McPherson
    & Rowe 1969, J. R. Stat. Soc. A 132)."""
    known = tuple(sorted({min(k, MOST_LOOKED) for k in looks if k >= MIN_SEEDS}))
    return _error_rate(known, paired) if known else ALPHA


def in_vain(found: Difference, seeds: int, levels: dict[int, float], margin: float | None) -> str:
    """Why a paired difference, undecided with so many seeds, is not raced on: "rows" where more
    seeds would not decide it, "seeds" where those that the race may have hardly would, else "".
    levels: of the looks. It is never given up wrongly at the cost of the 5 %: it gets no verdict.
    """
    if math.isnan(found.error) or not found.seed_parts:
        return ""
    (part, freedom), *_ = found.seed_parts
    most = max(levels)
    known = found.value, part, freedom, found.row_variance, found.row_freedom, levels[most], margin
    if only_rows_help(*known):
        return "rows"
    last = {"share": seeds / most, "last": most - 1}
    return "seeds" if seeds < most and stays_undecided(*known, **last) else ""


def only_rows_help(value, part, freedom, row_variance, row_freedom, level, margin=None):
    """Whether these rows leave a difference undecided however many seeds are added."""
    open_ = stays_undecided(value, part, freedom, row_variance, row_freedom, level, margin)
    return open_ & (np.asarray(row_variance) > 0)


def stays_undecided(
    value, part, freedom, row_variance, row_freedom, level, margin=None, share=0.0, last=1
):
    """Whether a difference will hardly be decided at the last look, which is the most generous one.

    level: of that look; part: of the variance, by the seeds so far, with so many degrees of
    freedom; share: of the last look's seeds that there are, 0 if their number had no limit; last:
    the degrees of freedom then. By that look the difference has moved to somewhere within the
    80 % interval of what the seeds in between may add, √(part · (1 − share)). Where every such
    place would be undecided by what is then left of the variance, going on is in vain: as in
    stochastic curtailment (Lan, Simon & Halperin 1982, Commun. Stat. C 1(3)), with the spread
    estimated.
    """
    part = np.asarray(part, float)
    reach = quantile(0.8, np.asarray(freedom, float)) * np.sqrt(part * (1 - share))
    half = small_level_width(part * share, float(last), row_variance, row_freedom, level)
    smallest = np.maximum(np.abs(value) - reach, 0.0)
    the_same = smallest + half < margin if margin is not None else np.zeros_like(half, bool)
    return (np.abs(value) + reach <= half) & ~the_same
