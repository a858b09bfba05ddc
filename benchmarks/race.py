"""How often races, gates and the best of several err, where the truth is known.

    python -m benchmarks.race                  # all of it: docs/statistics/race.csv
    python -m benchmarks.race --only gate      # race, bank, gate or best, printed and not kept
    python -m benchmarks.race --summary        # of the file, as Markdown, and stop

The unit is the standard deviation of the difference of two runs of one seed (race), or between
seeds (gate, best). Rows are drawn once a race; their part is a share of the variance of the seeds.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation import comparisons, planning, sequential
from evaluation.investing import Terms, Wealth, hopeless, is_shown, needed_gain
from evaluation.stats import Groups, wilson_interval
from evaluation.winners import shrunk

GROUPS = 60  # of rows, in a race
CHUNK = 1000
ROW_SHARES = (0.0, 0.05, 0.25, 1.0)
OWN_ROWS = 0.1  # of a run's own variance, what it does by chance on single rows
OUT = Path("docs/statistics/race.csv")


# ---------------------------------------------------------------------------------- races


@dataclass
class Races:
    """Of `repeats`: with a false verdict, with a right one on every arm, given up for want of rows;
    seeds: that an arm took on average."""

    repeats: int
    false: int = 0
    right: int = 0
    rows: int = 0
    seeds: float = 0.0


def races(
    most: int,
    row_share: float,
    difference: float = 0.0,
    margin: float | None = None,
    arms: int = 1,
    repeats: int = 4000,
    heavy: bool = False,
) -> Races:
    """Races of `arms` against one baseline, from which each differs by `difference`; heavy: the
    seeds have Student's t with 3 degrees of freedom, and not a normal distribution."""
    total = Races(repeats)
    draw = np.random.default_rng(
        [most, round(100 * row_share), arms, round(1000 * abs(difference))]
    )
    for start in range(0, repeats, CHUNK):
        count = min(CHUNK, repeats - start)
        cells = [_arm(draw, count, most, row_share, heavy) for _ in range(arms + 1)]
        found = _race(cells, np.full(GROUPS, 1 / GROUPS), most, difference, margin)
        total.false += int(found["false"].sum())
        total.right += int(found["right"].sum())
        total.rows += int(found["rows"].sum())
        total.seeds += float(found["seeds"].sum()) / arms / repeats
    return total


def _arm(draw, count: int, most: int, row_share: float, heavy: bool) -> tuple:
    """(values (count, most), influences (count, most, GROUPS)) of the seeds of one setting."""
    shared = draw.normal(0, np.sqrt(row_share / 2 / GROUPS), (count, 1, GROUPS))
    own = draw.normal(0, np.sqrt(OWN_ROWS / 2 / GROUPS), (count, most, GROUPS))
    seeds = draw.standard_t(3, (count, most)) / np.sqrt(3) if heavy else draw.normal(
        size=(count, most)
    )  # fmt: skip
    rows = shared + own
    values = np.sqrt((1 - OWN_ROWS) / 2) * seeds + rows.sum(-1)
    return values, rows - rows.mean(-1, keepdims=True)


def _race(
    cells: list, lever: np.ndarray, most: int, difference: float, margin: float | None = None
) -> dict:
    """One verdict an arm and race, as sweeps/race.py makes it: arrays (count,). cells: as _arm has
    them, the baseline first; lever (G,): the share of the weight that each group of rows has."""
    (base, base_rows), *others = cells
    count, arms = len(base), len(others)
    levels = sequential.levels_of_race(most, arms)
    running = np.ones((arms, count), bool)
    false, right, rows = (np.zeros((arms, count), bool) for _ in range(3))
    seeds = np.zeros((arms, count))
    for k, level in levels.items():
        for number, (arm, arm_rows) in enumerate(others):
            here = running[number]
            if not here.any():
                continue
            seeds[number, here] = k
            parts = [base_rows[here, :k], arm_rows[here, :k]]
            values = [base[here, :k], arm[here, :k] + difference]
            change = parts[1].mean(1) - parts[0].mean(1)
            groups = Groups(change, change**2, lever[None], lever[None] ** 2)
            _, _, of_rows, parts_of_seeds, _ = comparisons.contrast_variance(
                values, parts, [-1.0, 1.0], groups, paired=True
            )
            ((part, degrees),) = parts_of_seeds
            value = values[1].mean(1) - values[0].mean(1)
            half = comparisons.small_level_width(part, degrees, of_rows, groups.freedom, level)
            low, high = value - half, value + half
            better, worse = low > 0, high < 0
            small = (low > -margin) & (high < margin) if margin else np.zeros(len(low), bool)
            settled = better | worse | small
            wrong = better & (difference <= 0) | worse & (difference >= 0)
            if margin:
                wrong |= small & (abs(difference) >= margin)
            known = value, part, degrees, of_rows, groups.freedom, levels[most], margin
            for_rows = ~settled & sequential.only_rows_help(*known)
            last = {"share": k / most, "last": most - 1}
            stop = for_rows | ~settled & sequential.stays_undecided(*known, **last)
            where = np.flatnonzero(here)
            false[number, where] |= wrong & settled
            right[number, where] |= settled & ~wrong
            rows[number, where] |= for_rows
            running[number, where] = ~settled & ~stop
    return {
        **{"false": false.any(0), "right": right.all(0)},
        **{"rows": rows.any(0), "seeds": seeds.sum(0)},
    }


