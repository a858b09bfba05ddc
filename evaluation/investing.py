"""Which of many proposed changes to keep, so that noise alone is hardly ever kept.

wealth = Wealth(Terms(proposals=500, seeds=10))
level = wealth.bid()            # of the next proposal, which is charged for it
wealth.won(level)               # it was kept: the next ones have more to spend

α-investing (Foster & Stine 2008, J. R. Stat. Soc. B 70(2), section 3): a loop begins with wealth
α(1 − α); a test at level a costs a/(1 − a), which comes back with α on top where a change is kept.
Every proposal may spend an equal share of what is left, and is charged when it first comes, before
its test ends (as asynchronous testing does: Zrnic, Ramdas & Jordan 2021, J. Mach. Learn. Res. 22).
With no change that is better, the chance that any is kept is α at most, and with some the expected
number of false ones is α of all that are kept plus one. Tests are two-sided, and only the better
side keeps: half of the α is in reserve for what proposals share, the seeds of the base.

Seeds and rows that have been seen cannot be used again to judge what was chosen by them. So every
proposal has seeds of its own, and half of the rows decide of which a loop is never told anything
but the verdict (a holdout that stays one: Dwork et al. 2015, Science 349; Blum & Hardt 2015).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from evaluation.comparisons import ALPHA, Difference
from evaluation.stats import quantile


@dataclass(frozen=True)
class Terms:
    """What a loop fixes before its first proposal: how many there may be, and with how many seeds
    one of them can be kept. With fewer it can only be discarded."""

    proposals: int = 500
    seeds: int = 10


class Wealth:
    def __init__(self, terms: Terms):
        self.terms, self.made = terms, 0
        self.left = ALPHA * (1 - ALPHA)

    def bid(self) -> float:
        """The level of the next proposal. ValueError when all were made."""
        if self.made >= self.terms.proposals:
            raise ValueError(f"all {self.terms.proposals} proposals of this ledger were made")
        cost = self.left / (self.terms.proposals - self.made)
        self.left -= cost
        self.made += 1
        return cost / (1 + cost)

    def won(self, level: float) -> None:
        self.left += level / (1 - level) + ALPHA


def needed_gain(base_variance, base_seeds: int, row_variance, level: float, terms: Terms):
    """What a candidate has to be better by with all its seeds, if its seeds spread as those of the
    base do (base_variance)."""
    seeds = terms.seeds
    variance = base_variance * (1 / base_seeds + 1 / seeds) + row_variance
    return quantile(1 - level, np.float64(base_seeds + seeds - 2)) * np.sqrt(variance)


def hopeless(gain, error, freedom, needed):
    """Whether a gain so far, with its standard error, is too far from what is needed: above its
    80 % interval. What is discarded by it can never be kept falsely."""
    return gain + quantile(0.8, freedom) * error < needed


def is_hopeless(shown: Difference, sign: int, base_seeds: int, level: float, terms: Terms) -> bool:
    """`hopeless` of a comparison on the shown rows; sign: 1 where higher is better, else −1."""
    if not np.isfinite(shown.error) or len(shown.seed_parts) != 2:
        return False
    (part, _), _ = shown.seed_parts
    needed = needed_gain(part * base_seeds, base_seeds, shown.row_variance, level, terms)
    return bool(hopeless(sign * shown.value, shown.error, np.float64(shown.freedom), needed))


def is_shown(group: str) -> bool:
    """Whether the rows of a group are in the half that a loop is told of."""
    return hashlib.sha256(group.encode()).digest()[0] % 2 == 0
