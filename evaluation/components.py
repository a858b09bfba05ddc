"""Where the spread of a figure comes from: components of variance of a balanced nested design.

    components(values)      # values (starts, orders, masks): one run each; outermost source first

Each source's draws are nested in one draw of the source before it, so what two sources do together
counts for the inner one, and the shares of all sources add up to 1.
"""

from typing import NamedTuple

import numpy as np

DRAWS = 20_000


class Component(NamedTuple):
    """One source; variance: in the figure's unit squared, 0 where the estimate is below."""

    share: float  # of the total variance
    low: float
    high: float
    variance: float
    freedom: int


class Components(NamedTuple):
    """All sources, outermost first, and the standard deviation of one run with new seeds."""

    sources: list[Component]
    deviation: float
    low: float
    high: float


def components(values: np.ndarray, level: float = 0.95, seed: int = 0) -> Components:
    """Shares with intervals at `level`, of values (s_1, …, s_K), two draws or more at each source.

    Estimates: analysis of variance (Searle, Casella & McCulloch 1992, Variance Components, section
    3.5), those below 0 set to 0. Intervals: generalized ones, sums of squares over draws from their
    chi-squared distributions, which hold for normal figures (Weerahandi 1993, JASA 88(423);
    Krishnamoorthy & Mathew 2009, Statistical Tolerance Regions, section 5.2).
    ValueError for a source with one draw, or figures that do not differ at all.
    """
    values = np.asarray(values, dtype=np.float64)
    sizes = values.shape
    if not sizes or min(sizes) < 2:
        raise ValueError(f"a source with one draw has no spread: the design is {sizes}")
    if np.ptp(values) == 0:
        raise ValueError("all runs have the same figure")
    squares, freedoms, below = [], [], []
    mean_above = values.mean(keepdims=True)
    for source in range(len(sizes)):
        inner = tuple(range(source + 1, len(sizes)))
        mean = values.mean(axis=inner, keepdims=True)
        runs = int(np.prod(sizes[source + 1 :]))
        squares.append(runs * float(((mean - mean_above) ** 2).sum()))
        freedoms.append(int(np.prod(sizes[:source])) * (sizes[source] - 1))
        below.append(runs)
        mean_above = mean
    sums, freedom, count = np.array(squares), np.array(freedoms), np.array(below)
    estimate = np.maximum(_variances(sums / freedom, count), 0)
    generator = np.random.default_rng(seed)
    drawn = _variances(sums / generator.chisquare(freedom, (DRAWS, len(sizes))), count)
    # a sum of mean squares with weights above 0; to cut parts at 0 first would raise it
    total = drawn.sum(axis=1)
    shares = np.clip(drawn / total[:, None], 0, 1)
    ends = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2], axis=0)
    spread = np.sqrt(np.quantile(total, [(1 - level) / 2, (1 + level) / 2]))
    shares = estimate / estimate.sum()
    found = [
        Component(*map(float, (share, low, high, variance)), int(each))
        for share, low, high, variance, each in zip(shares, *ends, estimate, freedom, strict=True)
    ]
    return Components(found, float(np.sqrt(estimate.sum())), *map(float, spread))


def _variances(mean_squares: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(…, K) mean squares → (…, K) variances, some maybe below 0; count (K,): runs in a draw."""
    inner = np.concatenate([mean_squares[..., 1:], np.zeros_like(mean_squares[..., :1])], axis=-1)
    return (mean_squares - inner) / count
