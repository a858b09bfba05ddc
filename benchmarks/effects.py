"""Does `effects` find which setting did it? Planted truths, drawn and judged as it judges.

    python -m benchmarks.effects               # docs/statistics/effects.csv, and the table of it
    python -m benchmarks.effects --summary     # the table alone, as Markdown

Each case has a truth (no setting matters, one does, two only together, three only together), a
design, and what seeds and rows add. It is run at the number of seeds that `evaluation.planning`
promises four of five for, of the line that needs most. Right: a line with a truth is called, with
its sign; false: any line without one is. The last cases plant the truth in real runs
(benchmarks/bank.py) in place of drawn ones.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.bank import BANK, Bank
from evaluation import comparisons, factorial, planning
from evaluation.factorial import Weights
from evaluation.stats import Groups, wilson_interval

OUT = Path("docs/statistics/effects.csv")
REPEATS = 4000
AT_ONCE = 500
GROUPS = 80
TRUTHS = ("none", "one", "two together", "three together")
# What a seed adds to the runs of its block: (share that all points have in common, share that
# points with one value of setting 0 have in common, spread where setting 1 has B's value)
SPREADS = {
    "independent": (0.0, 0.0, 1.0),
    "a seed moves all points": (0.8, 0.0, 1.0),
    "a seed moves those of one prompt": (0.0, 0.8, 1.0),
    "B's batch spreads 3 ×": (0.3, 0.0, 3.0),
}
SETTINGS_PER_ROW = {"seeds": 0.3, "rows": 3.0}  # standard deviation of a setting's effect on a row


@dataclass(frozen=True)
class Case:
    k: int
    design: str  # full, ends
    truth: str
    spread: str = "independent"
    dominate: str = "seeds"
    seeds: int = 5  # where there is no truth to need any

    @property
    def points(self) -> list[int]:
        made = factorial.full_points if self.design == "full" else factorial.end_points
        return made(self.k)

    def values(self) -> np.ndarray:
        """(points,) true means, before the size of the effect."""
        needs = {"none": None, "one": 0b1, "two together": 0b11, "three together": 0b111}
        mask = needs[self.truth]
        return np.array([0.0 if mask is None else float(p & mask == mask) for p in self.points])

    def lines(self) -> dict[str, np.ndarray]:
        """Weights on the points, by name, as reports/effects.py has its lines."""
        k, found = self.k, {}
        if self.design == "full":
            for i in range(k):
                found[f"{i}"] = factorial.contribution(i, k)
            for i in range(k):
                for j in range(i + 1, k):
                    found[f"{i} × {j}"] = factorial.together(i, j, k)
        else:
            found = {f"{i}": factorial.contribution_of_ends(i, k) for i in range(k)}
            found |= {f"{i} × the rest": factorial.with_the_rest(i, k) for i in range(k)}
            found["remainder"] = factorial.remainder(k)
        return {name: self._vector(weights) for name, weights in found.items()}

    def _vector(self, weights: Weights) -> np.ndarray:
        return np.array([weights.get(point, 0.0) for point in self.points])

    def covariance(self) -> tuple[np.ndarray, np.ndarray]:
        """(points, points) of seeds, chance answers included, and of rows, for one run each and
        all rows: what is planned with."""
        common, by_setting, wide = SPREADS[self.spread]
        points = np.array(self.points)
        scale = np.where(points >> 1 & 1, wide, 1.0)
        same = (points[:, None] & 1) == (points[None, :] & 1)
        seeds = common + by_setting * same + (1 - common - by_setting) * np.eye(len(points))
        seeds = seeds * np.outer(scale, scale) + np.eye(len(points)) / GROUPS
        bits = (points[:, None] >> np.arange(self.k) & 1).astype(float)
        rows = SETTINGS_PER_ROW[self.dominate] ** 2 * bits @ bits.T / GROUPS
        return seeds, rows

    def seeds_and_effect(
        self, designs: dict[str, planning.Design] | None = None
    ) -> tuple[int, float]:
        """(seeds, size of the effect): as many as planning promises four of five for; the effect is
        one that six seeds show on the line that needs most."""
        lines = self.lines()
        truths = {n: float(w @ self.values()) for n, w in lines.items()}
        true = {n: value for n, value in truths.items() if abs(value) > 1e-9}
        if not true:
            return self.seeds, 0.0
        designs = designs or {n: self._design(lines[n], 6, len(lines)) for n in true}
        effect = max(planning.detectable(designs[n]) / abs(true[n]) for n in true)
        effect *= 1.001  # bisection ends just below
        needed = [planning.seeds_needed(designs[n], effect * abs(true[n])) for n in true]
        return max(n or planning.MOST_SEEDS for n in needed), effect

    def _design(self, weights: np.ndarray, seeds: int, comparisons_: int) -> planning.Design:
        of_seeds, of_rows = self.covariance()
        return planning.Design(
            seeds=seeds,
            seed_std=math.sqrt(float(weights @ of_seeds @ weights) / 2),
            row_variance=max(float(weights @ of_rows @ weights), 0.0),
            row_freedom=GROUPS - 1,
            comparisons=comparisons_,
            correlation=0.0,
            weighted=True,
        )


def draw(case: Case, seeds: int, effect: float, repeats: int, random: np.random.Generator):
    """(values (repeats, points, seeds), influences (repeats, points, seeds, groups))."""
    common, by_setting, wide = SPREADS[case.spread]
    points = np.array(case.points)
    shape = (repeats, len(points), seeds)
    of_all = random.normal(size=(repeats, 1, seeds))
    of_setting = random.normal(size=(repeats, 2, seeds))[:, points & 1]
    own = random.normal(size=shape)
    moved = math.sqrt(common) * of_all + math.sqrt(by_setting) * of_setting
    moved = moved + math.sqrt(1 - common - by_setting) * own
    moved = moved * np.where(points >> 1 & 1, wide, 1.0)[:, None]
    bits = (points[:, None] >> np.arange(case.k) & 1).astype(float)
    of_rows = random.normal(size=(repeats, case.k, GROUPS)) * SETTINGS_PER_ROW[case.dominate]
    rows = (bits @ of_rows)[:, :, None] + random.normal(size=(*shape, GROUPS))
    means = rows.mean(-1)
    values = effect * case.values()[:, None] + moved + means
    return values, (rows - means[..., None]) / GROUPS


def p_values(
    values: np.ndarray, influences: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(p, contrast), (repeats,) each, of a contrast that is blocked by seed.

    That of many points in which run s of each has seed s is that of one cell, the seeds' own
    contrasts: `comparisons.contrast_variance` gives the same for both (tests/test_effects.py).
    """
    own = np.einsum("p,rps->rs", weights, values)
    each = np.einsum("p,rpsg->rsg", weights, influences)
    return p_of_blocks(own, each, equal_groups(each.mean(1)))


