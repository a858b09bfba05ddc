"""effects: which of the settings between A and B did it, over a grid of settings × seeds.

    found = build_effects(["results/sweeps/explain_a_b"])
    found.lines, found.sentences, found.picture()

A is the setting of the plan's first arm, B the one in which all differs. A line a setting, a line a
pair of settings, and where only the ends were run, the remainder: contrasts of one engine
(`comparisons.contrast`), whose weights `evaluation.factorial` has.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from evaluation import comparisons, factorial
from evaluation.factorial import Weights
from evaluation.metrics import digits_of, with_interval
from evaluation.stats import group_index
from reports import packed, plots
from reports.arms import Arm, environment_notes, refusal, settings_of, show, without_repeats
from reports.compare import (
    SCHEMA,
    Comparison,
    caveats,
    difference_text,
    margin_notes,
    mean_influence,
    metrics_of,
    require_margin,
    share_error,
    show_p,
)
from reports.folder import RunFolder, load_run, load_runs, number, shared_notes
from reports.outcomes import ByRanks, by_ranks, has_test_rows, lost_runs
from reports.outcomes import notes as notes_on_outcomes
from reports.plan import Plan, plan_of
from reports.predictions import Predictions, direction

MOST_FACTORS = 16
SETTING, PAIR, REST, REMAINDER = "setting", "together", "with the rest", "remainder"


# ----------------------------------------------------------------------------- the grid


@dataclass
class Factor:
    """What changes from A to B as one: a setting, or several that change together."""

    a: dict[str, str]
    b: dict[str, str]

    @property
    def label(self) -> str:
        return " + ".join(self.a)

    @property
    def in_a_product(self) -> str:
        return f"({self.label})" if len(self.a) > 1 else self.label

    @property
    def change(self) -> str:
        """batch 32 → 8"""
        return ", ".join(f"{name} {self.a[name]} → {self.b[name]}" for name in self.a)

    def at(self, is_b: bool) -> str:
        """batch=8"""
        return ", ".join(f"{n}={value}" for n, value in (self.b if is_b else self.a).items())


@dataclass
class Grid:
    """The runs of each point (`evaluation.factorial`); seeds: those that all points have, where
    contrasts are blocked by them, else none."""

    factors: list[Factor]
    points: dict[int, Arm]
    seeds: list[Any]
    is_full: bool
    notes: list[str] = field(default_factory=list)

    @property
    def k(self) -> int:
        return len(self.factors)

    @property
    def runs(self) -> list[RunFolder]:
        return [run for arm in self.points.values() for run in arm.runs]

    def name(self, point: int) -> str:
        """prompt=true, batch=32"""
        return point_name(self.factors, point)

    def rows(self, point: int) -> list[Predictions]:
        """In the order of the seeds."""
        arm = self.points[point]
        pairs = list(zip(arm.tested, arm.predictions, strict=True))
        if self.seeds:
            by_seed = {run.seed: rows for run, rows in pairs}
            return [by_seed[seed] for seed in self.seeds if seed in by_seed]
        return [rows for _, rows in sorted(pairs, key=lambda pair: show(pair[0].seed))]


def point_name(factors: Sequence[Factor], point: int) -> str:
    return ", ".join(factor.at(bool(point >> i & 1)) for i, factor in enumerate(factors))


def read_grid(paths: Sequence[str], levels: dict[str, list[str]], plan: Plan | None = None) -> Grid:
    """ValueError where the runs are no such grid, with what is missing.

    levels: setting → [from, to], of the plan's first arm or else from the lower to the higher.
    """
    runs = load_runs(paths)
    plan = plan or plan_of(runs)
    notes = []
    raising = {path.resolve() for paths in raising_runs(plan).values() for path in paths}
    kept = []
    for run in runs:
        if run.path.resolve() in raising:
            notes.append(f"note: {run.path} raised the question: not counted")
        elif has_test_rows(run) or lost_runs([run]):
            kept.append(run)
        else:
            notes.append(f"note: {run.path} has no test rows yet: not counted")
    if not kept:
        raise ValueError("\n".join([*notes, "none of these runs has test rows"]))
    texts = {id(run): {n: shown(v) for n, v in settings_of(run).items()} for run in kept}
    for name, ends in levels.items():
        known = {texts[id(run)].get(name, "-") for run in kept}
        if missing := [end for end in ends if end not in known]:
            there = ", ".join(sorted(known, key=_order))
            raise ValueError(f"--levels {name}: no run has {missing[0]}, they have {there}")
        others = [run for run in kept if texts[id(run)].get(name, "-") not in ends]
        kept = [run for run in kept if run not in others]
        if others:
            notes.append(f"note: {len(others)} runs with another {name} are left out")
    names = dict.fromkeys(name for run in kept for name in texts[id(run)])
    values = {name: {texts[id(run)].get(name, "-") for run in kept} for name in names}
    values = {name: found for name, found in values.items() if len(found) > 1}
    if not values:
        raise ValueError("these runs differ in no setting: what they differ by is noise")
    first = _first_arm(kept, plan, texts)
    factors: dict[tuple[bool, ...], Factor] = {}
    for name, found in values.items():
        if len(found) > 2:
            each = ", ".join(sorted(found, key=_order))
            raise ValueError(
                f"{name} has {len(found)} values ({each}): say from which to which, "
                f"--levels {name}=FROM,TO"
            )
        low, high = levels.get(name) or sorted(found, key=_order)
        if name not in levels and first and first.get(name, "-") == high:
            low, high = high, low
        column = tuple(texts[id(run)].get(name, "-") == high for run in kept)
        if (other := tuple(not bit for bit in column)) in factors:
            column, low, high = other, high, low
        factor = factors.setdefault(column, Factor({}, {}))
        factor.a[name], factor.b[name] = low, high
    if len(factors) > MOST_FACTORS:
        raise ValueError(f"{len(factors)} settings differ: {MOST_FACTORS} at most")
    points: dict[int, list[RunFolder]] = {}
    for place, run in enumerate(kept):
        point = sum(column[place] << i for i, column in enumerate(factors))
        points.setdefault(point, []).append(run)
    return _whole_grid(list(factors.values()), points, notes)


def shown(value: Any) -> str:
    """As on a command line, a number as short as it can be: true, 0.0001."""
    return str(value).lower() if isinstance(value, bool) else show(value)


def _order(text: str) -> tuple:
    """Numbers by size, false before true."""
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text.lower()


def _first_arm(
    runs: Sequence[RunFolder], plan: Plan, texts: dict[int, dict[str, str]]
) -> dict[str, str]:
    """The settings of the plan's first arm; {} without one."""
    arms = plan.content.get("arms")
    label = next(iter(arms), None) if isinstance(arms, dict) else None
    return next((texts[id(run)] for run in runs if run.path.parent.name == str(label)), {})


