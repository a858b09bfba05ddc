"""The best of several: what is left of its lead on rows and seeds that did not choose it.

shrunk(lead, spread, weights, seed_parts, row_variance, row_freedom)   # Lead(expected, low, high)

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


def shrunk(
    lead, spread, weights: Sequence[float], seed_parts: Sequence[tuple], row_variance, row_freedom
) -> Lead:
    """Of the best of K settings; arrays are taken as well.

    lead: its figure less the mean of all, above 0; spread: standard deviation of the figures of all
    settings, K − 1 in its divisor. The others are those of the contrast of the best, which comes
    first, with the mean of all (`comparisons.contrast`); no seed_parts: of models.

    What to expect is the lead times the share of the spread that is no noise (James & Stein 1961;
    Efron & Morris 1975, J. Am. Stat. Assoc. 70, section 2, by moments): 0 where settings differ by
    no more than chance lets them. The interval holds whatever the settings are: downwards it
    allows for any of K having been chosen, upwards for none, as what is the best has luck on its
    side (Benjamini, Hechtlinger & Stark 2019, arXiv:1906.00505). The spread of seeds is that of all
    settings together, or that of the best, if it is larger: three seeds alone hardly know it.
    """
    count = len(weights)
    rows, freedom = np.asarray(row_variance, float), np.asarray(row_freedom, float)
    own = [part / w**2 for w, (part, _) in zip(weights, seed_parts, strict=False)]
    seeds = sum(own) / count
    with np.errstate(divide="ignore", invalid="ignore"):
        real = np.clip(1 - (seeds + rows * count / (count - 1)) / np.asarray(spread) ** 2, 0.0, 1.0)
        variance = rows
        if own:
            of_best = weights[0] ** 2 * np.maximum(own[0], seeds)
            part = of_best + sum(w**2 for w in weights[1:]) * seeds
            variance = part + rows
            known = sum(degrees for _, degrees in seed_parts)
            freedom = variance**2 / (part**2 / known + rows**2 / freedom)
    error = np.sqrt(variance)
    low = lead - quantile(1 - ALPHA / count, freedom) * error
    high = lead + quantile(1 - ALPHA, freedom) * error
    return Lead(np.clip(np.nan_to_num(real) * lead, low, high), low, high)