def race_lines(repeats: int) -> Iterator[dict]:
    for share in ROW_SHARES:
        for most in (6, 10, 20):
            yield _race_line("null", races(most, share, repeats=repeats), most, share)
        yield _race_line("null, 4 arms", races(8, share, arms=4, repeats=repeats), 8, share)
        for difference in (-0.8, 0.8):
            found = races(20, share, difference, margin=0.8, repeats=repeats)
            yield _race_line(f"d = {difference:+g}, margin .8", found, 20, share)
        found = races(20, share, 0.0, margin=0.8, repeats=repeats)
        yield _race_line("null, margin .8", found, 20, share)
    found = races(10, 0.0, heavy=True, repeats=repeats)
    yield _race_line("null, seeds t(3)", found, 10, 0.0)
    for fixed, share in ((5, 0.0), (10, 0.0), (10, 0.05), (20, 0.0), (20, 0.01)):
        yield _power_line(fixed, share, repeats)


def _power_line(fixed: int, share: float, repeats: int) -> dict:
    """At the difference that a fixed number of seeds is planned for: a race of the same power."""
    design = planning.Design(
        seeds=fixed, seed_std=1.0, row_variance=share, row_freedom=GROUPS - 1, correlation=0.5
    )
    difference = planning.detectable(design)
    for most in range(fixed, 3 * fixed):
        found = races(most, share, difference, repeats=repeats)
        if found.right >= 0.8 * repeats:
            break
    what = f"planned for {fixed} seeds: d = {difference:.2f}"
    return _race_line(what, found, most, share) | {"rate": f"{found.right / repeats:.4f}"}


def _race_line(what: str, found: Races, most: int, share: float) -> dict:
    low, high = wilson_interval(found.false, found.repeats)
    return {
        **{"part": "race", "case": what, "rows": share, "most": most, "repeats": found.repeats},
        **{"false": f"{found.false / found.repeats:.4f}", "low": f"{low:.4f}"},
        **{"high": f"{high:.4f}", "rate": f"{found.right / found.repeats:.4f}"},
        **{"seeds": f"{found.seeds:.2f}", "for_want_of_rows": f"{found.rows / found.repeats:.4f}"},
    }


# ------------------------------------------------------------------------ the bank of real runs