def _whole_grid(
    factors: list[Factor], points: dict[int, list[RunFolder]], notes: list[str]
) -> Grid:
    k = len(factors)
    full, ends = factorial.full_points(k), factorial.end_points(k)
    is_full = points.keys() >= set(full)
    if not is_full and not points.keys() >= set(ends):
        missing = [point_name(factors, p) for p in ends if p not in points]
        raise ValueError(
            "\n".join(
                [
                    *notes,
                    f"no whole grid of {' × '.join(f.label for f in factors)}: "
                    f"no finished run with {'; nor with '.join(missing)}",
                ]
            )  # fmt: skip
        )
    wanted = full if is_full else ends
    if extra := len(points.keys() - set(wanted)):
        notes.append(f"note: {extra} further points of the grid are not used: it is not whole")
    arms = {p: _usable(Arm(point_name(factors, p), without_repeats(points[p]))) for p in wanted}
    unread = [run for p in wanted for run in without_repeats(points[p]) if run not in arms[p].runs]
    notes += [note for note in shared_notes(unread) if note not in notes]
    seeds = [{run.seed for run in arm.runs} for arm in arms.values()]
    shared = set.intersection(*seeds)
    is_same = all(each == shared for each in seeds)
    if not is_same and len(shared) < comparisons.MIN_SEEDS:
        if shared:
            notes.append("note: too few seeds are at every point: seeds are not blocked")
        return Grid(factors, arms, [], is_full, notes)
    if dropped := sorted(set.union(*seeds) - shared, key=show):
        names = ", ".join(map(show, dropped))
        notes.append(f"note: seeds that are not at every point are left out: {names}")
        arms = {
            point: Arm(arm.label, [run for run in arm.runs if run.seed in shared])
            for point, arm in arms.items()
        }
    return Grid(factors, arms, sorted(shared, key=_seed_order), is_full, notes)


