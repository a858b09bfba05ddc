"""power: what a comparison can see, by the test that will be run, before any run is paid for."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tabulate import tabulate

from evaluation import comparisons, planning
from evaluation.stats import group_index
from reports.compare import SCHEMA

# Two runs of one setting often disagree in whether they are right on a tenth to a third of rows.
ASSUMED_DISAGREEMENT = (0.1, 0.2, 0.3)
SEEDS = (3, 4, 5, 10, 20)


@dataclass
class Case:
    """One assumption: the standard deviation of the difference of two arms on one row (or group of
    rows), and the weight of unequal groups, as a share of their number that counts as freedom."""

    words: str
    row_std: float
    freedom_share: float = 1.0

    def design(self, rows: float, seeds: int, settings: "Asked") -> planning.Design:
        return planning.Design(
            seeds=seeds,
            seed_std=settings.seed_std,
            row_variance=self.row_std**2 / rows,
            row_freedom=max(1.0, (rows - 1) * self.freedom_share),
            comparisons=settings.comparisons,
            correlation=settings.correlation,
            weighted=settings.correlation is not None and settings.comparisons > 1,
        )


@dataclass
class Asked:
    """What all tables share."""

    seed_std: float
    comparisons: int
    correlation: float | None
    unit: str
    known_from: int = 0  # degrees of freedom of seed_std, 0 where it is given as the true one

    @property
    def seeds(self) -> tuple[int, ...]:
        return SEEDS if self.seed_std else (1,)

    @property
    def spreads(self) -> tuple[float, float]:
        """What the spread of the seeds may be, where it is estimated."""
        if not self.known_from:
            return self.seed_std, self.seed_std
        return planning.spread_range(self.seed_std, self.known_from)


def report(arguments: argparse.Namespace) -> str | dict[str, Any]:
    """Rows and seeds for `--difference`, and what is detectable with the rows that there are."""
    given = arguments
    _check(given)
    _require_read(given)
    notes: list[str] = []
    unit, known_from, correlation = "rows", 0, None
    seed_std = given.seed_std
    if given.like:
        like = figures_like(given.like, given.metric)
        seed_std, unit, known_from, notes = like.seed_std, like.unit, like.known_from, like.notes
        given.rows = given.rows or like.groups
        cases = [like.case]
    elif given.row_std is not None:
        cases = [Case(f"row std {given.row_std:g}", given.row_std)]
    else:
        cases, notes = _assumed(given)
    if given.paired:
        correlation = given.correlation
        if seed_std == 0:
            raise ValueError("--paired: give --seed-std, for it is seeds that are paired")
    asked = Asked(seed_std, given.comparisons, correlation, unit, known_from)
    tables = []
    if given.difference is not None:
        tables.append(_needed(given, cases, asked))
        if given.rows is not None:
            tables.append(_power(given, cases, asked))
    if given.rows is not None:
        tables.append(_detectable(given.rows, cases, asked))
    many = f"shared by {given.comparisons} comparisons" if given.comparisons > 1 else "alone"
    apart = []
    if given.difference is not None and given.accuracy is not None:
        apart = [_apart(given)]
    foot = f"80 % power, two-sided at 5 % ({many}), both arms on the same rows."
    if seed_std:
        seeds = "paired by seed" if given.paired else "not paired"
        foot += f" Seeds {seeds}, their spread {seed_std:.4g}"
        foot += f" as {known_from + 1} runs show it" if known_from else " as given"
        low, high = asked.spreads
        foot += f": it may be {low:.4g} to {high:.4g}, hence the ranges." if known_from else "."
    if given.json:
        return {
            "schema": SCHEMA,
            "tables": [
                {"what": title, "columns": head, "rows": rows} for title, head, rows in tables
            ],
            "notes": [*notes, *apart, foot],
        }
    lines = [*notes]
    for title, head, rows in tables:
        lines += ["", title, tabulate(rows, head, disable_numparse=True)]
    lines += [text for line in apart for text in ("", line)]
    return "\n".join([*lines, "", foot]).strip()


def _require_read(given: argparse.Namespace) -> None:
    """ValueError for an option that counts for nothing beside, or without, another one."""
    if given.like:
        for name in ("disagreement", "row_std", "seed_std"):
            if getattr(given, name):
                raise ValueError(f"--{name} is read from the runs of --like: give one of the two")
    elif given.metric is not None:
        raise ValueError("--metric is that of the runs of --like")
    if given.row_std is not None and given.disagreement is not None:
        raise ValueError("--row_std is of a loss, --disagreement of accuracy: give one of the two")
    if given.accuracy is not None and (given.like or given.row_std is not None):
        raise ValueError("--accuracy is of assumed rows: --like and --row_std have their own")
    if given.accuracy is not None and given.difference is None:
        raise ValueError("--accuracy is for two sets of rows that show a --difference: give that")
    if given.correlation and not given.paired:
        raise ValueError("--correlation is of seeds that are paired: it needs --paired")


def _check(given: argparse.Namespace) -> None:
    if given.difference is not None and given.difference == 0:
        raise ValueError("--difference 0: no number of rows shows that there is none")
    if given.difference is not None and not math.isfinite(given.difference):
        raise ValueError(f"--difference {given.difference:g}: expected a number")
    for name in ("rows", "row_std", "seed_std"):
        value = getattr(given, name)
        if value is not None and not (
            math.isfinite(value) and (value > 0 or (name == "seed_std" and value == 0))
        ):
            raise ValueError(f"--{name} {value:g}: expected more than 0")
    if given.rows is not None and given.rows < 2:
        raise ValueError(f"--rows {given.rows}: expected 2 or more")
    if given.comparisons < 1:
        raise ValueError(f"--comparisons {given.comparisons}: expected 1 or more")
    if not -1 <= given.correlation < 1:
        raise ValueError(f"--correlation {given.correlation:g}: expected −1 to below 1")
    if given.difference is None and given.rows is None and not given.like:
        raise ValueError("give --difference, --rows, or both")


def _assumed(given: argparse.Namespace) -> tuple[list[Case], list[str]]:
    """Cases of accuracy: the share of rows that one model alone has right."""
    difference, notes = given.difference or 0.0, []
    if given.disagreement is not None:
        shares: tuple[float, ...] | list[float] = (given.disagreement,)
    else:
        notes = ["Not given, so assumed: --disagreement .1, .2 or .3 (--like RUNS reads it)."]
        # two models disagree on more rows than they differ by
        shares = [share for share in ASSUMED_DISAGREEMENT if share > abs(difference)]
        shares = shares or [(1 + abs(difference)) / 2]
    cases = []
    for share in shares:
        if not abs(difference) < share <= 1:
            raise ValueError(
                f"--disagreement {share:g}: two models whose accuracy differs by "
                f"{abs(difference):g} disagree on more rows than that, and on no more than all"
            )
        cases.append(Case(f"{share:.0%} disagree", math.sqrt(share - difference**2)))
    if given.accuracy is not None and not 0 < given.accuracy < 1:
        raise ValueError(f"--accuracy {given.accuracy:g}: a share between 0 and 1")
    return cases, notes


Rows = list[list[str]]


def _table(
    asked: Asked, cases: list[Case], cell: Callable[[Case, int, Asked], Any], show: Callable
) -> tuple[list[str], Rows]:
    """Seeds down, cases across; a range where the spread of the seeds is an estimate."""
    rows = []
    for k in asked.seeds:
        cells = []
        for case in cases:
            both = [cell(case, k, replace(asked, seed_std=std)) for std in asked.spreads]
            texts = list(dict.fromkeys(map(show, both)))
            cells.append(" to ".join(texts))
        rows.append([str(k) if asked.seed_std else "two models", *cells])
    return ["seeds an arm", *(case.words for case in cases)], rows


def _needed(
    given: argparse.Namespace, cases: list[Case], asked: Asked
) -> tuple[str, list[str], Rows]:
    def rows_for(case: Case, k: int, settings: Asked) -> int | None:
        design = case.design(1e9, k, settings)
        return planning.rows_needed(design, given.difference, case.row_std, case.freedom_share)

    def show(count: int | None) -> str:
        return f"{count:,}" if count else "no number suffices"

    head, rows = _table(asked, cases, rows_for, show)
    unit = asked.unit[0].upper() + asked.unit[1:]
    return f"{unit} that show a difference of {abs(given.difference):g}:", head, rows


def _power(
    given: argparse.Namespace, cases: list[Case], asked: Asked
) -> tuple[str, list[str], Rows]:
    def chance(case: Case, k: int, settings: Asked) -> float:
        return planning.power(case.design(given.rows, k, settings), given.difference)

    head, rows = _table(asked, cases, chance, lambda p: f"{p:.2f}")
    title = f"Power to call a difference of {abs(given.difference):g} on {given.rows:,} "
    return f"{title}{asked.unit}:", head, rows


def _detectable(rows: int, cases: list[Case], asked: Asked) -> tuple[str, list[str], Rows]:
    def smallest(case: Case, k: int, settings: Asked) -> float:
        return planning.detectable(case.design(rows, k, settings))

    head, lines = _table(asked, cases, smallest, lambda d: f"{d:.4f}")
    return f"Smallest difference that {rows:,} {asked.unit} show:", head, lines


def _apart(given: argparse.Namespace) -> str:
    other = min(max(given.accuracy + given.difference, 0.0), 1.0)
    spread = given.accuracy * (1 - given.accuracy) + other * (1 - other)
    design = planning.Design(comparisons=given.comparisons)
    alone = planning.rows_needed(design, given.difference, math.sqrt(spread))
    many = f"{alone:,}" if alone else "more than 100 million"
    return f"On two different sets of rows (unpaired): {many} each."


@dataclass
class Like:
    """What earlier runs of one setting show; unit: what their groups of rows are called;
    known_from: degrees of freedom of seed_std; notes: what has to be said of the runs."""

    case: Case
    seed_std: float
    groups: int
    unit: str
    known_from: int
    notes: list[str]


def figures_like(paths: list[str], metric: str | None) -> Like:
    """Of earlier runs of one setting.

    The row std is that of the difference of two of the runs, over all pairs; between seeds of one
    setting it holds no effect, only what rows and chance answers add. ValueError for runs of
    several settings: what these do would be taken for the seeds' spread.
    """
    from reports.arms import Arm, refusal, settings_of, without_repeats
    from reports.folder import load_runs, shared_notes
    from reports.outcomes import notes as notes_on_outcomes

    loaded = without_repeats(load_runs(paths))
    arm = Arm("", loaded)
    if why := refusal([arm]):
        raise ValueError(f"--like: {why}")
    several = len({repr(sorted(settings_of(run).items())) for run in loaded})
    if several > 1:  # also of a folder of seeds
        raise ValueError(
            f"--like: these are runs of {several} settings; give the seeds of one, for what "
            "settings do is no spread of seeds"
        )
    runs = arm.predictions
    if len(runs) < 2:
        notes = [f"{run.path}: {note}" for run in arm.runs for note in run.notes]
        raise ValueError("; ".join(["--like needs two runs with test rows at least", *notes]))
    metric = metric or runs[0].primary
    shared = [name for name in runs[0].statistics if all(name in r.statistics for r in runs)]
    if metric not in shared:
        raise ValueError(f"--metric {metric}: these runs have {', '.join(shared)}")
    index, groups = group_index(runs[0].groups), runs[0].num_groups
    found = [
        comparisons.contrast([[a.influence(metric)], [b.influence(metric)]], [-1.0, 1.0], index)
        for number, a in enumerate(runs)
        for b in runs[number + 1 :]
    ]
    if all(each.problem for each in found):
        raise ValueError(f"--like: no spread is known: {found[0].problem}")
    variance = sum(each.row_variance for each in found) / len(found)
    values = [rows.value(metric) for rows in runs]
    enough = len(runs) >= comparisons.MIN_SEEDS
    seed_std = planning.standard_deviation(values) if enough else 0.0
    freedom = sum(each.row_freedom for each in found) / len(found)
    share = min(1.0, freedom / max(groups - 1, 1))
    unit = "rows" if groups == len(runs[0]) else "groups of rows"
    case = Case(f"{metric} as in {len(runs)} runs", math.sqrt(variance * groups), share)
    notes = [*notes_on_outcomes(loaded), *shared_notes(loaded)]
    if len(runs) < len(loaded):
        notes.append(f"note: the figures are those of {len(runs)} of {len(loaded)} runs")
    return Like(case, seed_std, groups, unit, len(runs) - 1 if seed_std else 0, notes)
