"""Intervals for shares, and for rows that belong together (a prompt, a passage, a document).

Rows that share a group are not independent: an interval that counts them one by one is too narrow.
So whole groups are resampled, each with all of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share of n independent rows, as (low, high) in 0..1.

    Unlike the normal approximation it keeps a width at 0 of n and n of n. ValueError when n < 1
    or successes lies outside 0..n. Wilson 1927, JASA 22; computed by scipy.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a share needs 0 <= successes <= n and n >= 1, not {successes} of {n}")
    from scipy.stats import binomtest

    interval = binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def group_index(groups: Sequence[Hashable]) -> np.ndarray:
    """Number the groups 0..G-1 in sorted order: (n,) int, the group of each row.

    Groups are compared as text, so ids that were written to predictions.csv and read back give
    the same groups, and the same intervals, as the ids in memory did.
    """
    names = [str(group) for group in groups]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def mean_of_rows(sums: np.ndarray) -> np.ndarray:
    """Mean of the first column, from the sums that `cluster_bootstrap` hands to a statistic."""
    return sums[..., 0] / sums[..., -1]


def cluster_bootstrap(
    columns: np.ndarray,
    groups: Sequence[Hashable],
    statistic: Callable[[np.ndarray], np.ndarray] = mean_of_rows,
    repeats: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | tuple[np.ndarray, np.ndarray]:
    """Percentile interval (low, high) of a statistic, resampling whole groups with replacement.

    `columns` is (n,) or (n, k), one line per row. The statistic must be a function of column sums,
    which is enough for means, ratios, recalls and F1, and means that a repeat costs one weighted
    sum over groups. It gets sums of shape (repeats, k + 1), the last column being the number of
    rows, and returns (repeats,), or (repeats, m) to get (low, high) as arrays of shape (m,).
    The default is the mean of the first column:

        cluster_bootstrap(losses, prompts)
        cluster_bootstrap(np.stack([hits, tries], 1), prompts, lambda s: s[..., 0] / s[..., 1])

    The result depends on the rows and the seed, not on the order of the rows. It is (nan, nan) for
    one group, which says nothing about how groups differ, and when the statistic is undefined in
    some resample. Below about 20 groups the interval is known to be too narrow. ValueError for no
    rows, NaN or Inf in the columns, and lengths that differ.
    Cameron, Gelbach & Miller 2008, Rev. Econ. Stat. 90(3), section III (pairs cluster bootstrap).
    """
    sums = resampled_sums(columns, groups, repeats, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.asarray(statistic(sums), dtype=np.float64)
    if len({str(group) for group in groups}) == 1:
        values = np.full_like(values, np.nan)
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    return (float(low), float(high)) if values.ndim == 1 else (low, high)


def resampled_sums(
    columns: np.ndarray, groups: Sequence[Hashable], repeats: int, seed: int = 0
) -> np.ndarray:
    """Column sums of `repeats` resamples of whole groups: (repeats, k + 1), the last being rows.

    `columns` is (n,) or (n, k). Columns of several models on the same rows are resampled together,
    which is what makes their comparison a paired one. Errors as in `cluster_bootstrap`.
    """
    columns = np.asarray(columns, dtype=np.float64)
    columns = columns.reshape(len(columns), -1) if columns.size else columns
    if len(columns) == 0 or len(columns) != len(groups):
        raise ValueError(f"{len(columns)} rows and {len(groups)} groups: one group per row, n >= 1")
    if not np.isfinite(columns).all():
        row = int(np.argmin(np.isfinite(columns).all(axis=1)))
        raise ValueError(f"row {row} has NaN or Inf: a resample of it has no mean")

    index = group_index(groups)
    num_groups = int(index.max()) + 1
    columns = np.column_stack([columns, np.ones(len(columns))])
    group_sums = np.stack([np.bincount(index, column) for column in columns.T], axis=1)  # (G, k+1)

    generator = np.random.default_rng(seed)
    sums = np.empty((repeats, columns.shape[1]))
    chunk = max(1, 2**20 // num_groups)  # bounds memory, and stays in cache
    for start in range(0, repeats, chunk):
        count = min(chunk, repeats - start)
        drawn = generator.integers(num_groups, size=(count, num_groups))
        drawn += num_groups * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * num_groups)
        sums[start : start + count] = times.reshape(count, num_groups) @ group_sums
    return sums


def proportion_interval(
    hits: np.ndarray, groups: Sequence[Hashable], level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Interval (low, high) for the share of True in `hits`, (n,) bool, with `groups` (n,).

    Wilson's where every row has a group of its own, else the cluster bootstrap. When all rows agree
    a bootstrap would have no width: then Wilson's for as many rows as there are groups, as if the
    rows of a group were copies. ValueError as in `cluster_bootstrap`.
    """
    hits = np.asarray(hits, dtype=bool)
    if len(hits) != len(groups):
        raise ValueError(f"{len(hits)} rows and {len(groups)} groups: one group per row")
    num_groups = len({str(group) for group in groups})
    if num_groups == len(hits):
        return wilson_interval(int(hits.sum()), len(hits), level)
    if hits.all() or not hits.any():
        return wilson_interval(num_groups if hits.all() else 0, num_groups, level)
    return cluster_bootstrap(hits, groups, level=level, seed=seed)