def _usable(arm: Arm) -> Arm:
    """Without runs whose rows cannot be read. ValueError where none is left."""
    lost = {run.path for run in lost_runs(arm.runs)}
    there = {run.path for run in arm.tested} | lost
    if not there:
        notes = [f"{run.path}: {note}" for run in arm.runs for note in run.notes]
        raise ValueError("; ".join([f"{arm.label} has no test rows", *notes]))
    return Arm(arm.label, [run for run in arm.runs if run.path in there])


def _seed_order(seed: Any) -> tuple:
    return _order(show(seed))


# ---------------------------------------------------------------------------- the lines


@dataclass
class Effect(Comparison):
    """A contrast of points: of a setting, of two together, of the remainder, or of all."""

    kind: str = SETTING
    factors: tuple[Factor, ...] = ()
    added: comparisons.Difference | None = None
    taken: comparisons.Difference | None = None

    @property
    def label(self) -> str:
        if self.kind == PAIR:
            return " × ".join(factor.in_a_product for factor in self.factors)
        if self.kind == REST:
            return f"{self.factors[0].in_a_product} × the rest"
        return self.factors[0].label if self.factors else self.kind

    @property
    def verdict(self) -> str:
        decision = self.decision
        text = decision if self.over_seeds else f"{decision} on these rows"
        text += f" ({self.difference.problem})" if self.difference.problem else ""
        return text + (f", within {self.margin:g}" if decision == "the same" else "")

    @property
    def sentence(self) -> str:
        what = {
            SETTING: f"{', '.join(f.change for f in self.factors)}",
            PAIR: f"{self.label}, what they do together beyond what each does alone",
            REST: f"{self.label}, what it does more among all other changes than alone",
            REMAINDER: "the remainder, which the settings do together and the ends cannot divide",
        }.get(self.kind, self.kind)
        text = f"{what}: {self.metric} {difference_text(self)}, p {show_p(self.p)}: {self.verdict}."
        return " ".join(part for part in (text, self.still_possible, self.needed) if part)

    def as_json(self) -> dict[str, Any]:
        found = super().as_json()
        for name in ("arm", "baseline", "value", "baseline_value"):
            del found[name]
        own = {"name": self.label, "kind": self.kind}
        for name in ("added", "taken"):
            part = getattr(self, name)
            own[name] = None if part is None else part.value
        return own | found


Line = Effect | ByRanks