def p_of_blocks(own: np.ndarray, each: np.ndarray, groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    """own (repeats, seeds), each (repeats, seeds, groups): the seeds' contrasts."""
    variance, _, rows, seeds, _ = comparisons.contrast_variance([own], [each], [1.0], groups, True)
    (of_seeds, freedom), *_ = seeds
    t = np.abs(own.mean(-1)) / np.sqrt(variance)
    return comparisons.weighted_p(t, (of_seeds, rows), (freedom, groups.freedom)), own.mean(-1)


def equal_groups(influence: np.ndarray) -> Groups:
    """Groups of one row each, (…, G)."""
    share = np.full_like(influence, 1 / influence.shape[-1])
    return Groups(influence, influence**2, share, share**2)


def called(p: np.ndarray) -> np.ndarray:
    """(repeats, lines) bool: Holm's steps at 5 %."""
    order = np.argsort(p, axis=1)
    count = p.shape[1]
    sorted_p = np.take_along_axis(p, order, axis=1)
    below = sorted_p < comparisons.ALPHA / (count - np.arange(count))
    stepped = np.logical_and.accumulate(below, axis=1)
    found = np.zeros_like(stepped)
    np.put_along_axis(found, order, stepped, axis=1)
    return found


def cases() -> list[Case]:
    found = [Case(2, "full", truth) for truth in TRUTHS[:3]]
    found += [Case(k, "full", "none", seeds=3) for k in (2, 3, 4)]
    for spread in SPREADS:
        for dominate in SETTINGS_PER_ROW:
            found += [Case(3, "full", truth, spread, dominate) for truth in TRUTHS[:3]]
    found += [Case(4, "full", truth, "a seed moves all points") for truth in TRUTHS[:3]]
    found += [Case(6, "ends", truth, "a seed moves all points") for truth in TRUTHS]
    return found


def line_of(case: Case, repeats: int) -> dict[str, object]:
    """A line of the table."""
    random = np.random.default_rng([case.k, len(case.points), *map(ord, repr(case))])
    seeds, effect = case.seeds_and_effect()

    def drawn(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        values, influences = draw(case, seeds, effect, count, random)
        for weights in case.lines().values():
            yield p_values(values, influences, weights)

    return counted(case, seeds, repeats, drawn)


def counted(case: Case, seeds: int, repeats: int, drawn: Callable) -> dict[str, object]:
    """drawn(count): of each line (p, contrast), (count,) each."""
    truths = np.array([weights @ case.values() for weights in case.lines().values()])
    is_true = np.abs(truths) > 1e-9
    right, false = np.zeros(len(truths), int), 0
    for begin in range(0, repeats, AT_ONCE):
        found = list(drawn(min(AT_ONCE, repeats - begin)))
        calls = called(np.stack([p for p, _ in found], axis=1))
        signs = np.stack([np.sign(contrast) for _, contrast in found], axis=1)
        as_planted = signs == np.sign(truths)
        right += (calls & as_planted).sum(0)
        false += int((calls & ~(is_true & as_planted)).any(1).sum())  # of the wrong sign, too
    worst = int(right[is_true].min()) if is_true.any() else None
    return row(case, seeds, repeats, worst, false)


def row(case: Case, seeds: int, repeats: int, right: int | None, false: int) -> dict[str, object]:
    shares = [wilson_interval(n, repeats) if n is not None else None for n in (right, false)]
    texts = [
        ["", "", ""] if share is None else [f"{n / repeats:.4f}", *(f"{x:.4f}" for x in share)]
        for n, share in zip((right, false), shares, strict=True)
    ]
    names = [f"{what}{end}" for what in ("right", "false") for end in ("", "_low", "_high")]
    return {
        **{"settings": case.k, "design": case.design, "truth": case.truth},
        **{"spread": case.spread, "dominate": case.dominate, "seeds": seeds, "repeats": repeats},
        **dict(zip(names, texts[0] + texts[1], strict=True)),
    }


# --------------------------------------------------------------------- planted in real runs


def line_of_bank(bank: Bank, truth: str, repeats: int) -> dict[str, object]:
    """Blocks of four runs of one setting, dealt to the points of two settings: what they differ by
    is noise, and what is planted is added to their losses."""
    case = Case(2, "full", truth, "real runs", "both")
    random = np.random.default_rng(len(truth))
    runs = bank.runs["base"]
    spread = float(np.std([run.value for run in runs], ddof=1))
    lines = case.lines()
    designs = {
        name: planning.Design(
            seeds=6,
            seed_std=math.sqrt(float(weights @ weights) / 2) * spread,
            comparisons=len(lines),
            correlation=0.0,
            weighted=True,
        )
        for name, weights in lines.items()
    }
    seeds, effect = case.seeds_and_effect(designs)
    each = np.stack([np.bincount(bank.index, run.rows) for run in runs])  # (runs, G)
    leverage = np.bincount(bank.index, runs[0].leverage)
    squares = np.bincount(bank.index, runs[0].leverage ** 2)
    values = np.array([run.value for run in runs])

    def drawn(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        dealt = np.stack([random.permutation(len(runs))[: 4 * seeds] for _ in range(count)])
        dealt = dealt.reshape(count, 4, seeds)
        planted = values[dealt] + effect * case.values()[:, None]
        for weights in lines.values():
            own = np.einsum("p,rps->rs", weights, planted)
            rows = np.einsum("p,rpsg->rsg", weights, each[dealt])
            influence = rows.mean(1)
            shares = (np.broadcast_to(x, influence.shape) for x in (leverage, squares))
            groups = Groups(influence, influence**2, *shares)
            yield p_of_blocks(own, rows, groups)

    return counted(case, seeds, repeats, drawn)


def summary(lines: Sequence[dict[str, str]]) -> str:
    """A line for each truth of a design: over what seeds and rows do, the fewest that are right
    and the most that are false."""
    text = [
        "| settings | points | truth | seeds | cases | right, least | any false, most |",
        "|---|---|---|---|---|---|---|",
    ]
    alike: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for line in lines:
        points = f"{line['design']}{', real runs' * (line['spread'] == 'real runs')}"
        key = (line["settings"], points, line["truth"], line["seeds"])
        alike.setdefault(key, []).append(line)
    for key, those in alike.items():
        cells = ["–"]
        if those[0]["right"]:
            cells = [_share(min(those, key=lambda line: float(line["right"])), "right")]
        cells.append(_share(max(those, key=lambda line: float(line["false"])), "false"))
        text.append(f"| {' | '.join([*key, str(len(those)), *cells])} |")
    return "\n".join(text)


def _share(line: dict[str, str], name: str) -> str:
    value, low, high = (float(line[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--summary", action="store_true", help="of --out, as Markdown, and stop")
    arguments = parser.parse_args()
    if not arguments.summary:
        found = []
        for case in cases():
            found.append(line_of(case, arguments.repeats))
            print(found[-1], file=sys.stderr, flush=True)
        if BANK.is_file():
            bank = Bank(BANK)
            found += [line_of_bank(bank, truth, arguments.repeats) for truth in TRUTHS[:3]]
        with open(arguments.out, "w", newline="") as file:
            writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(found)
    with open(arguments.out, newline="") as file:
        print(summary(list(csv.DictReader(file))))


if __name__ == "__main__":
    main()
