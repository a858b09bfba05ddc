"""Learning-rate schedules as pure functions of the fraction of the run that is over.

A factor on the peak learning rate; fraction is in the unit in which the run is measured
(steps, seconds, FLOPs), so that warm-up and decay end when the budget does.

    schedule = build_schedule("cosine", warmup_frac=0.1, min_ratio=0.01, total_steps=500)
    lr = peak_lr * schedule(step / 500)
"""

import functools
import math
from collections.abc import Callable

NAMES = ("linear", "cosine", "constant", "wsd", "one-cycle", "triangle2")


def learning_rate_factor(
    fraction: float,
    name: str = "linear",
    warmup_frac: float = 0.0,
    min_ratio: float = 0.0,
    decay_frac: float = 0.0,
) -> float:
    """Factor on the peak learning rate when this fraction of the run is over; name: of NAMES.

    warmup_frac counts for linear, cosine, constant and wsd, decay_frac for wsd; min_ratio is the
    share of the peak at the end, below which no schedule falls once it has been above.
    """
    if name == "one-cycle":
        return max(min_ratio, budget_one_cycle(fraction))
    if name == "triangle2":
        return max(min_ratio, budget_triangle2(fraction))
    if name == "wsd":
        return warmup_stable_decay(fraction, warmup_frac, decay_frac, min_ratio)
    return warmup_then_decay(fraction, name, warmup_frac, min_ratio)


def build_schedule(
    name: str,
    warmup_frac: float = 0.0,
    min_ratio: float = 0.0,
    decay_frac: float = 0.0,
    total_steps: int | None = None,
) -> Callable[[float], float]:
    """learning_rate_factor as a function of the fraction alone.

    total_steps: of the run, where they are known before it. ValueError where the factor would be 0
    in all of them.
    """
    factor = functools.partial(
        learning_rate_factor,
        name=name,
        warmup_frac=warmup_frac,
        min_ratio=min_ratio,
        decay_frac=decay_frac,
    )
    require_learning(factor, total_steps)
    return factor


def require_learning(schedule: Callable[[float], float], total_steps: int | None) -> None:
    """ValueError where the factor would be 0 in all steps; None: nobody knows how many."""
    if total_steps and all(schedule(step / total_steps) == 0 for step in range(total_steps)):
        raise ValueError(
            f"the learning rate is 0 in all {total_steps} steps: use --warmup_frac 0, more "
            "--epochs or another --schedule"
        )


def warmup_then_decay(
    fraction: float, shape: str = "linear", warmup_frac: float = 0.0, min_ratio: float = 0.0
) -> float:
    """Rise from 0 over `warmup_frac`, then fall to `min_ratio` of the peak at fraction 1.

    shape: linear, cosine (half a wave: Loshchilov & Hutter 2017, eq. 5) or constant. With
    fraction = step / total and min_ratio 0 it is transformers' schedule of the same name.
    """
    if fraction < warmup_frac:
        return fraction / warmup_frac
    if shape == "constant":
        return 1.0
    gone = min(1.0, (fraction - warmup_frac) / max(1e-12, 1 - warmup_frac))
    left = {"linear": 1 - gone, "cosine": (1 + math.cos(math.pi * gone)) / 2}[shape]
    return min_ratio + (1 - min_ratio) * left


def warmup_stable_decay(
    fraction: float, warmup_frac: float, decay_frac: float, min_ratio: float = 0.0
) -> float:
    """Rise over `warmup_frac`, stay at 1, fall in a straight line over the last `decay_frac`.

    Hu et al. 2024, MiniCPM (arXiv 2404.06395), section 4.2; the line to 0: Hägele et al. 2024
    (arXiv 2405.18392). It is 0 at the first step and `min_ratio` at fraction 1. Where the two
    overlap the lower one counts.
    """
    rise = fraction / warmup_frac if fraction < warmup_frac else 1.0
    left = min(1.0, (1 - fraction) / decay_frac) if decay_frac > 0 else 1.0
    return min(rise, min_ratio + (1 - min_ratio) * max(0.0, left))


def budget_one_cycle(fraction: float) -> float:
    """Straight up to the peak at half of the budget, straight down to 0 at its end.

    The schedule of No Train No Gain (Kaddour et al. 2023): decayed completely when the budget
    ends, so that runs with different budgets compare.
    """
    return max(0.0, min(2 * fraction, 2 - 2 * fraction))


def budget_triangle2(fraction: float) -> float:
    """From a quarter of the peak up to it over 75 % of the budget, then straight down to 0.

    The schedule of Cramming (Geiping & Goldstein 2023).
    """
    return max(0.0, min(0.25 + fraction, (1 - fraction) / 0.25))
