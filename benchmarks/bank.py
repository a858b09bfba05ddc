"""A bank of real tiny runs, and what `evaluation` says of comparisons that are drawn from it.

    python -m benchmarks.bank                  # trains what is missing: docs/statistics/bank.npz
    python -m benchmarks.bank --summary        # null rate, power and pairing, as Markdown, and stop

Real noise is not normal, and one seed moves several arms alike. Each run is a language model of
some 30,000 parameters on film reviews, trained as train_headlines.py trains, for one setting with
many seeds and for changes of it with fewer; kept are the losses of its 480 validation titles.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from evaluation import comparisons
from evaluation.stats import Influence, group_index, quantile, wilson_interval

SETTINGS = {
    **{"data": "reviews", "limit": 1200, "val_frac": 0.4, "vocab_size": 500, "batch": 48},
    **{"micro_batch": 48, "epochs": 4.0, "n_layer": 1, "n_head": 2, "n_embd": 32},
    **{"max_length": 64, "optimizer": "adamw", "lr": 1e-2, "weight_decay": 0.1, "r_drop": 0.0},
    **{"device": "cpu", "precision": "fp32", "init": "by_name"},
}
# arm: what it changes, and how many seeds it has
ARMS: dict[str, tuple[dict, int]] = {
    "base": ({}, 200),
    "no_dropout": ({"dropout": 0.0}, 50),
    "gelu": ({"mlp": "gelu"}, 50),
    "base_in_order": ({"init": "in_order"}, 50),
    "gelu_in_order": ({"mlp": "gelu", "init": "in_order"}, 50),
}
TOGETHER = 10  # seeds of every arm at a time, so that a bank that was cut off is of use
STEPS_A_NAT = 50
BANK = Path("docs/statistics/bank.npz")


def packed(losses: np.ndarray) -> np.ndarray:
    """Losses of titles (n,) to a fiftieth of a nat, of some fifty, so that the file stays small."""
    return np.rint(losses * STEPS_A_NAT).clip(0, 65_535).astype(np.uint16)


def config_of(arm: str, seed: int):
    import train_headlines
    from settings import parse_settings

    settings = {**SETTINGS, **ARMS[arm][0], "seed": seed}
    words = [f"--{name}={value}" for name, value in settings.items()]
    return parse_settings(train_headlines.Config, words, "train_headlines.py")[0]


def wanted() -> Iterator[tuple[str, int]]:
    for first in range(0, max(seeds for _, seeds in ARMS.values()), TOGETHER):
        for arm, (_, seeds) in ARMS.items():
            yield from ((arm, seed) for seed in range(first, min(first + TOGETHER, seeds)))


def train_missing(path: Path) -> None:
    """Train and keep what the bank has not, in one process: the data are read once."""
    import core
    from experiments.headlines import Headlines

    bank = dict(np.load(path)) if path.is_file() else {}
    missing = [(arm, seed) for arm, seed in wanted() if f"{arm}/{seed}" not in bank]
    if not missing:
        return
    first = config_of(*missing[0])
    with core.distributed(first) as world:
        experiment = Headlines(first, world, None)
        bank["characters"] = experiment.sizes[:, 0].astype(np.int32)
        bank["groups"] = group_index(experiment.groups).astype(np.int32)
        began = time.time()
        for number, (arm, seed) in enumerate(missing, 1):
            experiment.config = config_of(arm, seed)
            state = experiment.build_state(experiment.load_model())
            while state.step < state.loader.total_steps:
                core.train_step(state, experiment.loss_sum)
            bank[f"{arm}/{seed}"] = packed(experiment.sums(state)[:, 0])
            if number % 5 == 0 or number == len(missing):
                aside = path.with_suffix(".part.npz")
                np.savez_compressed(aside, **bank)
                os.replace(aside, path)
                each = (time.time() - began) / number
                print(f"{number} of {len(missing)} runs, {each:.1f} s each", flush=True)


# ------------------------------------------------------------------------ what is drawn from it


class Bank:
    """influences (seeds, G) and values (seeds,) of each arm."""

    def __init__(self, path: Path):
        content = np.load(path)
        self.index, self.weights = content["groups"], content["characters"].astype(float)
        self.runs: dict[str, list[Influence]] = {}
        total = self.weights.sum()
        for arm, (_, seeds) in ARMS.items():
            self.runs[arm] = []
            for seed in range(seeds):
                if f"{arm}/{seed}" not in content:
                    break
                losses = content[f"{arm}/{seed}"] / STEPS_A_NAT
                value = losses.sum() / total
                rows = (losses - value * self.weights) / total
                self.runs[arm].append(Influence(float(value), rows, self.weights / total))

    def values(self, arm: str) -> np.ndarray:
        return np.array([run.value for run in self.runs[arm]])

    def compare(self, a: str, b: str, of_a, of_b, paired: bool = False) -> comparisons.Difference:
        cells = [[self.runs[a][s] for s in of_a], [self.runs[b][s] for s in of_b]]
        return comparisons.contrast(cells, [-1.0, 1.0], self.index, paired)


def shares(bank: Bank, a: str, b: str, seeds: int, paired: bool, repeats: int = 2000):
    """(share of draws in which a and b are told apart, mean half-width of the interval)."""
    draw = np.random.default_rng(seeds)
    many = min(len(bank.runs[a]), len(bank.runs[b]))
    called, widths = 0, []
    for _ in range(repeats):
        if a == b:
            both = draw.choice(len(bank.runs[a]), 2 * seeds, replace=False)
            of_a, of_b = np.split(both, 2)
        else:
            of_a = draw.choice(many, seeds, replace=False)
            of_b = of_a if paired else draw.choice(many, seeds, replace=False)
        found = bank.compare(a, b, of_a, of_b, paired)
        called += found.p < comparisons.ALPHA
        widths.append(float(quantile(0.95, np.float64(found.freedom))) * found.error)
    return called / repeats, float(np.nanmean(widths))


def summary(path: Path, repeats: int = 2000) -> str:
    bank = Bank(path)
    base = bank.values("base")
    lines = [
        f"{len(base)} seeds of the base: {base.mean():.4f} nats a character, standard deviation "
        f"{base.std(ddof=1):.4f}, skewness {skewness(base):+.2f}.",
        "",
        "| null: base against base | told apart |",
        "|---|---|",
    ]
    for seeds in (3, 5, 10):
        share, _ = shares(bank, "base", "base", seeds, False, repeats)
        low, high = wilson_interval(round(share * repeats), repeats)
        lines.append(f"| {seeds} + {seeds} seeds | {share:.3f} [{low:.3f}, {high:.3f}] |")
    lines += [
        "",
        "| against the base | difference | r over seeds | seeds | told apart | ± | paired | ± |",
        "|---|---|---|---|---|---|---|---|",
    ]
    pairs = [("base", "no_dropout"), ("base", "gelu"), ("base_in_order", "gelu_in_order")]
    for (a, b), seeds in itertools.product(pairs, (3, 5)):
        many = min(len(bank.runs[a]), len(bank.runs[b]))
        if many < 2 * seeds:
            continue
        x, y = bank.values(a)[:many], bank.values(b)[:many]
        apart, width = shares(bank, a, b, seeds, False, repeats)
        together, narrow = shares(bank, a, b, seeds, True, repeats)
        lines.append(
            f"| {b} ({many} seeds) | {y.mean() - x.mean():+.4f} | {np.corrcoef(x, y)[0, 1]:+.2f} | "
            f"{seeds} | {apart:.2f} | {width:.4f} | {together:.2f} | {narrow:.4f} |"
        )
    return "\n".join(lines)


def skewness(values: np.ndarray) -> float:
    apart = values - values.mean()
    return float((apart**3).mean() / (apart**2).mean() ** 1.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--out", type=Path, default=BANK)
    arguments = parser.parse_args()
    if not arguments.summary:
        train_missing(arguments.out)
    print(summary(arguments.out))


if __name__ == "__main__":
    sys.exit(main())