def bank_lines(repeats: int) -> Iterator[dict]:
    """Races between seeds of one setting, and against a change, drawn from docs/statistics/bank.npz
    (paired by seed; of one setting, strangers are paired)."""
    from benchmarks.bank import BANK, Bank

    bank = Bank(BANK)
    lever = np.bincount(bank.index, bank.weights) / bank.weights.sum()
    known = {
        arm: (bank.values(arm), np.stack([np.bincount(bank.index, run.rows) for run in runs]))
        for arm, runs in bank.runs.items()
    }
    for a, b, most in (
        *(("base", "base", most) for most in (6, 10, 20)),
        *(("base_in_order", "base_in_order", most) for most in (6, 10, 20)),
        *(("base", "gelu", most) for most in (10, 20)),
        *(("base_in_order", "gelu_in_order", most) for most in (10, 20)),
    ):
        draw, called, seeds, fixed = np.random.default_rng(most), 0, 0.0, 0
        many = min(len(known[a][0]), len(known[b][0]))
        for _ in range(repeats // 250):
            order = draw.permuted(np.tile(np.arange(many), (250, 1)), axis=1)
            of_a, of_b = order[:, :most], order[:, most : 2 * most] if a == b else order[:, :most]
            cells = [tuple(x[of] for x in known[arm]) for arm, of in ((a, of_a), (b, of_b))]
            found = _race(cells, lever, most, 0.0)
            called += int(found["false"].sum())  # any verdict, as the difference is said to be 0
            seeds += float(found["seeds"].sum()) / repeats
            apart = cells[1][0] - cells[0][0]
            fixed += int((sequential.paired_p(apart)[:, -1] < comparisons.ALPHA).sum())
        low, high = wilson_interval(called, repeats)
        yield {
            **{"part": "bank", "case": f"{a} against {b}", "rows": "", "most": most},
            **{"repeats": repeats, "false": f"{called / repeats:.4f}" if a == b else ""},
            **{"low": f"{low:.4f}", "high": f"{high:.4f}", "rate": f"{called / repeats:.4f}"},
            **{"seeds": f"{seeds:.2f}", "of_all_seeds": f"{fixed / repeats:.4f}"},
        }


# ------------------------------------------------------------------------------- the gate


POLICIES = ("at random", "variants of the best", "the best five together")
BASE_SEEDS = 10
ROW_FREEDOM = 100  # of the rows' variance, which is known well


def loops(
    policy: str,
    row_share: float,
    gain: float = 0.0,
    spread: float = 1.0,
    count: int = 1000,
    terms: Terms = Terms(),  # noqa: B008 - frozen
    blind: bool = True,
    base_seeds: int = BASE_SEEDS,
) -> tuple[np.ndarray, np.ndarray, float]:
    """(noise was kept, the planted gain was kept; both (count,) bool, seeds a proposal).

    Proposals are noise but for one, planted anywhere, that is better by `gain` standard deviations
    of a seed. They are chosen from history, by the gains that were shown: a variant has .9 of the
    luck on single rows of the best so far. spread: of a candidate's seeds, those of the base being
    1. blind: rows that decide are not those that are shown; otherwise all rows do both.
    """
    draw = np.random.default_rng([POLICIES.index(policy), round(100 * row_share), blind])
    each = np.arange(count)
    base = draw.normal(size=(count, base_seeds))
    rows = 2 * row_share * (2 if blind else 1)  # variance of a difference on each half
    luck, shown = np.zeros((2, terms.proposals, count)), np.full((terms.proposals, count), -np.inf)
    kept, found = np.zeros(count, bool), np.zeros(count, bool)
    planted = draw.integers(terms.proposals, size=count) if gain else np.full(count, -1)
    wealth, seeds = Wealth(terms), 0
    for number in range(terms.proposals):
        own = draw.normal(size=(2, count))
        if policy != "at random" and number > 5:
            old = draw.random(count) < 0.8
            if policy.startswith("variants"):
                best = shown[:number].argmax(0)
                taken = 0.9 * luck[:, best, each] + np.sqrt(1 - 0.9**2) * own
            else:
                best = np.argpartition(shown[:number], -5, axis=0)[-5:]
                taken = luck[:, best, each[None]].sum(1) / np.sqrt(5)
            own = np.where(old, taken, own)
        luck[:, number] = own
        if not blind:
            own = own[[0, 0]]
        truth = np.where(planted == number, gain, 0.0)
        runs = truth[:, None] + spread * draw.normal(size=(count, terms.seeds))
        shown[number], lost, better = proposal(base, runs, rows, own, wealth.bid(), terms)
        if policy.startswith("the best") and number > 5:  # what is combined is not combined again
            shown[number, old] = -np.inf
        seeds += np.where(lost, comparisons.MIN_SEEDS, terms.seeds).mean()
        found |= better & (planted == number)
        kept |= better & (planted != number)
    return kept, found, seeds / terms.proposals


def proposal(
    base: np.ndarray, runs: np.ndarray, rows: float, luck: np.ndarray, level: float, terms: Terms
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(gain that is shown after three seeds, discarded then, kept in the end), (count,) each."""
    few = runs[:, : comparisons.MIN_SEEDS]
    value, seeds, freedom = _welch(base, few, rows, luck[0])
    error = np.sqrt(seeds + rows)
    needed = needed_gain(base.var(1, ddof=1), base.shape[1], rows, level, terms)
    lost = hopeless(value, error, (seeds + rows) ** 2 / (seeds**2 / freedom), needed)
    last, seeds, freedom = _welch(base, runs, rows, luck[1])
    width = comparisons.small_level_width(seeds, freedom, rows, ROW_FREEDOM, level)
    return value, lost, ~lost & (last > width)


def kept_share(gain: float, terms: Terms, count: int = 20_000) -> float:
    """How often a change that is better by `gain` standard deviations of a seed is kept."""
    draw = np.random.default_rng(1)
    base, runs = draw.normal(size=(count, BASE_SEEDS)), draw.normal(size=(count, terms.seeds))
    level = Wealth(terms).bid()
    return float(proposal(base, runs + gain, 0.0, np.zeros((2, count)), level, terms)[2].mean())


def _welch(base: np.ndarray, runs: np.ndarray, rows: float, luck: np.ndarray) -> tuple:
    """(difference, the seeds' part of its variance, its degrees of freedom), (count,) each."""
    parts = [(x.var(1, ddof=1) / x.shape[1], x.shape[1] - 1) for x in (base, runs)]
    seeds = parts[0][0] + parts[1][0]
    spread = sum(part**2 / degrees for part, degrees in parts)
    return runs.mean(1) - base.mean(1) + np.sqrt(rows) * luck, seeds, seeds**2 / spread


def loops_of_bank(
    gain: float,
    count: int,
    terms: Terms = Terms(),  # noqa: B008 - frozen
) -> tuple[np.ndarray, np.ndarray, float]:
    """As `loops`, at random, with real seeds on real rows: each loop has a base of seeds of one
    setting of docs/statistics/bank.npz, and its proposals are drawn from all others of them, one
    of them made better by `gain` nats. Judged as sweeps/gate.py does it, on two halves of rows."""
    from benchmarks.bank import BANK, Bank

    bank = Bank(BANK)
    shown = np.array([is_shown(str(group)) for group in range(bank.index.max() + 1)])
    losses = np.stack([run.rows + run.value * run.leverage for run in bank.runs["base"]])
    halves = []
    for groups in (shown, ~shown):
        rows = groups[bank.index]
        weight = bank.weights[rows] / bank.weights.sum()
        values = losses[:, rows].sum(1) / weight.sum()
        apart = (losses[:, rows] - values[:, None] * weight) / weight.sum()
        each = np.stack([np.bincount(bank.index[rows], x, len(shown)) for x in apart])[:, groups]
        lever = np.bincount(bank.index[rows], weight, len(shown))[groups] / weight.sum()
        halves.append((values, each, lever))
    draw = np.random.default_rng(5)
    wealth, levels = Wealth(terms), np.zeros(terms.proposals)
    for number in range(terms.proposals):
        levels[number] = wealth.bid()
    kept, found, seeds = np.zeros(count, bool), np.zeros(count, bool), 0
    for loop in range(count):
        order = draw.permutation(len(losses))
        base, others = order[:BASE_SEEDS], order[BASE_SEEDS:]
        chosen = others[draw.random((terms.proposals, len(others))).argsort(1)[:, : terms.seeds]]
        truth = np.zeros(terms.proposals)
        truth[draw.integers(terms.proposals)] = gain
        few = chosen[:, : comparisons.MIN_SEEDS]
        value, parts, freedom, rows, _ = _half_of_bank(halves[0], base, few)
        error = np.sqrt(parts[0] + parts[1] + rows)
        spread = sum(x**2 / k for x, k in zip(parts, (BASE_SEEDS - 1, 2), strict=True))
        spread += rows**2 / freedom
        needed = needed_gain(parts[0] * BASE_SEEDS, BASE_SEEDS, rows, levels, terms)
        left = np.flatnonzero(~hopeless(truth - value, error, error**4 / spread, needed))
        value, parts, freedom, rows, degrees = _half_of_bank(halves[1], base, chosen[left])
        known = (parts[0] + parts[1], degrees, rows, freedom, levels[left])
        better = left[truth[left] - value > comparisons.small_level_width(*known)]
        found[loop], kept[loop] = (truth[better] > 0).any(), (truth[better] == 0).any()
        seeds += comparisons.MIN_SEEDS + len(left) / terms.proposals * (
            terms.seeds - comparisons.MIN_SEEDS
        )
    return kept, found, seeds / count


def _half_of_bank(half: tuple, base: np.ndarray, chosen: np.ndarray) -> tuple:
    """On a half of the rows: (difference, parts of the seeds, degrees of the rows, their part,
    degrees of the seeds) of proposals with the seeds chosen (P, k), (P,) each."""
    values, each, lever = half
    change = each[chosen].mean(1) - each[base].mean(0)
    groups = Groups(change, change**2, lever[None], lever[None] ** 2)
    cells = [np.tile(values[base], (len(chosen), 1)), values[chosen]]
    both = [each[base][None], each[chosen]]
    _, _, rows, parts, _ = comparisons.contrast_variance(cells, both, [-1.0, 1.0], groups)
    of_seeds = [part for part, _ in parts]
    spread = sum(part**2 / degrees for part, degrees in parts)
    return (
        *(cells[1].mean(1) - cells[0].mean(1), of_seeds, groups.freedom, rows),
        sum(of_seeds) ** 2 / spread,
    )


def gate_lines(count: int) -> Iterator[dict]:
    for policy in POLICIES:
        for share in ROW_SHARES:
            kept, _, seeds = loops(policy, share, count=count)
            yield _gate_line(f"nulls, {policy}", share, kept, seeds)
    kept, _, seeds = loops(POLICIES[0], 0.05, spread=3.0, count=count)
    yield _gate_line("nulls of three times the spread", 0.05, kept, seeds)
    for policy in POLICIES[1:]:
        kept, _, seeds = loops(policy, 0.25, count=count, blind=False)
        yield _gate_line(f"nulls, {policy}, no half kept back", 0.25, kept, seeds)
    kept, _, seeds = loops(POLICIES[1], 0.05, count=count, base_seeds=3)
    yield _gate_line("nulls, variants of the best, a base of 3 seeds", 0.05, kept, seeds)
    for terms in (Terms(500, 10), Terms(500, 20), Terms(100, 10), Terms(40, 6)):
        low, high = 1.0, 20.0
        while high - low > 0.01:
            gain = (low + high) / 2
            low, high = (low, gain) if kept_share(gain, terms) >= 0.8 else (gain, high)
        kept, found, seeds = loops(POLICIES[0], 0.0, high, count=count, terms=terms)
        line = _gate_line(f"a gain of {high:.2f} among {terms.proposals}", 0.0, kept, seeds)
        share = f"{found.mean():.4f}"
        yield line | {"most": terms.seeds, "rate": share, "spread_for_.03": f"{0.03 / high:.4f}"}
        if terms == Terms():
            as_large = high
    kept, _, seeds = loops_of_bank(0.0, count)
    yield _gate_line("seeds of one setting of the bank", "", kept, seeds)
    from benchmarks.bank import BANK, Bank

    gain = as_large * Bank(BANK).values("base").std(ddof=1)
    kept, found, seeds = loops_of_bank(gain, count)
    line = _gate_line(f"the same, one made better by {gain:.2f}", "", kept, seeds)
    yield line | {"rate": f"{found.mean():.4f}"}


def _gate_line(case: str, share: float | str, kept: np.ndarray, seeds: float) -> dict:
    low, high = wilson_interval(int(kept.sum()), len(kept))
    return {
        **{"part": "gate", "case": case, "rows": share, "most": Terms().seeds},
        **{"repeats": len(kept), "false": f"{kept.mean():.4f}", "low": f"{low:.4f}"},
        **{"high": f"{high:.4f}", "seeds": f"{seeds:.2f}"},
    }


# ------------------------------------------------------------------------- the best of several


TRUTHS = {
    "all alike": lambda k: np.zeros(k),
    "one better by 1": lambda k: np.r_[1.0, np.zeros(k - 1)],
    "one better by 4": lambda k: np.r_[4.0, np.zeros(k - 1)],
    "evenly spread over 4": lambda k: np.linspace(0, 4, k),
    "two better by 2": lambda k: np.r_[2.0, 2.0, np.zeros(k - 2)],
}


def best(
    truth: np.ndarray, seeds: int, row_share: float, repeats: int = 2000, uneven: bool = False
) -> dict:
    """Settings with these true figures, the larger the better: what the best of them claims to be
    better by than their mean, what `winners.shrunk` expects, and what it is on fresh rows.

    uneven: the seeds of every fourth setting spread twice as much.
    """
    draw = np.random.default_rng([len(truth), seeds, round(100 * row_share)])

    def some(many: int) -> tuple[np.ndarray, np.ndarray]:
        values, each = [], []
        for number, own in enumerate(truth):
            wide = 2.0 if uneven and number % 4 == 1 else 1.0
            rows = draw.normal(0, np.sqrt(row_share / GROUPS), (many, 1, GROUPS))
            rows = rows + draw.normal(0, np.sqrt(OWN_ROWS / GROUPS), (many, seeds, GROUPS))
            noise = np.sqrt(1 - OWN_ROWS) * draw.normal(size=(many, seeds))
            values.append(own + wide * noise + rows.sum(-1))
            each.append(rows - rows.mean(-1, keepdims=True))
        return np.stack(values), np.stack(each)

    line = _best_of(some, truth, np.full(GROUPS, 1 / GROUPS), repeats)
    return {"rows": row_share, "most": seeds, **line}


def best_of_bank(count: int, seeds: int, repeats: int) -> dict:
    """So many arms of one setting, their runs drawn from docs/statistics/bank.npz: whatever the
    best of them claims is luck."""
    from benchmarks.bank import BANK, Bank

    bank, draw = Bank(BANK), np.random.default_rng([count, seeds])
    losses = -bank.values("base")
    rows = np.stack([-np.bincount(bank.index, run.rows) for run in bank.runs["base"]])
    lever = np.bincount(bank.index, bank.weights) / bank.weights.sum()

    def some(many: int) -> tuple[np.ndarray, np.ndarray]:
        order = draw.permuted(np.tile(np.arange(len(losses)), (many, 1)), axis=1)
        chosen = order[:, : count * seeds].reshape(many, count, seeds).transpose(1, 0, 2)
        return losses[chosen], rows[chosen]

    return {"rows": "", "most": seeds, **_best_of(some, np.zeros(count), lever, repeats)}


def _best_of(some: Callable, truth: np.ndarray, lever: np.ndarray, repeats: int) -> dict:
    """some(n): n times the values of each setting's seeds (K, n, seeds), and what each group of
    rows adds to them (K, n, seeds, groups)."""
    count, claimed, expected, fresh, missed = len(truth), 0.0, 0.0, 0.0, 0
    for start in range(0, repeats, 250):
        many = min(250, repeats - start)
        values, each = some(many)
        means = values.mean(-1)  # (K, many)
        chosen = means.argmax(0)
        # the best first, as the contrast of `reports/ledger.py` has it
        picked = np.where(np.arange(count)[:, None] == chosen, 0, 1).argsort(0, kind="stable")
        values = [values[picked[i], np.arange(many)] for i in range(count)]
        each = [each[picked[i], np.arange(many)] for i in range(count)]
        weights = [1 - 1 / count] + [-1 / count] * (count - 1)
        change = sum(w * x.mean(1) for w, x in zip(weights, each, strict=True))
        levers = np.tile(lever, (many, 1))
        groups = Groups(change, change**2, levers, levers**2)
        _, _, of_rows, parts, _ = comparisons.contrast_variance(values, each, weights, groups)
        lead, spread = means.max(0) - means.mean(0), means.std(0, ddof=1)
        found = shrunk(lead, spread, weights, parts, of_rows, groups.freedom)
        true = truth[chosen] - truth.mean()
        claimed += lead.sum() / repeats
        expected += found.expected.sum() / repeats
        fresh += true.sum() / repeats
        missed += int(((true < found.low) | (true > found.high)).sum())
    low, high = wilson_interval(missed, repeats)
    return {
        **{"repeats": repeats, "false": f"{missed / repeats:.4f}"},
        **{"low": f"{low:.4f}", "high": f"{high:.4f}", "claimed": f"{claimed:.3f}"},
        **{"expected": f"{expected:.3f}", "on_fresh_rows": f"{fresh:.3f}"},
    }


def best_lines(repeats: int) -> Iterator[dict]:
    for name, of in TRUTHS.items():
        for count, seeds, share in ((20, 3, 0.05), (20, 3, 1.0), (20, 5, 0.25), (5, 3, 0.25)):
            line = best(of(count), seeds, share, repeats)
            yield {"part": "best", "case": f"best of {count}, {name}"} | line
    line = best(np.zeros(20), 3, 0.25, repeats, uneven=True)
    yield {"part": "best", "case": "best of 20, all alike, uneven spreads"} | line
    for seeds in (3, 5):
        line = best_of_bank(20, seeds, repeats)
        yield {"part": "best", "case": "best of 20, seeds of one setting of the bank"} | line


# ---------------------------------------------------------------------------- the command

COLUMNS = (
    *("part", "case", "rows", "most", "repeats", "false", "low", "high", "rate", "seeds"),
    *("for_want_of_rows", "of_all_seeds", "spread_for_.03", "claimed", "expected"),
    "on_fresh_rows",
)
PARTS = {
    "race": (race_lines, 4000),
    "bank": (bank_lines, 2000),
    "gate": (gate_lines, 1000),
    "best": (best_lines, 2000),
}


def summary(lines: Sequence[dict[str, str]]) -> str:
    """The tables of docs/statistics.md."""
    of = {part: [line for line in lines if line["part"] == part] for part in PARTS}

    def false(line: dict[str, str]) -> str:
        ends = [f"{float(line[name]):.3f}" for name in ("false", "low", "high")]
        return f"{ends[0]} [{ends[1]}, {ends[2]}]"

    shares = [f"{share:g}" for share in ROW_SHARES]
    text = [
        "| races with a false verdict; rows have this share of the seeds' variance | most seeds | "
        + " | ".join(shares) + " |",
        "|---|---|" + "---|" * len(shares),
    ]  # fmt: skip
    cases = {}
    planned = [line for line in of["race"] if line["case"].startswith("planned")]
    for line in of["race"]:
        if line not in planned:
            cell = cases.setdefault((line["case"], line["most"]), {})
            cell[f"{float(line['rows']):g}"] = false(line)
    for (case, most), cells in cases.items():
        text.append(f"| {case} | {most} | {' | '.join(cells.get(s, '') for s in shares)} |")
    text += ["", "| a race of the same power | rows | most seeds | called | seeds an arm |",
             "|---|---|---|---|---|"]  # fmt: skip
    for line in planned:
        rate = f"{float(line['rate']):.2f}"
        text.append(
            f"| {line['case']} | {line['rows']} | {line['most']} | {rate} | {line['seeds']} |"
        )
    text += ["", "| of the bank | most seeds | called by the race | seeds an arm | by all seeds |",
             "|---|---|---|---|---|"]  # fmt: skip
    for line in of["bank"]:
        rate = false(line) if line["false"] else f"{float(line['rate']):.3f}"
        each = f"{float(line['of_all_seeds']):.3f}"
        text.append(f"| {line['case']} | {line['most']} | {rate} | {line['seeds']} | {each} |")
    text += ["", "| loops | rows | with seeds | noise was kept | the gain was | seeds a proposal | "
             "a gain of .03 needs a spread of |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    for line in of["gate"]:
        cells = [line[name] for name in ("rate", "seeds", "spread_for_.03")]
        text.append(
            f"| {line['case']} | {line['rows']} | {line['most']} | {false(line)} | "
            f"{' | '.join(cells)} |"
        )
    text += ["", "| settings | seeds | rows | claimed | expected | on fresh rows | missed |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for line in of["best"]:
        cells = [line[name] for name in ("case", "most", "rows", "claimed", "expected")]
        text.append(f"| {' | '.join(cells)} | {line['on_fresh_rows']} | {false(line)} |")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--summary", action="store_true")
    arguments = parser.parse_args()
    if arguments.summary:
        with open(arguments.out, newline="") as file:
            print(summary(list(csv.DictReader(file))))
        return
    lines = []
    for part, (make, repeats) in PARTS.items():
        if arguments.only in (None, part):
            for line in make(arguments.repeats or repeats):
                lines.append(line)
                print(*(f"{v}" for v in line.values()), sep="  ", flush=True)
    if arguments.only is None:
        with open(arguments.out, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)


if __name__ == "__main__":
    sys.exit(main())