@dataclass
class Effects:
    """All that there is to say of a grid."""

    grid: Grid
    metric: str
    plan: Plan
    lines: list[Line]
    total: Line
    margin_given: bool
    notes: list[str] = field(default_factory=list)

    # -- in words

    @property
    def settings(self) -> list[Line]:
        return self.lines[: self.grid.k]

    @property
    def called(self) -> list[int]:
        """The settings that a verdict says did something."""
        return [i for i, line in enumerate(self.settings) if is_called(line)]

    @property
    def interactions(self) -> list[Effect]:
        return [x for x in self.lines if isinstance(x, Effect) and x.kind in (PAIR, REST)]

    @property
    def sentences(self) -> list[str]:
        """What one would publish."""
        grid = self.grid
        ends = f"From A ({grid.name(0)}) to B ({grid.name(2**grid.k - 1)})"
        if isinstance(self.total, ByRanks):
            return [f"{ends}: {self.total.sentence}", self._who_did_it(), *self._by_ranks()]
        seeds = self.total.num_seeds
        over = f"over {seeds} seeds" if self.total.over_seeds else "of these models on these rows"
        blocked = ", blocked by seed" if grid.seeds and self.total.over_seeds else ""
        what = f"{ends} {self.metric} changes by {difference_text(self.total)} ({over}{blocked})."
        return [what, self._who_did_it(), *self._interactions()]

    def _who_did_it(self) -> str:
        parts = [f"{self.name_of(i)} ({difference_text(self.settings[i])}, "
                 f"{_word(self.settings[i])})" for i in self.called]  # fmt: skip
        others = [i for i in range(self.grid.k) if i not in self.called]
        if not parts:
            return "None of the settings can be told to have done it."
        text = f"{' and '.join(parts)} did it"
        if others:
            said = [f"{self.name_of(i)} {difference_text(self.settings[i])}, "
                    f"{_word(self.settings[i])}" for i in others]  # fmt: skip
            text += f"; {'; '.join(said)}"
        return text + "."

    def name_of(self, i: int) -> str:
        return self.grid.factors[i].change

    def _by_ranks(self) -> list[str]:
        return [
            "A seed that diverged is an outcome and has no figure: settings are judged by ranks, "
            "and neither what they do together nor bars that add up can be said."
        ]

    def _interactions(self) -> list[str]:
        found = []
        for line in self.interactions:
            if not is_called(line):
                continue
            if line.kind == REST:
                found.append(
                    f"{line.factors[0].label} does {line.added.value:+.4f} alone and "
                    f"{line.taken.value:+.4f} among all other changes: it matters with others, "
                    "which of them these ends cannot say (--full can)."
                )
            else:
                found.append(self._pair_in_words(line))
        open_pairs = [x.label for x in self.interactions if x.decision == "undecided"]
        if open_pairs and self.grid.k > 1:
            many = "; ".join(open_pairs)
            text = f"Whether settings do more together than apart is undecided ({many})"
            if self.called:
                text += ": what they do together would be in equal parts in each"
            found.append(text + ".")
        return found

    def _pair_in_words(self, line: Effect) -> str:
        i, j = (self.grid.factors.index(factor) for factor in line.factors)
        both = f"{line.factors[0].label} and {line.factors[1].label}"
        size = f"{both} together: {difference_text(line)} beyond what each does alone, half of it "
        size += "in the contribution of each. "
        readings = [self._alone_in_words(line, *pair) for pair in ((i, j), (j, i))]
        only = [text for text, is_only in readings if is_only]
        if len(only) == 2:
            return f"{size}They matter only together: {only[0]}; {only[1]}."
        return f"{size}{(only or [readings[0][0]])[0]}."

    def _alone_in_words(self, line: Effect, i: int, j: int) -> tuple[str, bool]:
        """(what setting i does with and without j, whether it is seen on one side alone)."""
        k, level = self.grid.k, 1 - line.level / 2
        a, b = (contrast(self.grid, self.metric, factorial.where(i, j, v, k)) for v in (0, 1))
        what, other = self.grid.factors[i].label, self.grid.factors[j]
        seen = [not low <= 0 <= high for low, high in (a.interval(level), b.interval(level))]
        texts = [
            f"{with_interval(d.value, low, high, '+')} with {other.at(is_b)}"
            for is_b, d in ((False, a), (True, b))
            for low, high in [d.interval(level)]
        ]
        if seen == [False, True]:
            return f"{what} matters only with {other.at(True)} ({texts[1]}; {texts[0]})", True
        if seen == [True, False]:
            return f"{what} matters only with {other.at(False)} ({texts[0]}; {texts[1]})", True
        turns = all(seen) and a.value * b.value < 0
        word = "the other way round" if turns else "more or less"
        return f"{what} works {word} by {other.label}: {texts[0]}; {texts[1]}", False

    # -- the picture

    def picture(self) -> plots.Picture | None:
        """From A to B; None where a seed diverged, as there is no mean to draw."""
        if isinstance(self.total, ByRanks):
            return None
        sign = direction(self.metric)
        bars = []
        for line in self.lines:
            if line.kind in (SETTING, REMAINDER):
                value, (low, high) = line.difference.value, line.interval
                good = "none"
                if is_called(line):
                    good = "better" if (value > 0) == (sign >= 0) else "worse"
                bars.append(
                    plots.Bar(
                        line.label,
                        value,
                        None if math.isnan(low) else (low, high),
                        good,
                        line.added.value if line.added is not None and self.grid.k > 1 else None,
                    )
                )
        start, end = self.total.difference.a, self.total.difference.b
        return plots.waterfall("effects/waterfall", self.metric, start, bars, end)

    # -- as text and for programs

    def as_json(self) -> dict[str, Any]:
        grid = self.grid
        return {
            "schema": SCHEMA,
            "metric": self.metric,
            "from": {n: v for factor in grid.factors for n, v in factor.a.items()},
            "to": {n: v for factor in grid.factors for n, v in factor.b.items()},
            "design": "full" if grid.is_full else "ends",
            "seeds": grid.seeds,
            "blocked": bool(grid.seeds),
            "points": [
                {
                    "settings": grid.name(point),
                    "runs": [str(run.path) for run in arm.runs],
                    "seeds": [run.seed for run in arm.runs],
                    "diverged": len(lost_runs(arm.runs)),
                    "value": _mean(grid, point, self.metric),
                }
                for point, arm in grid.points.items()
            ],
            "total": {k: v for k, v in self.total.as_json().items() if k not in ("kind", "name")},
            "effects": [line.as_json() | {"name": name_of(line)} for line in self.lines],
            "sentences": self.sentences,
            "raised_by": raised_values(self.plan, self.metric),
            "notes": [*self.notes, *self.said_below],
        }

    def as_text(self, style: str = "simple") -> str:
        rows = []
        for line in self.lines:
            parts = ["", ""]
            if isinstance(line, Effect) and line.added is not None and self.grid.k > 1:
                digits = digits_of(*line.interval)
                parts = [f"{part.value:+.{digits}f}" for part in (line.added, line.taken)]
            rows.append([name_of(line), difference_text(line), show_p(line.p), _word(line), *parts])
        total = difference_text(self.total)
        rows.append(["all: A → B", total, "", "(95 %, alone)", "", ""])
        head = ["", f"contribution to {self.metric}", "p", "verdict", "added to A", "taken from B"]
        points = [
            [
                self.grid.name(point) + {0: "  (A)", 2**self.grid.k - 1: "  (B)"}.get(point, ""),
                _figure(self.grid, point, self.metric),
            ]
            for point in self.grid.points
        ]
        return "\n".join(
            [
                *self.notes,
                *_raised_text(self.plan, self.metric),
                *([""] if self.notes or raising_runs(self.plan) else []),
                tabulate(points, ["point", self.metric], tablefmt=style, disable_numparse=True),
                "",
                tabulate(rows, head, tablefmt=style, disable_numparse=True),
                "",
                *self.sentences,
                "",
                *self.details,
            ]
        ).strip()

    @property
    def details(self) -> list[str]:
        """Of each undecided setting what is still possible, and what has to be said below."""
        lines = [
            line.sentence
            for line in self.settings
            if line.decision == "undecided" or isinstance(line, ByRanks)
        ]
        return [*lines, *self.said_below]

    @property
    def said_below(self) -> list[str]:
        return [*caveats(self.lines), *margin_notes(self.lines, self.plan)]


