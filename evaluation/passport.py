"""What is known of a judge: how well it agrees with people, what moves it that moves no person.

    opinions = Opinions(people, verdicts, shares, lengths, groups, orders)
    passport(opinions)      # {"kappa": .41, "kappa_ci95": [..], "first_place": ..., …}
    corrected(judged, groups, labels)       # a judge's mean, corrected by a few human labels

Agreement alone flatters: whoever always says "A" agrees on the share of A. Cohen's kappa (Cohen
1960, Educ. Psychol. Meas. 20(1)) is what is left above two raters of these habits who know nothing.
All intervals are those of evaluation/stats.py, over groups of rows (a prompt).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.metrics import TIE, Metrics, add_interval, interval_facts
from evaluation.stats import (
    LEAST_FREEDOM,
    NO_SPREAD,
    Function,
    Groups,
    Interval,
    Ratio,
    group_index,
    interval,
    proportion_interval,
    quantile,
)

POINTS = 100  # of shares, in what is said


@dataclass
class Opinions:
    """What people and a judge think of n pairs: 0 A is better, 1 B, 2 neither.

    people, verdicts: (n,); shares (n,): what the judge gives A, 0 to 1, a tie half; lengths (n, 2):
    characters of A and B; groups (n,); orders (n, 2): its verdict with A first and with B first,
    None for a judge that is not asked which of two is better.
    """

    people: np.ndarray
    verdicts: np.ndarray
    shares: np.ndarray
    lengths: np.ndarray
    groups: Sequence[Hashable]
    orders: np.ndarray | None = None


def verdicts_of(shares: np.ndarray) -> np.ndarray:
    """0 where A has more than half, 1 where B has, 2 for a tie."""
    return np.where(shares > 0.5, 0, np.where(shares < 0.5, 1, TIE))


def both_orders(wins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(orders (n, 2), verdicts (n,)) of wins (n, 2) from 0 to 1, A first and B first: a response
    wins where both orders say so, else it is a tie."""
    orders = verdicts_of(wins)
    return orders, np.where(orders[:, 0] == orders[:, 1], orders[:, 0], TIE)


def kappa_of(sums: np.ndarray) -> np.ndarray:
    """Of sums of (agreed, people's three, the judge's three, rows)."""
    agreed, people, verdicts, n = sums[..., 0], sums[..., 1:4], sums[..., 4:7], sums[..., -1]
    chance = (people * verdicts).sum(-1) / n**2
    with np.errstate(divide="ignore", invalid="ignore"):
        return (agreed / n - chance) / (1 - chance)


def slope_of(sums: np.ndarray) -> np.ndarray:
    """Least squares of sums of (x, y, x y, x², rows)."""
    x, y, xy, xx, n = (sums[..., column] for column in range(5))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (xy / n - x * y / n**2) / (xx / n - (x / n) ** 2)


KAPPA = Function(kappa_of, "correlation")
SLOPE = Function(slope_of)


def passport(opinions: Opinions) -> Metrics:
    """n · agreement with people, and constant_agreement, what always the same answer would have ·
    kappa · order_agreement: share of pairs with the same verdict in both orders · first_place: how
    much oftener the response that stands first wins than the other, as a share of all questions ·
    length_slope: by how much A's share rises with each doubling of its length beside B's, people's
    own: people_length_slope, and the difference: length_excess."""
    people, verdicts = opinions.people, opinions.verdicts
    result: Metrics = {"n": len(people)} | interval_facts("kappa", opinions.groups)
    agreed = people == verdicts
    result["agreement"] = float(agreed.mean())
    add_interval(result, "agreement", proportion_interval(agreed, opinions.groups))
    result["constant_agreement"] = float(np.bincount(people, minlength=3).max() / len(people))
    three = np.arange(3)
    columns = np.column_stack([agreed, people[:, None] == three, verdicts[:, None] == three])
    _add(result, "kappa", columns, opinions.groups, KAPPA)
    if opinions.orders is not None:
        same = opinions.orders[:, 0] == opinions.orders[:, 1]
        result["order_agreement"] = float(same.mean())
        add_interval(result, "order_agreement", proportion_interval(same, opinions.groups))
        wins = (opinions.orders == [0, 1]).sum(1) - (opinions.orders == [1, 0]).sum(1)
        _add(result, "first_place", wins / 2, opinions.groups, Ratio(kind="plain"))
    x = np.log2((1 + opinions.lengths[:, 0]) / (1 + opinions.lengths[:, 1]))
    human = np.choose(people, [1.0, 0.0, 0.5])
    for name, y in (
        ("length_slope", opinions.shares),
        ("people_length_slope", human),
        ("length_excess", opinions.shares - human),
    ):
        _add(result, name, np.column_stack([x, y, x * y, x * x]), opinions.groups, SLOPE)
    return result


def _add(result: Metrics, name: str, columns: np.ndarray, groups: Sequence, statistic: Any) -> None:
    """The figure and its interval; nothing where these rows do not define it."""
    columns = np.asarray(columns, np.float64).reshape(len(groups), -1)
    value = float(statistic(np.append(columns.sum(0), len(columns))))
    if math.isfinite(value):
        result[name] = value
        add_interval(result, name, interval(columns, groups, statistic))


