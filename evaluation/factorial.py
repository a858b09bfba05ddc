"""Which of k settings did it? What a setting contributes from A to B, as weights on points.

A point is the set of settings that have B's value, as the bits of a number: 0 is A, 2^k − 1 is B.
Each function returns {point: weight}; the contribution is the weighted sum of the points' means,
which `comparisons.contrast` judges over seeds and rows.
"""

from __future__ import annotations

import math

MOST_FULL = 4  # settings of which all 2^k points are made, unless asked for

Weights = dict[int, float]


def full_points(k: int) -> list[int]:
    """All 2^k, A first, those nearer to A before others."""
    return sorted(range(2**k), key=lambda point: (point.bit_count(), point))


def end_points(k: int) -> list[int]:
    """A, B, A with one setting added, B with one taken back."""
    whole = 2**k - 1
    near = [1 << i for i in range(k)]
    return list(dict.fromkeys([0, *near, *(whole ^ one for one in reversed(near)), whole]))


def whole_difference(k: int) -> Weights:
    return {0: -1.0, 2**k - 1: 1.0}


def contribution(i: int, k: int) -> Weights:
    """The Shapley value of setting i: what adding it does, averaged over all orders in which the k
    settings can be changed one by one from A to B (Shapley 1953, Contrib. Theory Games 2).

    Those of all settings add up to the whole difference. What settings do together only is in
    equal parts in each of them: `together` says how much that is.
    """
    weights: Weights = {}
    for before in range(2**k):
        if not before >> i & 1:
            count = before.bit_count()
            share = math.factorial(count) * math.factorial(k - count - 1) / math.factorial(k)
            weights[before] = -share
            weights[before | 1 << i] = share
    return weights


def together(i: int, j: int, k: int) -> Weights:
    """What settings i and j do together beyond what each does without the other, over the same
    orders: the interaction index of Grabisch & Roubens 1999 (Int. J. Game Theory 28)."""
    weights: Weights = {}
    both = 1 << i | 1 << j
    for before in range(2**k):
        if not before & both:
            count = before.bit_count()
            share = math.factorial(count) * math.factorial(k - count - 2) / math.factorial(k - 1)
            weights[before] = weights[before | both] = share
            weights[before | 1 << i] = weights[before | 1 << j] = -share
    return weights


def added(i: int, k: int) -> Weights:  # noqa: ARG001 - as the others
    """What setting i does where nothing else is changed: A with it, against A."""
    return {0: -1.0, 1 << i: 1.0}


def taken(i: int, k: int) -> Weights:
    """What it does where all else is changed: B, against B without it."""
    whole = 2**k - 1
    return {whole ^ 1 << i: -1.0, whole: 1.0}


def contribution_of_ends(i: int, k: int) -> Weights:
    """The mean of added and taken; those of all settings leave a `remainder`."""
    return sum_of((0.5, added(i, k)), (0.5, taken(i, k)))


def with_the_rest(i: int, k: int) -> Weights:
    """What setting i does more where all else is changed than where nothing is."""
    return sum_of((1.0, taken(i, k)), (-1.0, added(i, k)))


def remainder(k: int) -> Weights:
    """What the contributions of the ends leave of the whole difference."""
    parts = [(-1.0, contribution_of_ends(i, k)) for i in range(k)]
    return sum_of((1.0, whole_difference(k)), *parts)


def where(i: int, j: int, value: int, k: int) -> Weights:
    """What setting i does where j has A's value (0) or B's (1), the others in equal parts."""
    befores = [p for p in range(2**k) if not p >> i & 1 and p >> j & 1 == value]
    weights = {p: -1 / len(befores) for p in befores}
    return weights | {p | 1 << i: 1 / len(befores) for p in befores}


def sum_of(*parts: tuple[float, Weights]) -> Weights:
    """Σ factor × weights, without points that cancel."""
    total: Weights = {}
    for factor, weights in parts:
        for point, weight in weights.items():
            total[point] = total.get(point, 0.0) + factor * weight
    return {point: weight for point, weight in total.items() if abs(weight) > 1e-12}