def is_called(line: Line) -> bool:
    return line.decision.startswith(("better", "worse", "higher", "lower"))


def name_of(line: Line) -> str:
    return line.label if isinstance(line, Effect) else line.arm.factor.label


def _word(line: Line) -> str:
    return line.verdict if isinstance(line, Effect) else f"{line.decision}, by ranks"


def contrast(grid: Grid, metric: str, weights: Weights) -> comparisons.Difference:
    """Σ weight × mean of a point, by the engine of all comparisons; below three seeds the models'
    means are compared, on these rows."""
    cells = [[rows.influence(metric) for rows in grid.rows(point)] for point in weights]
    if min(map(len, cells)) < comparisons.MIN_SEEDS:
        cells = [[mean_influence(cell)] for cell in cells]
    index = group_index(grid.rows(0)[0].groups)
    paired = bool(grid.seeds) and len(cells[0]) > 1
    return comparisons.contrast(cells, list(weights.values()), index, paired, weighted=True)


def build_effects(
    paths: Sequence[str],
    metric: str | None = None,
    margin: float | None = None,
    levels: dict[str, list[str]] | None = None,
) -> Effects:
    """ValueError where the runs are no grid, or cannot be compared row by row."""
    require_margin(margin)
    plan = plan_of(load_runs(paths))
    grid = read_grid(paths, levels or {}, plan)
    arms = list(grid.points.values())
    if any(rows.num_groups < 2 for arm in arms for rows in arm.predictions):
        raise ValueError("all test rows are in one group: how groups differ cannot be known")
    if why := refusal(arms):
        raise ValueError(f"not compared: {why}")
    given = margin is not None
    margin = margin if given else plan.margin
    metric = metrics_of(arms, [metric] if metric else None)[0][0]
    notes = [*grid.notes, *notes_on_outcomes(grid.runs), *shared_notes(grid.runs), *plan.notes]
    notes += environment_notes(arms)
    if lost_runs(grid.runs):
        lines, total = _lines_by_ranks(grid, metric)
    else:
        lines, total = _lines(grid, metric)
    share_error(lines, margin)
    return Effects(grid, metric, plan, lines, total, given, notes)