def biases(found: Mapping[str, Any]) -> list[str]:
    """What a passport holds against its judge, a line each: where an interval leaves no doubt, and
    where it leaves open whether the judge knows anything."""
    lines = []
    if not found.get("kappa_ci95", [-1])[0] > 0:
        lines.append("not shown to be better than chance on these votes")
    if found.get("may_have_learned"):  # the rows of its training are not there any more
        lines.append("may have learned these very votes")
    low, high = found.get("first_place_ci95", (0, 0))
    if low > 0 or high < 0:
        place = "first" if low > 0 else "second"
        lines.append(f"drawn to the response that stands {place}")
    ends = [found.get(f"{name}_ci95", (0, 0)) for name in ("length_excess", "length_slope")]
    if all(low > 0 for low, _ in ends):
        lines.append("drawn to the longer response, beyond people")
    if all(high < 0 for _, high in ends):  # and not only less to the longer one than people are
        lines.append("drawn to the shorter response, beyond people")
    return lines


def said(found: Mapping[str, Any]) -> list[str]:
    """A passport in words."""

    def points(name: str, sign: str = "") -> str:
        numbers = [found[name], *found.get(f"{name}_ci95", [])]
        value, *ends = (f"{POINTS * number:{sign}.1f}" for number in numbers)
        return value + (f" [{', '.join(ends)}]" if ends else "")

    lines = [
        f"agrees with people on {points('agreement')} % of {found['n']:,} votes on "
        f"{found['groups']:,} prompts; one answer for all on "
        f"{POINTS * found['constant_agreement']:.1f} %"
    ]
    if "kappa" in found:
        ends = found.get("kappa_ci95")
        between = " [{:.2f}, {:.2f}]".format(*ends) if ends else " (no interval)"
        lines.append(f"kappa {found['kappa']:.2f}{between}")
    if "first_place" in found:
        lines.append(
            f"both orders agree on {points('order_agreement')} %; whoever stands first wins "
            f"{points('first_place', '+')} points oftener than the other"
        )
    if "length_excess" in found:
        lines.append(
            f"each doubling of length moves its wins by {points('length_excess', '+')} points more "
            f"than people's (its own {points('length_slope', '+')}, theirs "
            f"{points('people_length_slope', '+')})"
        )
    return lines + [f"so: {line}" for line in biases(found)]


# --------------------------------------------------------------------- a few human labels


@dataclass(frozen=True)
class Corrected:
    """A judge's mean, corrected. labelled: rows with a human label; weight: how far the judge is
    believed, 0 (the labels alone) to 1; problem: why there is no interval."""

    value: float
    low: float
    high: float
    labelled: int
    weight: float
    problem: str = ""


def corrected(
    judged: np.ndarray, groups: Sequence[Hashable], labels: np.ndarray
) -> Corrected | None:
    """The mean that people would give to all rows, of the judge's scores of all and the labels of
    a random sample of them: judged (n,), labels (n,) with NaN where there is none.

    λ · mean(judged elsewhere) + mean(label − λ · judged) over the labelled, by prediction-powered
    inference with the λ of least variance (Angelopoulos, Duchi & Zrnic 2023, arXiv 2311.01453,
    section 6). Its interval counts both samples, and rows of a group as one: CR2 of each, together,
    with Satterthwaite's degrees of freedom. (The package ppi-python has independent rows alone.)
    None without a label. The labels are a random sample, or this is not the mean of all.
    """
    judged, labels = np.asarray(judged, np.float64), np.asarray(labels, np.float64)
    there = ~np.isnan(labels)
    n, others = int(there.sum()), int((~there).sum())
    if not n:
        return None
    weight = 0.0
    if others and n > 2 and (spread := judged.var()) > 0:
        covariance = np.mean((judged[there] - judged[there].mean()) * labels[there])
        weight = float(np.clip(covariance / spread / (1 + n / others), 0, 1))
    rest = labels[there] - weight * judged[there]
    value = float(rest.mean()) + (weight * float(judged[~there].mean()) if weight else 0.0)
    influence = np.zeros(len(judged))
    influence[there] = (rest - rest.mean()) / n
    samples = [there]
    if weight:
        influence[~there] = weight * (judged[~there] - judged[~there].mean()) / others
        samples.append(~there)
    index = group_index(groups)
    parts = [Groups.of(influence * one, one / one.sum(), index) for one in samples]
    found = _limits(value, parts)
    return Corrected(value, found.low, found.high, n, weight, found.problem)


def _limits(value: float, parts: Sequence[Groups]) -> Interval:
    """Of a sum of figures whose rows may share groups."""
    inflated = [g.influence / np.sqrt(np.maximum(1 - g.leverage, 1e-12)) for g in parts]
    variance = float((np.sum(inflated, axis=0) ** 2).sum())
    own = [(float(g.variance), float(g.freedom)) for g in parts]
    below = sum(v**2 / max(f, 1e-12) for v, f in own)
    freedom = sum(v for v, _ in own) ** 2 / below if below else 0.0
    spread = math.sqrt(variance) > NO_SPREAD * abs(value)
    if not spread or freedom < LEAST_FREEDOM:
        groups = int((parts[0].leverage > 0).sum())
        why = f"{groups} groups of rows are too few" if spread else "the labels do not differ"
        return Interval(math.nan, math.nan, freedom, why)
    half = float(quantile(0.95, np.float64(freedom))) * math.sqrt(variance)
    return Interval(value - half, value + half, freedom)
