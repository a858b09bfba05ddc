"""Learning-rate schedules as pure functions of the fraction of the run that is over.

A factor on the peak learning rate; fraction is in the unit in which the run is measured
(steps, seconds, FLOPs), so that warm-up and decay end when the budget does.
"""

import math
from collections.abc import Callable

from settings import Settings


def schedule_for(config: Settings, total_steps: int) -> Callable[[float], float]:
    """The factor on the peak rate that the settings ask for, as a function of the fraction.

    ValueError where it would be 0 in every step of so short a run.
    """

    def factor(fraction: float) -> float:
        low = config.min_lr / config.lr
        return warmup_then_decay(fraction, config.schedule, config.warmup_frac, low)

    if all(factor(step / total_steps) == 0 for step in range(total_steps)):
        raise ValueError(
            f"the learning rate is 0 in all {total_steps} steps: use --warmup_frac 0 or more "
            "--epochs"
        )
    return factor


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