def _lines(grid: Grid, metric: str) -> tuple[list[Line], Effect]:
    k = grid.k

    def line(kind: str, weights: Weights, *of: int, judged: bool = True) -> Effect:
        difference = contrast(grid, metric, weights)
        seeds = min(len(grid.rows(point)) for point in weights)
        over_seeds = seeds >= comparisons.MIN_SEEDS
        base = grid.points[0]
        return Effect(
            metric,
            *(grid.points[2**k - 1], base, difference, seeds if over_seeds else 1),
            *(base.predictions[0].num_groups, True, over_seeds and bool(grid.seeds)),
            judged=judged,
            kind=kind,
            factors=tuple(grid.factors[i] for i in of),
        )

    of_setting = factorial.contribution if grid.is_full else factorial.contribution_of_ends
    lines = []
    for i in range(k):
        each = line(SETTING, of_setting(i, k), i)
        each.added = contrast(grid, metric, factorial.added(i, k))
        each.taken = contrast(grid, metric, factorial.taken(i, k))
        lines.append(each)
    if grid.is_full:
        pairs = [(i, j) for i in range(k) for j in range(i + 1, k)]
        lines += [line(PAIR, factorial.together(i, j, k), i, j) for i, j in pairs]
    else:
        rests = [line(REST, factorial.with_the_rest(i, k), i) for i in range(k)]
        for each, setting in zip(rests, lines[:k], strict=True):
            each.added, each.taken = setting.added, setting.taken
        lines += [*rests, line(REMAINDER, factorial.remainder(k))]
    return lines, line("all", factorial.whole_difference(k), judged=False)


@dataclass
class _Side(Arm):
    """All runs in which a factor has one of its values."""

    factor: Factor | None = None


def _lines_by_ranks(grid: Grid, metric: str) -> tuple[list[Line], Line]:
    """What diverged is the worst: each setting's runs with B's value against those with A's."""
    higher = direction(metric) >= 0

    def side(factor: Factor | None, label: str, points: Sequence[int]) -> _Side:
        runs = [run for point in points for run in grid.points[point].runs]
        return _Side(label, runs, factor)

    lines: list[Line] = []
    for i, factor in enumerate(grid.factors):
        a, b = (
            side(factor, factor.at(bool(v)), [p for p in grid.points if p >> i & 1 == v])
            for v in (0, 1)
        )
        lines.append(by_ranks(metric, higher, a, b))
    a, b = side(None, "A", [0]), side(None, "B", [2**grid.k - 1])
    found = by_ranks(metric, higher, a, b, judged=False)
    return lines, found or _lines(grid_of_ends(grid), metric)[1]


