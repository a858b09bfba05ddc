"""How often the intervals of `evaluation` miss the truth, where the truth is known: nominal 5 %.

    python -m benchmarks.coverage       # the whole grid: docs/statistics/coverage.csv
    python -m benchmarks.coverage --summary
    python -m benchmarks.coverage --groups 5 20 --repeats 500 --out somewhere.csv

Rows lie in groups of random sizes; a row's latent score is z = √ρ group + √(1 − ρ) row, plus, where
it rises with size, RISE × (log size − its mean). A hit is z above a threshold, a loss exp(z), a row
of text has tokens of its own. Several runs share half of z, and each seed has an effect of its own.
A cell fails where the lower end of the 95 % interval of its rate lies above 7 %.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation import comparisons
from evaluation.stats import Groups, limits, quantile, wilson_interval

GROUPS = (5, 10, 20, 40, 100)
SIZES = ("equal", "1-20", "lognormal", "pareto")
CORRELATIONS = (0.0, 0.2, 1.0)
SCORES = ("independent", "rising")
METRICS = ("accuracy", "log_loss", "nats_per_token")
# name: seeds an arm (0: one run alone, 1: two models), standard deviation of a seed's effect on z
DESIGNS = {
    "one run": (0, 0.0),
    "two models": (1, 0.0),
    "3+3, rows dominate": (3, 0.02),
    "3+3, seeds dominate": (3, 0.3),
    "3+3 paired": (3, 0.3),
    "5+5, rows dominate": (5, 0.02),
    "5+5, seeds dominate": (5, 0.3),
}
SKEWED = "two models, skewed"  # B gains a little in most groups and loses a lot in a tenth of them
ALONE = (20, 40, 100, 400)  # rows that are groups of their own
RISE = 0.4
THRESHOLD = -0.5  # of a hit: .69 of the rows
LOSS_SPREAD = 0.8
FAILS_ABOVE = 0.07
LARGEST = 4_000_000  # rows × runs at a time


@dataclass(frozen=True)
class Cell:
    design: str
    groups: int
    sizes: str
    correlation: float
    score: str
    metric: str


def cells(groups: Sequence[int] = GROUPS) -> Iterator[Cell]:
    for design, count, *rest in itertools.product(
        DESIGNS, groups, SIZES, CORRELATIONS, SCORES, METRICS
    ):
        yield Cell(design, count, *rest)
    for count, sizes, metric in itertools.product(groups, SIZES, METRICS[:2]):
        yield Cell(SKEWED, count, sizes, 0.2, "independent", metric)
    for design, count, metric in itertools.product(DESIGNS, ALONE, METRICS):
        yield Cell(design, count, "one row", 0.0, "independent", metric)


def draw_sizes(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    if name == "one row":
        return np.ones(shape, int)
    if name == "equal":
        return np.full(shape, 5)
    if name == "1-20":
        return draw.integers(1, 21, shape)
    if name == "lognormal":
        return np.ceil(2 * np.exp(1.5 * draw.normal(size=shape))).clip(1, 2000).astype(int)
    return np.floor(1 / draw.random(shape)).clip(1, 200).astype(int)  # Pareto, exponent 1


@dataclass
class Population:
    """The sizes of the groups that a cell draws from, and the true figure over all of them."""

    mean_log: float
    truth: float

    @classmethod
    @functools.cache
    def of(cls, sizes_name: str, score: str, metric: str) -> Population:
        from scipy.special import ndtr

        sizes = draw_sizes(sizes_name, (2_000_000,), np.random.default_rng(1))
        mean_log = float(np.log(sizes).mean())
        level = RISE * (np.log(sizes) - mean_log) if score == "rising" else 0.0 * sizes
        each = {
            "accuracy": ndtr(level - THRESHOLD),
            "log_loss": np.exp(LOSS_SPREAD * level + LOSS_SPREAD**2 / 2),
            "nats_per_token": 3 * np.exp(0.25 * level + 0.25**2 / 2),
        }[metric]
        return cls(mean_log, float((sizes * each).sum() / sizes.sum()))


@dataclass
class Sample:
    """`repeats` experiments: for each run sums over groups, all (repeats, runs, G), and what all
    runs share, (repeats, G); differences: squares of the contrast of rows, (repeats, G)."""

    scores: np.ndarray
    weights: np.ndarray
    weight_squares: np.ndarray
    contrast_squares: np.ndarray  # Σ (Σ_r c_r x_r)²
    contrast_products: np.ndarray  # Σ (Σ_r c_r x_r) w


def draw_sample(
    cell: Cell, population: Population, repeats: int, draw: np.random.Generator
) -> Sample:
    seeds, seed_std = DESIGNS.get(cell.design, (1, 0.0))
    runs = max(1, 2 * seeds)
    sizes = draw_sizes(cell.sizes, (repeats, cell.groups), draw)
    flat = sizes.ravel()
    starts = np.concatenate([[0], np.cumsum(flat)[:-1]])
    rows = int(flat.sum())
    of_group = np.repeat(np.arange(len(flat)), flat)
    of_repeat = of_group // cell.groups

    def latent() -> np.ndarray:
        rho = cell.correlation
        z = np.zeros(rows)
        if rho > 0:
            z += math.sqrt(rho) * draw.normal(size=len(flat))[of_group]
        if rho < 1:
            z += math.sqrt(1 - rho) * draw.normal(size=rows)
        return z

    shared = latent()
    level = 0.0
    if cell.score == "rising":
        level = RISE * (np.log(flat) - population.mean_log)[of_group]
    tokens = draw.integers(20, 61, rows).astype(float)
    effects = seed_std * draw.normal(size=(repeats, runs))
    if "paired" in cell.design:  # a correlation of .8 between the runs of one seed
        common = seed_std * draw.normal(size=(repeats, seeds))
        effects = math.sqrt(0.8) * np.tile(common, 2) + math.sqrt(0.2) * effects
    weights = tokens if cell.metric == "nats_per_token" else np.ones(rows)

    def score(z: np.ndarray) -> np.ndarray:
        if cell.metric == "accuracy":
            return (z > THRESHOLD).astype(float)
        if cell.metric == "log_loss":
            return np.exp(LOSS_SPREAD * z)
        return 3 * tokens * np.exp(0.25 * z)

    each, contrast = [], np.zeros(rows)
    for run in range(runs):
        z = shared if runs == 1 else math.sqrt(0.5) * (shared + latent())
        z = z + level + effects[of_repeat, run]
        x = score(z)
        if cell.design == SKEWED:
            base = shared if cell.metric == "log_loss" else shared > THRESHOLD
            x = base.astype(float)
            if run == 1:  # no difference over all groups
                lost = (draw.random(len(flat)) < 0.1)[of_group]
                gain = np.where(lost, -0.9, 0.1)
                if cell.metric == "log_loss":
                    x = x + gain
                else:  # of rows that were wrong some are right, of those right some are wrong
                    change = draw.random(rows)
                    right, wrong = 0.3 / 0.6915, 0.3 / 0.3085 / 9
                    flip = np.where(lost, (change < right) & base, (change < wrong) & ~base)
                    x = np.where(flip, 1 - x, x)
        each.append(np.add.reduceat(x, starts))
        own = 1.0 if runs == 1 else (-1 if run < runs // 2 else 1) / max(seeds, 1)
        contrast += own * x
    shape = (repeats, cell.groups)

    def sums(x: np.ndarray) -> np.ndarray:
        return np.add.reduceat(x, starts).reshape(shape)

    return Sample(
        np.stack([x.reshape(shape) for x in each], axis=1),
        sums(weights),
        sums(weights**2),
        sums(contrast**2),
        sums(contrast * weights),
    )


def missed(cell: Cell, sample: Sample, truth: float) -> tuple[np.ndarray, np.ndarray]:
    """(the interval misses the truth, there is an interval), (repeats,) bool each."""
    seeds, _ = DESIGNS.get(cell.design, (1, 0.0))
    total = sample.weights.sum(-1, keepdims=True)
    values = sample.scores.sum(-1) / total  # (repeats, runs)
    influences = (sample.scores - values[..., None] * sample.weights[:, None]) / total[..., None]
    own = np.array([1.0]) if not seeds else np.repeat([-1 / seeds, 1 / seeds], seeds)
    value = (values * own).sum(-1)
    squares = (
        sample.contrast_squares
        - 2 * value[:, None] * sample.contrast_products
        + value[:, None] ** 2 * sample.weight_squares
    ) / total**2
    groups = Groups(
        (influences * own[:, None]).sum(1),
        squares,
        sample.weights / total,
        sample.weight_squares / total**2,
    )
    if not seeds:
        if cell.metric == "accuracy" and cell.sizes == "one row":
            n = cell.groups
            pairs = [wilson_interval(k, n) for k in range(n + 1)]
            low, high = np.array(pairs)[np.rint(value * n).astype(int)].T
        else:
            kind = "share" if cell.metric == "accuracy" else "skewed"
            low, high, _ = limits(value, groups, kind)
        return (truth < low) | (truth > high), ~np.isnan(low)
    if cell.metric == "accuracy" and cell.sizes == "one row" and seeds == 1:
        change = np.rint(sample.scores[:, 1] - sample.scores[:, 0])
        gained, lost = (change > 0).sum(-1), (change < 0).sum(-1)
        p = np.array([comparisons.mid_p(*both) for both in zip(gained, lost, strict=True)])
        return p < comparisons.ALPHA, np.ones(len(p), bool)
    arms = np.split(np.arange(2 * seeds), 2)
    variance, freedom, *_ = comparisons.contrast_variance(
        [values[:, arm] for arm in arms],
        [influences[:, arm] for arm in arms],
        [-1.0, 1.0],
        groups,
        "paired" in cell.design,
    )
    there = (variance > 1e-18) & (freedom >= (2 if seeds == 1 else 0))
    with np.errstate(invalid="ignore"):
        width = quantile(0.95, freedom) * np.sqrt(variance)
    return np.abs(value) > width, there


def rate(cell: Cell, repeats: int) -> dict[str, object]:
    """One line of the table."""
    seed = zlib.crc32(repr(cell).encode())
    draw = np.random.default_rng(seed)
    population = Population.of(cell.sizes, cell.score, cell.metric)
    mean_size = {"equal": 5, "1-20": 10.5, "lognormal": 7, "pareto": 7, "one row": 1}[cell.sizes]
    runs = max(1, 2 * DESIGNS.get(cell.design, (1, 0))[0])
    at_once = max(1, min(repeats, int(LARGEST / (mean_size * cell.groups * runs))))
    wrong = there = done = 0
    while done < repeats:
        count = min(at_once, repeats - done)
        sample = draw_sample(cell, population, count, draw)
        missing, has = missed(cell, sample, population.truth)
        wrong, there, done = (
            wrong + int((missing & has).sum()),
            there + int(has.sum()),
            done + count,
        )
    line = {**cell.__dict__, "repeats": repeats, "intervals": there}
    if there < 100:
        return {**line, "missed": "", "low": "", "high": "", "fails": ""}
    low, high = wilson_interval(wrong, there)
    return {
        **line,
        **{"missed": f"{wrong / there:.4f}", "low": f"{low:.4f}", "high": f"{high:.4f}"},
        "fails": int(low > FAILS_ABOVE),
    }


def summary(lines: Sequence[dict[str, str]]) -> str:
    """The table as docs/statistics.md has it: a line a design, or where cells of it fail a line for
    each kind of sizes."""
    failing = {line["design"] for line in lines if line["fails"] == "1"}
    rows: dict[tuple[str, ...], list] = {}
    for line in lines:
        key = (line["design"], "all", "both")
        if line["design"] in failing:
            key = (line["design"], line["sizes"], line["score"])
        rows.setdefault(key, []).append(line)
    text = [
        "| design | sizes of groups | score and size | median | worst cell | fail |",
        "|---|---|---|---|---|---|",
    ]
    for key, those in rows.items():
        known = [line for line in those if line["missed"]]
        median = float(np.median([float(line["missed"]) for line in known]))
        worst = max(known, key=lambda line: float(line["missed"]))
        where = f"{worst['groups']} groups, ρ {float(worst['correlation']):g}, {worst['metric']}"
        fails = sum(line["fails"] == "1" for line in those)
        text.append(
            f"| {' | '.join(key)} | {median:.3f} | {float(worst['missed']):.3f} ({where}) | "
            f"{fails} of {len(those)} |"
        )
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, nargs="+", default=GROUPS)
    parser.add_argument("--designs", nargs="+", help="only these")
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("docs/statistics/coverage.csv"))
    parser.add_argument("--summary", action="store_true", help="of --out, as Markdown, and stop")
    arguments = parser.parse_args()
    if arguments.summary:
        with open(arguments.out, newline="") as file:
            print(summary(list(csv.DictReader(file))))
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with open(arguments.out, "w", newline="") as file:
        writer = None
        for cell in cells(arguments.groups):
            if arguments.designs and cell.design not in arguments.designs:
                continue
            line = rate(cell, arguments.repeats)
            if writer is None:
                writer = csv.DictWriter(file, list(line), lineterminator="\n")
                writer.writeheader()
            writer.writerow(line)
            file.flush()


if __name__ == "__main__":
    main()
