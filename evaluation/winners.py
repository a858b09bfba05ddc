"""The best of several: what is left of its lead on rows and seeds that did not choose it.

noise = noise_of(weights, seed_parts, row_variance)
shrunk(lead, error, freedom, spread, noise, count)     # Lead(expected, low, high)

Whoever is shown as the best of K was chosen by the same figures that show it, luck included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from evaluation.comparisons import ALPHA
from evaluation.stats import quantile


class Lead(NamedTuple):
    """Over the mean of all K: what to expect on fresh rows, and its 95 % interval."""

    expected: float
    low: float
    high: float


def noise_of(weights: Sequence[float], seed_parts: Sequence[tuple], row_variance):
    """The variance of a setting's own figure by seeds and rows, on average over all K: of the
    contrast of one with the mean of all (`comparisons.contrast`), whose weights these are."""
    count = len(weights)
    seeds = sum(part / w**2 for w, (part, _) in zip(weights, seed_parts, strict=False)) / count
    return seeds + row_variance * count / (count - 1)


def shrunk(lead, error, freedom, spread, noise, count: int) -> Lead:
    """Of the best of `count` settings; arrays are taken as well.

    lead: its figure less the mean of all, above 0; error: the standard error of that, with so many
    degrees of freedom; spread: standard deviation of the figures of all settings, K − 1 in its
    divisor; noise: the variance of a figure, on average (`noise_of`).

    What to expect is the lead times the share of the spread that is no noise (James & Stein 1961;
    Efron & Morris 1975, J. Am. Stat. Assoc. 70, section 2, by moments): 0 where settings differ by
    no more than chance lets them. The interval holds whatever the settings are: downwards it
    allows for any of K having been chosen, upwards for none, as what is the best has luck on its
    side (Benjamini, Hechtlinger & Stark 2019, arXiv:1906.00505).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        real = np.clip(1 - noise / np.asarray(spread) ** 2, 0.0, 1.0)
    freedom = np.asarray(freedom, float)
    low = lead - quantile(1 - ALPHA / count, freedom) * error
    high = lead + quantile(1 - ALPHA, freedom) * error
    return Lead(np.clip(np.nan_to_num(real) * lead, low, high), low, high)