def grid_of_ends(grid: Grid) -> Grid:
    """A and B alone, as one change of all settings."""
    factor = Factor(
        {n: v for f in grid.factors for n, v in f.a.items()},
        {n: v for f in grid.factors for n, v in f.b.items()},
    )
    points = {0: grid.points[0], 1: grid.points[2**grid.k - 1]}
    return Grid([factor], points, grid.seeds, True)


def _mean(grid: Grid, point: int, metric: str) -> float | None:
    values = [rows.value(metric) for rows in grid.rows(point)]
    return sum(values) / len(values) if values else None


def _figure(grid: Grid, point: int, metric: str) -> str:
    mean, runs = _mean(grid, point, metric), grid.points[point].runs
    lost = len(lost_runs(runs))
    text = "" if mean is None else f"{mean:.4f} ({len(runs) - lost} seeds)"
    return ", ".join(filter(None, (text, f"{lost} diverged" if lost else "")))


# ------------------------------------------------------------- the runs that raised the question


def raising_runs(plan: Plan) -> dict[str, list[Path]]:
    """{"a": [run …], "b": …} of the plan of a sweep that explains them."""
    asked = plan.content.get("explain")
    if not isinstance(asked, dict):
        return {}
    return {
        end: [Path(str(path)) for path in asked[end]]
        for end in ("a", "b")
        if isinstance(asked.get(end), list)
    }


def raised_values(plan: Plan, metric: str) -> dict[str, dict[str, float | None]]:
    """Their figures as their metrics.json has them."""
    return {
        end: {str(path): number(_metrics(path).get(metric)) for path in paths}
        for end, paths in raising_runs(plan).items()
    }


def _metrics(path: Path) -> dict[str, Any]:
    try:
        return load_run(path).metrics
    except ValueError:
        return {}


def _raised_text(plan: Plan, metric: str) -> list[str]:
    lines = []
    for end, values in raised_values(plan, metric).items():
        for path, value in values.items():
            figure = "" if value is None else f": {metric} {value:.4f}"
            lines.append(f"raised the question as {end.upper()}, not counted: {path}{figure}")
    return lines


def parse_levels(words: Sequence[str]) -> dict[str, list[str]]:
    """["lr=1e-5,5e-5"] → {"lr": ["1e-05", "5e-05"]}. ValueError for anything else."""
    levels: dict[str, list[str]] = {}
    for word in words:
        name, _, text = word.removeprefix("--").partition("=")
        ends = [_as_shown(end.strip()) for end in text.split(",")]
        if len(ends) != 2 or not all([name, *ends]) or ends[0] == ends[1]:
            raise ValueError(f"--levels {word}: expected NAME=FROM,TO")
        levels[name.replace("-", "_")] = ends
    return levels


def _as_shown(text: str) -> str:
    try:
        return shown(float(text))
    except ValueError:
        return text


def report(
    paths: Sequence[str],
    metric: str | None,
    margin: float | None,
    levels: dict[str, list[str]],
    picture: Path | None,
    style: str = "simple",
    as_json: bool = False,
) -> str | dict[str, Any]:
    """The whole answer; the picture is written beside the runs, or to `picture`."""
    found = build_effects(paths, metric, margin, levels)
    if picture is not None:
        packed.require_kind(picture, ".png")
    drawn = found.picture()
    where = picture or (Path(paths[0]) / "effects.png" if len(paths) == 1 else None)
    written = ""
    if drawn is not None and where is not None:
        try:
            where.write_bytes(drawn.png())
            written = str(where)
        except OSError as error:
            if picture is not None:
                raise
            found.notes.append(f"note: no picture: {error}")
    if as_json:
        return found.as_json() | {"picture": written or None}
    text = found.as_text(style)
    return f"{text}\n\npicture: {written}" if written else text
