"""What a published figure can carry: its interval, and whether ours differs from it.

A share of n independent rows has Wilson's interval whatever else is not known of it. A mean loss,
a perplexity or a judge's mean was published without the spread of its rows: it has none.

    figures = published_figures(record["published"])
    against(figures[0], Ours(.481, .469, .494)).sentence
    # published 47.3 % [46.0, 48.6] on about 5,750 rows; yours 48.1 [46.9, 49.4]: not separable …
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation import comparisons
from evaluation.stats import NONE, quantile, wilson_limits

SHARES = ("accuracy",)  # figures that count rows
Z = 1.959963984540054  # the normal quantile of 95 %


@dataclass(frozen=True)
class Figure:
    """One figure of a published run; `constant`: what an answer without a model gets."""

    metric: str
    value: float
    high: float | None = None
    rows: int | None = None
    approximate: bool = False
    note: str = ""
    again: bool = False
    constant: float | None = None

    @property
    def is_possible(self) -> bool:
        """Whether numbers are numbers, and a share is one: anyone may have written run.json."""
        share = self.metric in SHARES
        numbers = [x for x in (self.high, self.constant) if x is not None] + [self.value]
        return all(
            isinstance(x, int | float) and math.isfinite(x) and (0 <= x <= 1 or not share)
            for x in numbers
        ) and (self.rows is None or isinstance(self.rows, int) and self.rows > 0)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's for a share of a number of rows that is known; else NaN."""
        if self.why_none:
            return NONE
        low, high = wilson_limits(self.value, self.rows, Z)
        return float(low), float(high)

    @property
    def variance(self) -> float:
        """Binomial."""
        return math.nan if self.why_none else self.value * (1 - self.value) / self.rows

    @property
    def why_none(self) -> str:
        """Why it has no interval; "" where it has one."""
        if self.metric not in SHARES:
            return "how its rows spread was not published"
        if self.high is not None:
            return "a range was published"
        return "" if self.rows else "its number of rows is not known"

    @property
    def collapsed(self) -> bool:
        """Whether it is no better than a constant answer, as far as its rows can show."""
        if self.metric != "accuracy" or self.constant is None:
            return False
        low = self.interval[0]
        return (self.value if math.isnan(low) else low) <= self.constant

    @property
    def text(self) -> str:
        """47.3 % [46.0, 48.6] on about 5,750 rows (as a script)"""
        share = self.metric in SHARES
        text = shown(self.value, share) + (f" to {shown(self.high, share)}" if self.high else "")
        text += " %" * share
        if not self.why_none:
            text += " [{}, {}]".format(*(f"{100 * bound:.1f}" for bound in self.interval))
        if self.rows:
            text += f" on {'about ' * self.approximate}{self.rows:,} rows"
        return text + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class Ours:
    """A figure of our own with its interval (NaN where there is none).

    variance: of its distance from the truth, where that is not what the interval says: several
    seeds, whose interval leaves out the rows; seeds: of how many it is the mean, and of_seeds the
    part of the variance that they are known by.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    variance: float | None = None
    seeds: int = 1
    of_seeds: float = 0.0

    @property
    def error(self) -> float:
        if self.variance is not None:
            return math.sqrt(self.variance)
        return (self.high - self.low) / (2 * Z)


@dataclass(frozen=True)
class Against:
    """Our figure against a published one. verdict: above it, below it, not separable from it, or
    that it cannot be judged; difference: ours − theirs, its interval NaN where not judged."""

    figure: Figure
    ours: Ours
    verdict: str
    difference: tuple[float, float, float] = (math.nan, *NONE)

    @property
    def sentence(self) -> str:
        share = self.figure.metric in SHARES
        own = self.ours
        yours = f"{100 * own.value:.1f}" if share else f"{own.value:.4g}"
        if not math.isnan(own.low):
            digits, scale = (1, 100) if share else (3, 1)
            yours += f" [{scale * own.low:.{digits}f}, {scale * own.high:.{digits}f}]"
        yours += f" ({own.seeds} seeds)" * (own.seeds > 1)
        text = f"{self.figure.metric}: published {self.figure.text}; yours {yours}: {self.verdict}"
        value, low, high = self.difference
        if low > 0 or high < 0:
            ends = sorted((abs(low), abs(high)))
            text += f" by {100 * abs(value):.1f} points [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
            text += ", one seed against one" * (own.seeds == 1)
        if self.figure.collapsed:
            text += ". The published one is no better than a constant answer"
            text += f" ({100 * self.figure.constant:.1f} %): a collapse"
        return text + "."


def shown(value: float, share: bool) -> str:
    """A share in percent, to the digits that it was published with; 47.3, 48.35, 50."""
    return f"{100 * value:.2f}".rstrip("0").rstrip(".") if share else f"{value:.6g}"


def published_figures(reference: Any) -> list[Figure]:
    """Those of `published` in a config or a run.json; what is no figure is left out."""
    if not isinstance(reference, Mapping) or not isinstance(reference.get("figures"), list):
        return []
    names = set(Figure.__dataclass_fields__)
    known = [
        {name: value for name, value in figure.items() if name in names and value is not None}
        for figure in reference["figures"]
        if isinstance(figure, Mapping) and isinstance(figure.get("metric"), str)
    ]
    figures = [Figure(**{"constant": reference.get("constant"), "value": None} | f) for f in known]
    return [figure for figure in figures if figure.is_possible]


def against(figure: Figure, ours: Ours) -> Against:
    """Whether ours differs from a published figure: two independent samples, ours with its own
    error, theirs binomial. How seeds spread is in neither, unless ours is over seeds.

    Where theirs has no interval it is not judged, but where ours alone reaches it: whatever the
    spread of theirs, that would only widen the interval of the difference.
    """
    top = figure.value if figure.high is None else figure.high
    if figure.why_none:
        reaches = ours.low <= top and ours.high >= figure.value
        why = f"not judged, for {figure.why_none}"
        return Against(figure, ours, "not separable from it" if reaches else why)
    if math.isnan(ours.error):
        return Against(figure, ours, "not judged, for yours has no interval")
    value = ours.value - figure.value
    variance = Z**2 * (ours.error**2 - ours.of_seeds + figure.variance)
    if ours.of_seeds:  # a few seeds hardly know their spread: each part by its own freedom
        variance += float(quantile(0.95, ours.seeds - 1)) ** 2 * ours.of_seeds
    width = math.sqrt(variance)
    low, high = value - width, value + width
    verdict = "above it" if low > 0 else "below it" if high < 0 else "not separable from it"
    return Against(figure, ours, verdict, (value, low, high))


def over_seeds(
    values: Sequence[float], rows: tuple[float, float], shown_interval: tuple[float, float]
) -> Ours:
    """The mean of several seeds as a published run, which had one seed, is held against it.

    rows: the interval of one of them over its rows. The variance is that of the rows, of the mean
    of k seeds and of the one seed of theirs, s² (1 + 1/k): as if seeds spread alike there.
    """
    mean = sum(values) / len(values)
    spread = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    of_seeds = spread * (1 + 1 / len(values))
    variance = ((rows[1] - rows[0]) / (2 * Z)) ** 2 + of_seeds
    return Ours(mean, *shown_interval, variance, len(values), of_seeds)


def what_differs(reference: Mapping[str, Any]) -> list[str]:
    """Between a run and the published one that its config repeats, and what is not known."""
    differs, changed, unknown = (reference.get(x) for x in ("differs", "changed", "unknown"))
    lines = []
    for name, how in differs.items() if isinstance(differs, Mapping) else ():
        lines.append(f"{name} ({how})")
    for name, values in changed.items() if isinstance(changed, Mapping) else ():
        if isinstance(values, list) and len(values) == 2:
            before, now = ("null" if value is None else value for value in values)
            lines.append(f"{name} ({before} in its config, {now} here)")
    if isinstance(unknown, list) and unknown:
        lines.append(f"and what is not known of it: {', '.join(map(str, unknown))}")
    return lines


@dataclass(frozen=True)
class Pair:
    """Two lines of one published table: the p-value of their difference alone, and corrected."""

    lower: int
    higher: int
    p: float
    corrected: float


def pairs(figures: Sequence[Figure]) -> list[Pair]:
    """All pairs of shares with known rows, by the test of two proportions with Holm's correction.

    The rows are taken as independent: if both runs answered the same ones, and no more is known,
    the test is on the safe side, for their answers agree more often than chance.
    """
    there = [number for number, figure in enumerate(figures) if not figure.why_none]
    found = []
    for place, one in enumerate(there):
        for other in there[place + 1 :]:
            lower, higher = sorted((one, other), key=lambda number: figures[number].value)
            a, b = figures[lower], figures[higher]
            pooled = (a.value * a.rows + b.value * b.rows) / (a.rows + b.rows)
            error = math.sqrt(pooled * (1 - pooled) * (1 / a.rows + 1 / b.rows))
            p = math.erfc((b.value - a.value) / error / math.sqrt(2)) if error else 1.0
            found.append((lower, higher, p))
    corrected = comparisons.corrected([p for *_, p in found])
    return [Pair(*pair, q) for pair, q in zip(found, corrected, strict=True)]
