"""compare: what differs between runs, and whether the difference in their figures is noise.

Arms are compared with the first one. An arm is one run, or several seeds of the same settings; with
--group-by the runs of a grid that share a setting, the other settings being blocked: like is
compared with like, and what they do is no noise.
"""

import itertools
import math
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from tabulate import tabulate

from evaluation import comparisons, planning, sequential
from evaluation.metrics import digits_of, doubtful_groups, interval_facts, with_interval
from evaluation.stats import (
    Influence,
    Interval,
    group_index,
    interval_of,
    mean_interval,
    wilson_interval,
)
from reports.arms import Arm, build_arms, differences, refusal, settings_of, show
from reports.folder import shared_notes
from reports.outcomes import ByRanks, by_ranks, lost_runs
from reports.outcomes import notes as notes_on_outcomes
from reports.plan import Plan, plan_of
from reports.predictions import Predictions, direction
from reports.published import sentences

SCHEMA = 1  # of --json: docs/statistics.md
MOST_NAMED = 12  # settings in a sentence


# ------------------------------------------------------------------------ comparisons


@dataclass
class Comparison:
    """One metric of one arm against another, which is the first or the one before.

    level: of its test and its interval, once corrected for being one of several; p: corrected in
    the same way; judged: it carries a verdict, others are shown beside it.
    """

    metric: str
    arm: Arm
    baseline: Arm
    difference: comparisons.Difference
    num_seeds: int  # of the smallest cell, over all blocks
    num_groups: int
    paired_rows: bool
    paired_seeds: bool = False
    pairs_missing: bool = False  # the plan pairs seeds, and the arms have others
    blocks: tuple[str, ...] = ()
    judged: bool = True
    level: float = comparisons.ALPHA
    p: float = math.nan
    family: int = 1
    margin: float | None = None
    race: int = 0  # the most seeds of the race that it belongs to
    looks: Sequence[int] = ()  # with how many seeds it was looked at, where that was not planned

    @property
    def over_seeds(self) -> bool:
        return self.num_seeds >= comparisons.MIN_SEEDS

    @property
    def error_rate(self) -> float:
        """How often such a comparison is wrong, after these looks; ALPHA where looks are none."""
        if len(self.looks) < 2:
            return comparisons.ALPHA
        return sequential.error_rate(self.looks, self.paired_seeds)

    @cached_property
    def interval(self) -> tuple[float, float]:
        return self.difference.interval(1 - self.level)

    @property
    def decision(self) -> str:
        """better, worse (for a figure of no known direction: higher, lower), the same, undecided;
        perhaps `, by less than` the margin."""
        sign = direction(self.metric)
        word = comparisons.verdict(*self.interval, sign >= 0, self.margin)
        if sign == 0:
            word = word.replace("better", "higher").replace("worse", "lower")
        return word

    @property
    def verdict(self) -> str:
        """In words: over seeds of the arm, else of these models on these rows."""
        decision, problem = self.decision, self.difference.problem
        a, b = self.baseline.label, self.arm.label
        called = re.match("better|worse|higher|lower", decision)
        if self.over_seeds:
            words = f"{b} is {decision}" if called else decision
        else:
            rows = "on these rows" if self.paired_rows else "on their own rows (unpaired)"
            words = f"{rows} {b} is {decision} than {a}" if called else f"{decision} {rows}"
            words = words.replace(f", by less than {self.margin or 0:g} than {a}",
                                  f" than {a}, by less than {self.margin or 0:g}")  # fmt: skip
            if not called and decision == "the same":
                words = f"{rows} they are the same"
        if problem:
            words += f" ({problem})"
        if decision == "the same":
            words += f", within {self.margin:g}"
        return words

    @property
    def sentence(self) -> str:
        d = self.difference
        of = f"{self.metric}, {self.arm.label} against {self.baseline.label}"
        within = f" (in each of {len(self.blocks)} blocks: {'; '.join(self.blocks)})"
        of += within if len(self.blocks) > 1 else ""
        figure = difference_text(self)
        text = f"{of}: {figure}, p {show_p(self.p)}: {self.verdict}."
        if not math.isnan(d.correlation):
            text += f" Paired by seed, r {d.correlation:+.2f} over {self.num_seeds} seeds."
        if self.pairs_missing:
            text += " Not paired by seed as planned: the arms have other seeds."
        return " ".join(p for p in (text, self.still_possible, self.needed, self.looked) if p)

    @property
    def looked(self) -> str:
        """What looks at fewer seeds mean for the verdict."""
        if self.race:
            return f"A look of a race, with {self.num_seeds} of at most {self.race} seeds."
        if len(self.looks) < 2:
            return ""
        *first, last = self.looks
        return (
            f"Looked {len(self.looks)} times, with {', '.join(map(str, first))} and {last} seeds "
            f"an arm, without a plan for it: the true error rate is about {self.error_rate:.0%}, "
            f"not {comparisons.ALPHA:.0%}."
        )

    @property
    def still_possible(self) -> str:
        """Of an undecided comparison without a margin: what it excludes."""
        low, high = self.interval
        if self.decision != "undecided" or math.isnan(low):
            return ""
        sign = direction(self.metric)
        up, down = ("better", "worse") if sign >= 0 else ("worse", "better")
        if sign == 0:
            up, down = "higher", "lower"
        digits = digits_of(low, high)
        parts = [f"{up} by up to {high:.{digits}f}", f"{down} by up to {-low:.{digits}f}"]
        return f"Still possible: {' or '.join(sorted(parts))}."

    @property
    def design(self) -> planning.Design:
        """This comparison as planning takes it."""
        d = self.difference
        if not d.seed_parts:
            return planning.Design(
                row_variance=d.row_variance,
                row_freedom=max(d.row_freedom, 1.0),
                comparisons=self.family,
            )
        # a part is w² s²/k of each cell, the sum over cells 2 s²/k if there were but two
        seeds = self.num_seeds
        std = math.sqrt(sum(part for part, _ in d.seed_parts) * seeds / 2)
        return planning.Design(
            seeds=seeds,
            seed_std=std,
            row_variance=d.row_variance,
            row_freedom=max(d.row_freedom, 1.0),
            comparisons=self.family,
            correlation=0.0 if self.paired_seeds else None,
            weighted=d.weighted,
        )

    @property
    def needed(self) -> str:
        """Of an undecided comparison: what this design can see, and what a margin would take. Of
        the difference that was seen it says nothing: that is not the true one."""
        if self.race or self.decision != "undecided" or math.isnan(self.difference.error):
            return ""
        design = self.design
        unit = "rows" if self.num_groups == len(self.baseline.predictions[0]) else "groups of rows"
        here = f"{self.num_groups:,} {unit}"
        if not design.seed_std:
            if self.difference.seed_parts:
                return ""
            seen = planning.detectable(design)
            text = f"Two such models on {here}: a true difference of {seen:.2g} is called in 4 of 5"
            if self.margin:
                row_std = math.sqrt(design.row_variance * self.num_groups)
                rows = planning.rows_needed(design, self.margin, row_std)
                many = f"{rows:,}" if rows else "more than 100 million"
                text += f", one of {self.margin:g} with {many} {unit}"
            return text + "."
        freedom = sum(k for _, k in self.difference.seed_parts)
        spreads = planning.spread_range(design.seed_std, freedom)
        small, large = (planning.detectable(_with_spread(design, std)) for std in spreads)
        text = (
            f"{design.seeds} seeds an arm on {here}: a true difference of {small:.2g} to "
            f"{large:.2g} is called in 4 of 5 (a range, for {design.seeds} seeds hardly show "
            "their spread)"
        )
        if self.margin:
            seeds = [
                planning.seeds_needed(_with_spread(design, std), self.margin) for std in spreads
            ]
            few, many = (f"{n:,}" if n else "no number of" for n in seeds)
            text += f", one of {self.margin:g} with " + (
                f"{few} seeds" if few == many else f"{few} to {many} seeds"
            )
        return text + "."

    def as_json(self) -> dict[str, Any]:
        low, high = self.interval
        d = self.difference
        decision, _, small = self.decision.partition(", by less than")
        return {
            **{"metric": self.metric, "arm": self.arm.label, "baseline": self.baseline.label},
            **{"value": d.b, "baseline_value": d.a, "difference": d.value},
            **{"low": _finite(low), "high": _finite(high), "level": 1 - self.level},
            **{"judged": self.judged, "p": _finite(self.p) if self.judged else None},
            "verdict": decision if self.judged else None,
            "by_less_than_margin": bool(small),
            **{"margin": self.margin, "seeds": self.num_seeds, "groups": self.num_groups},
            **{"over_seeds": self.over_seeds, "paired_rows": self.paired_rows},
            **{"paired_seeds": self.paired_seeds, "correlation": _finite(d.correlation)},
            **{"blocks": list(self.blocks), "degrees_of_freedom": _finite(d.freedom)},
            **{"race": self.race or None, "looks": list(self.looks)},
            "error_rate": round(self.error_rate, 3),
            **{"no_interval": d.problem or None, "sentence": self.sentence if self.judged else ""},
        }


def _with_spread(design: planning.Design, std: float) -> planning.Design:
    return replace(design, seed_std=std)


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def show_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def compare(
    arms: Sequence[Arm],
    names: Sequence[str] | None = None,
    paired: bool = True,
    previous: bool = False,
    margin: float | None = None,
    by: Sequence[str] | None = None,
    plan: Plan | None = None,
) -> list[Comparison | ByRanks]:
    """Every metric of every arm against the first, or against the one before it (`previous`); by
    ranks where a seed diverged.

    The verdict is that of the primary metric, or of those that are named: the 5 % are shared by
    its comparisons (`comparisons.levels`). What else the runs have stands beside it, unjudged.
    ValueError when an arm has no test rows, or all in one group.
    """
    for arm in arms:
        if not arm.predictions and lost_runs(arm.runs):
            continue
        if not arm.predictions:
            notes = [f"{run.path}: {note}" for run in arm.runs for note in run.notes]
            raise ValueError("; ".join([f"{arm.label} has no test rows", *notes]))
        if arm.predictions[0].num_groups < 2:
            raise ValueError(
                f"{arm.label}: all test rows are in one group: how groups differ cannot be known"
            )
    judged, beside = metrics_of(arms, names)
    pairs = [(number - 1 if previous else 0, number) for number in range(1, len(arms))]
    results: list[Comparison | ByRanks] = []
    for name in [*judged, *beside]:
        for first, second in pairs:
            both, higher = (arms[first], arms[second]), direction(name) >= 0
            if plan and plan.race:
                both = with_shared_seeds(*both)
            results.append(
                by_ranks(name, higher, *both, name in judged)
                or _compare_metric(name, *both, paired, by, plan, name in judged)
            )
    family = [comparison for comparison in results if comparison.judged]
    if plan and plan.race:
        _levels_of_race(family, plan, margin)
        return results
    share_error(family, margin)
    for comparison in family:
        if plan and isinstance(comparison, Comparison) and comparison.over_seeds:
            both = comparison.arm.tested + comparison.baseline.tested
            labels = list(dict.fromkeys(run.path.absolute().parent.name for run in both))
            comparison.looks = plan.looked(labels, comparison.num_seeds)
    return results


def pairwise(
    arms: Sequence[Arm], metric: str, plan: Plan | None = None, unmade: int = 0
) -> dict[tuple[int, int], Comparison | ByRanks]:
    """{(i, j): arm j against arm i by this metric}, i < j: all share the 5 %, and with them
    `unmade` pairs that nobody asks about. All arms have the same test rows (`refusal`)."""
    higher, results = direction(metric) >= 0, {}
    for i, j in itertools.combinations(range(len(arms)), 2):
        results[i, j] = by_ranks(metric, higher, arms[i], arms[j]) or _compare_metric(
            metric, arms[i], arms[j], paired=True, by=None, plan=plan, judged=True
        )
    share_error([*results.values()], None, unmade)
    return results


def share_error(
    family: Sequence[Comparison | ByRanks], margin: float | None, unmade: int = 0
) -> None:
    """Correct the levels and p-values of comparisons that share the 5 %; `unmade`: as if so many
    more had been made, and had shown nothing."""
    for comparison in family if len(family) > 1 else ():
        if isinstance(comparison, Comparison):
            comparison.difference = comparison.difference.among_others()
    raw = [comparison.difference.p for comparison in family] + [1.0] * unmade
    fixed = margin is not None
    for comparison, level, p in zip(
        family,
        comparisons.levels(raw, fixed),
        comparisons.corrected(raw, fixed),
        strict=False,
    ):
        comparison.level, comparison.p = level, p
        comparison.family, comparison.margin = len(raw), margin


def _levels_of_race(
    family: Sequence[Comparison | ByRanks], plan: Plan, margin: float | None
) -> None:
    """The level of its look for each, in place of Holm's; `evaluation/sequential.py`."""
    metrics = len({result.metric for result in family})
    levels = plan.levels(metrics)
    for result in family:
        result.family, result.margin, result.race = plan.arms * metrics, margin, plan.race
        if isinstance(result, ByRanks):  # once, with all seeds
            result.level = sequential.ranks_level(result.family)
            raw = result.difference.p if result.num_seeds >= plan.race else 1.0
        elif result.over_seeds:
            result.level = levels[min(result.num_seeds, plan.race)]
            result.difference = result.difference.at_small_level(result.level)
            raw = result.difference.p
        else:
            result.level, raw = comparisons.ALPHA / result.family, result.difference.p
        result.p = min(1.0, raw * comparisons.ALPHA / result.level)


def metrics_of(
    arms: Sequence[Arm], names: Sequence[str] | None = None
) -> tuple[list[str], list[str]]:
    """(metrics that carry a verdict, those beside them): the primary one, or `names`. One figure
    under two names is one. ValueError for a name that not all runs have."""
    rows = [predictions for arm in arms for predictions in arm.predictions]
    if not rows:
        raise ValueError("all of these runs diverged: there is no figure to compare")
    known = [name for name in rows[0].statistics if all(name in r.statistics for r in rows)]
    if not known:
        raise ValueError("these runs have no metric in common")
    across = _across_tokenizers(rows)
    if names:
        for name in names:
            if name not in known:
                raise ValueError(
                    f"no metric {name} in all of these runs, which have {', '.join(known)}"
                )
            if name in across:
                raise ValueError(
                    f"{name}: the runs count other tokens (num_targets differ), nats a token say "
                    "nothing across tokenizers; nats_per_char does"
                )
        return list(dict.fromkeys(names)), []
    primary = rows[0].primary
    if any(r.primary != primary for r in rows) or primary not in known:
        primary = _shared_primary(rows, known)
    if primary in across:
        other = primary.replace("loss", "nats_per_char")
        if other not in known:
            raise ValueError(
                "the runs count other tokens (num_targets differ), and predictions.csv has no "
                f"{other.removesuffix('nats_per_char')}num_chars to compare by"
            )
        primary = other
    beside = [name for name in rows[0].main if name in known and name not in {*across, primary}]
    # of equal tokenizers nats a token and a character are one comparison under two names
    if "loss" not in across and {"loss", "nats_per_char"} & {primary, *beside}:
        first = next(name for name in (primary, *beside) if name in ("loss", "nats_per_char"))
        beside = [name for name in beside if name not in ("loss", "nats_per_char") or name == first]
    return [primary], beside


def _across_tokenizers(rows: Sequence[Predictions]) -> set[str]:
    """Nats a token that cannot be compared, as the runs count other tokens."""
    found = set()
    for name in rows[0].statistics:
        if name == "loss" or name.endswith("_loss"):
            statistic = rows[0].statistics[name]
            column = getattr(statistic, "denominator", -1)
            if column >= 0 and len({float(r.columns[:, column].sum()) for r in rows}) > 1:
                found.add(name)
    return found


def _shared_primary(rows: Sequence[Predictions], known: Sequence[str]) -> str:
    """Of runs that declare different ones: what all of them have, the first declared first."""
    for name in [*(r.primary for r in rows), *known]:
        if name in known:
            return name
    raise ValueError("these runs have no metric in common")


@dataclass
class Cell:
    """Runs of one setting within an arm, in the order of their seeds."""

    block: str
    runs: list[Predictions]
    seeds: list[Any]


def cells_of(arm: Arm, factors: Sequence[str]) -> dict[str, Cell]:
    """The arm's runs by the values of the `factors`, blocks by name; without factors one cell."""
    found: dict[str, Cell] = {}
    for run, rows in zip(arm.tested, arm.predictions, strict=True):
        settings = settings_of(run)
        block = ", ".join(f"{name}={show(settings.get(name))}" for name in factors)
        cell = found.setdefault(block, Cell(block, [], []))
        cell.runs.append(rows)
        cell.seeds.append(run.seed)
    for cell in found.values():
        order = sorted(range(len(cell.runs)), key=lambda i: show(cell.seeds[i]))
        cell.runs = [cell.runs[i] for i in order]
        cell.seeds = [cell.seeds[i] for i in order]
    return found


def other_factors(arms: Sequence[Arm], by: Sequence[str] | None) -> list[str]:
    """The settings that differ between the runs of these arms, but for the seed and `by`."""
    if not by:
        return []
    settings = [settings_of(run) for arm in arms for run in arm.tested]
    names = dict.fromkeys(name for each in settings for name in each if name not in by)
    return [name for name in names if len({show(each.get(name)) for each in settings}) > 1]


def _compare_metric(
    name: str,
    baseline: Arm,
    arm: Arm,
    paired: bool,
    by: Sequence[str] | None,
    plan: Plan | None,
    judged: bool,
) -> Comparison:
    factors = other_factors([baseline, arm], by)
    first, second = (cells_of(each, factors) for each in (baseline, arm))
    blocks = [block for block in first if block in second]
    if not blocks:  # nothing to block by: the runs of an arm as one cell
        first, second = ({"": _pooled(list(each.values()))} for each in (first, second))
        blocks = [""]
    cells = [first[block] for block in blocks] + [second[block] for block in blocks]
    weights = [-1 / len(blocks)] * len(blocks) + [1 / len(blocks)] * len(blocks)
    for each in () if paired else (baseline, arm):
        _require_own_rows(each)
    influences = [[rows.influence(name) for rows in cell.runs] for cell in cells]
    smallest = min(len(cell.runs) for cell in cells)
    seeds = min(sum(len(c.runs) for c in part) for part in np.array_split(cells, 2))
    over_seeds = seeds >= comparisons.MIN_SEEDS and smallest >= 2
    groups = cells[0].runs[0].groups
    planned = bool(plan and plan.paired and over_seeds and paired)
    by_seed = planned and all(cell.seeds == cells[0].seeds for cell in cells)
    if not over_seeds:  # of several seeds, their mean
        influences = [[mean_influence(cell)] for cell in influences]
    if not paired:
        alone = [
            comparisons.contrast([cell], [1.0], group_index(rows.runs[0].groups))
            for cell, rows in zip(influences, cells, strict=True)
        ]
        difference = comparisons.unpaired(*alone)
    elif len(arm.predictions) == len(baseline.predictions) == 1:
        a, b = cells[0].runs[0], cells[1].runs[0]
        right = (a.right, b.right) if name == "accuracy" else None
        difference = comparisons.two_models(a.influence(name), b.influence(name), groups, right)
    else:
        difference = comparisons.contrast(influences, weights, group_index(groups), by_seed)
    return Comparison(
        name,
        arm,
        baseline,
        difference,
        seeds if over_seeds else 1,
        baseline.predictions[0].num_groups,
        paired,
        by_seed,
        planned and not by_seed,
        tuple(block for block in blocks if block),
        judged,
    )


def _require_own_rows(arm: Arm) -> None:
    """ValueError where the runs of one arm have different test rows: their mean is no figure."""
    first, *others = arm.predictions
    if any(len(x) != len(first) or (x.ids != first.ids).any() for x in others):
        raise ValueError(
            f"{arm.label}: its own runs have different test rows; compare them run by run"
        )


def with_shared_seeds(first: Arm, second: Arm) -> tuple[Arm, Arm]:
    """Both arms with the seeds that both have: one that a race dropped has fewer. As they are where
    they share none."""
    shared = {run.seed for run in first.runs} & {run.seed for run in second.runs}
    pair = []
    for arm in (first, second):
        if shared and any(run.seed not in shared for run in arm.runs):
            measured = [x for x in arm.measured if x[0].seed in shared]
            arm = Arm(arm.label, [run for run in arm.runs if run.seed in shared])
            arm.measured = measured
        pair.append(arm)
    return pair[0], pair[1]


def _pooled(cells: Sequence[Cell]) -> Cell:
    return Cell("", [r for cell in cells for r in cell.runs], [s for c in cells for s in c.seeds])


def mean_influence(runs: Sequence[Influence]) -> Influence:
    """Of the mean of several models on the same rows."""
    return Influence(
        float(np.mean([run.value for run in runs])),
        np.mean([run.rows for run in runs], axis=0),
        np.mean([run.leverage for run in runs], axis=0),
    )


# ------------------------------------------------------------------------------ output


@dataclass
class Report:
    """A comparison with all that has to be said of it."""

    arms: list[Arm]
    notes: list[str]
    tables: dict[str, list[list[str]]]
    results: list[Comparison]
    unpaired: str | None
    plan: Plan
    margin_given: bool
    by: Sequence[str] | None = None

    @property
    def judged(self) -> list[Comparison]:
        return [result for result in self.results if result.judged]

    @property
    def published(self) -> list[str]:
        """Each arm against the published run that its config repeats."""
        return [line for arm in self.arms for line in sentences(arm.runs, arm.label)]

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "arms": [
                {
                    "label": arm.label,
                    "runs": [str(run.path) for run in arm.runs],
                    "seeds": [run.seed for run in arm.runs],
                    "verdicts": dict(Counter(v for run in arm.runs for v in run.verdicts)),
                }
                for arm in self.arms
            ],
            "differences": {
                section: [
                    dict(zip(("name", "values"), (row[0], row[1:]), strict=True)) for row in rows
                ]
                for section, rows in self.tables.items()
            },  # fmt: skip
            "comparisons": [result.as_json() for result in self.results],
            "published": self.published,
            "notes": [*self.notes, *caveats(self.results), *margin_notes(self.results, self.plan)],
        }


def require_margin(margin: float | None) -> None:
    """ValueError for one that is no difference that does not matter."""
    if margin is not None and not (margin > 0 and math.isfinite(margin)):
        raise ValueError(f"--margin {margin:g}: expected a difference above 0 that does not matter")


def build_report(
    paths: Sequence[str],
    by: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    anyway: bool = False,
    margin: float | None = None,
) -> Report:
    """ValueError when the runs cannot be compared row by row and `anyway` is not set."""
    require_margin(margin)
    arms = build_arms(paths, by)
    why = refusal(arms)  # reads the test rows, and notes what is wrong with them
    runs = [run for arm in arms for run in arm.runs]
    plan = plan_of(runs)
    notes = [*notes_on_outcomes(runs), *shared_notes(runs), *plan.notes]
    for arm in arms:
        if by is None and len({repr(sorted(settings_of(run).items())) for run in arm.runs}) > 1:
            notes.append(
                f"note: the runs of {arm.label} differ in more than the seed, which adds to their "
                "spread"
            )
    tables = differences(arms)
    if why and not anyway:
        lines = [*_head(arms), *notes, "", *_differences_as_text(arms, tables, "simple", by)]
        raise ValueError(
            "\n".join([*lines, "", f"not compared: {why}. --anyway compares them unpaired"])
        )
    given = margin is not None
    results = compare(
        arms,
        names,
        paired=why is None,
        margin=margin if given else plan.margin,
        by=by,
        plan=plan,
    )
    if by:
        notes += _block_notes(arms, by)
    notes += baseline_notes(arms, plan)
    notes += [] if names else primary_notes(arms, results)
    return Report(arms, notes, tables, results, why, plan, given, by)


def report(
    paths: Sequence[str],
    by: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    anyway: bool = False,
    style: str = "simple",
    margin: float | None = None,
) -> str:
    """The whole comparison as text; `style` is tabulate's name of a table format.

    ValueError when the runs cannot be compared row by row and `anyway` is not set.
    """
    found = build_report(paths, by, names, anyway, margin)
    lines = [*_head(found.arms), *found.notes, ""]
    lines += _differences_as_text(found.arms, found.tables, style, by)
    if found.unpaired:
        lines += [
            f"Compared unpaired, although {found.unpaired}: each figure on its own rows.",
            "",
        ]
    lines += [*_figures_as_text(found.arms, found.results, style), ""]
    lines += [result.sentence for result in found.judged]
    if beside := [result for result in found.results if not result.judged]:
        rows = [
            [r.metric, f"{r.arm.label} against {r.baseline.label}", difference_text(r)]
            for r in beside
        ]
        lines += ["", tabulate(rows, ["beside it, without a verdict", "", "each at 95 %"],
                               tablefmt=style)]  # fmt: skip
    lines += ["", *found.published, ""] if found.published else [""]
    lines += caveats(found.results)
    lines += margin_notes(found.results, found.plan)
    return "\n".join(lines)


def margin_notes(results: Sequence[Comparison | ByRanks], plan: Plan) -> list[str]:
    """Whether the margin of these comparisons stood in the plan."""
    judged = [result for result in results if result.judged]
    if not judged or (margin := judged[0].margin) is None:
        return []
    if plan.margin == margin:
        return [f"The margin {margin:g} was in the plan."]
    return [f"The margin {margin:g} was chosen with the results at hand (it was not in the plan)."]


def baseline_notes(arms: Sequence[Arm], plan: Plan) -> list[str]:
    """That the plan has another baseline than this comparison."""
    place = plan.place(arms[0].runs[0])
    if not 0 < place < len(plan.labels):
        return []
    note = f"note: the plan compares with {plan.labels[0]}, not with {arms[0].label}"
    return [note + (": its race has levels for that alone" if plan.race else "")]


def primary_notes(arms: Sequence[Arm], results: Sequence[Comparison | ByRanks]) -> list[str]:
    """That the runs were trained and chosen by different metrics, one of which judges them."""
    of: dict[str, str] = {}
    for arm in arms:
        for rows in arm.predictions:
            of.setdefault(rows.primary, arm.label)
    if len(of) < 2:
        return []
    said = ", ".join(f"{name} in {label}" for name, label in of.items())
    judge = next(result.metric for result in results if result.judged)
    return [
        f"note: the primary metrics differ ({said}): judged by {judge}; --metrics names another"
    ]


def difference_text(result: Comparison | ByRanks) -> str:
    low, high = result.interval
    if isinstance(result, ByRanks):
        value = result.difference.value
        return "diverged" if math.isnan(value) else f"{value:+.4f} without what diverged"
    text = with_interval(result.difference.value, low, high, "+")
    return f"{text} no interval" if math.isnan(low) else text


def caveats(results: Sequence[Comparison]) -> list[str]:
    """What has to be said below these comparisons."""
    lines = []
    judged = [result for result in results if result.judged]
    if raced := [result for result in judged if result.race]:
        lines.append(
            f"A race that was declared: verdicts on up to {raced[0].race} seeds and "
            f"{raced[0].family} comparisons err together in 5 % at most, however often it was "
            "looked at (docs/statistics.md)."
        )
    elif len(judged) > 1:
        how = "each at 95 %" if judged[0].margin is None else "as both nulls count"
        rule = "Holm" if judged[0].margin is None else "Bonferroni, " + how
        lines.append(
            f"Intervals and p-values are corrected for {len(judged)} comparisons ({rule}): an "
            "interval excludes 0 exactly where its difference is called."
        )
    if not all(comparison.over_seeds for comparison in judged):
        lines.append(
            "Two runs are two models. What a change of method does is judged over seeds: "
            f"{comparisons.MIN_SEEDS} or more an arm."
        )
    if not raced and any(r.over_seeds and r.decision == "undecided" for r in judged):
        lines.append(
            "Seeds that are added because of this look make a false call likelier (three in ten "
            "after thirty looks): a new comparison has all its seeds planned."
        )
    return [*lines, *few_groups(results)]


def few_groups(results: Sequence[Comparison | ByRanks]) -> list[str]:
    """What is known to go wrong where the test rows have few or unequal groups."""
    of_rows = [result for result in results if isinstance(result, Comparison)]
    if not of_rows or not of_rows[0].baseline.predictions:
        return []
    metric, arms = of_rows[0].metric, [of_rows[0].baseline]
    if not of_rows[0].paired_rows:  # each on rows of its own
        arms += [result.arm for result in of_rows if result.metric == metric]
    said = []
    for arm in arms:
        rows = arm.predictions[0]
        facts = interval_facts(metric, rows.groups, rows.influence(metric).leverage)
        if groups := doubtful_groups({"n": len(rows), **facts}):
            said.append(f"Only {groups} (docs/statistics.md).")
    return list(dict.fromkeys(said))


def _head(arms: Sequence[Arm]) -> list[str]:
    lines = [f"{arm.label}: {len(arm.runs)} run(s)" for arm in arms]
    lines[0] += ", the baseline"
    return lines


def _block_notes(arms: Sequence[Arm], by: Sequence[str]) -> list[str]:
    """What of a grid is compared and what is not."""
    notes = []
    for arm in arms[1:]:
        factors = other_factors([arms[0], arm], by)
        first, second = (cells_of(each, factors).keys() for each in (arms[0], arm))
        shared, alone = first & second, sorted(first ^ second)
        if not shared:
            notes.append(
                f"note: {arm.label} and {arms[0].label} share no other settings: what else "
                "differs is in their difference"
            )
        elif alone:
            notes.append(
                f"note: only one of {arm.label} and {arms[0].label} has {'; '.join(alone)}: left "
                "out of their comparison"
            )
    return notes


def _differences_as_text(
    arms: Sequence[Arm],
    tables: dict[str, list[list[str]]],
    style: str,
    by: Sequence[str] | None = None,
) -> list[str]:
    if not tables:
        return ["No setting, data or environment differs.", ""]
    lines = []
    for section, rows in tables.items():
        lines += [_table(rows, [section, *(arm.label for arm in arms)], style), ""]
    lines += contrast_notes(arms, by)
    if "environment" in tables:
        names = ", ".join(row[0] for row in tables["environment"])
        lines += [f"The environment differs too ({names}), which may change figures.", ""]
    return lines


def contrast_notes(arms: Sequence[Arm], by: Sequence[str] | None) -> list[str]:
    """Of each arm whose difference from the first could be the work of several settings."""
    if by:
        return []
    several = []
    for arm in arms[1:]:
        rows = differences([arms[0], arm]).get("settings", [])
        changed = [row[0] for row in rows if row[0] != "seed"]
        if len(changed) > 1:
            several.append((arm, changed))
    if not several:
        return []
    lines = [
        f"{arm.label} against {arms[0].label}: {len(changed)} settings differ "
        f"({_some(changed)}): their difference cannot say which of them did it."
        for arm, changed in several
    ]
    if factors := grid_factors(arms):
        lines.append(
            f"The arms are a grid of {' × '.join(factors)}: --group-by {factors[0]} judges "
            f"{factors[0]} alone, over all its runs."
        )
    else:
        lines.append("Which runs between two of them could: report.py explain A B.")
    return [*lines, ""]


def _some(names: Sequence[str]) -> str:
    """All of a few; of many, as between two kinds of model, the first."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def grid_factors(arms: Sequence[Arm]) -> list[str]:
    """The settings whose every combination is an arm, if the arms are that."""
    settings = [settings_of(arm.runs[0]) for arm in arms]
    names = dict.fromkeys(name for each in settings for name in each)
    values = {n: {show(each.get(n)) for each in settings} for n in names}
    factors = [name for name in names if len(values[name]) > 1]
    points = {tuple(show(each.get(name)) for name in factors) for each in settings}
    full = math.prod(len(values[name]) for name in factors) if factors else 0
    return factors if len(factors) > 1 and len(points) == full == len(arms) else []


def _figures_as_text(arms: Sequence[Arm], results: list[Comparison], style: str) -> list[str]:
    """One line a metric: each arm's mean with its interval."""
    rows = []
    for name in dict.fromkeys(comparison.metric for comparison in results):
        rows.append([name, *(_figure(arm, name) for arm in arms)])
        if name == "loss" or name.endswith("_loss") and name != "log_loss":
            perplexities = [
                f"{np.exp(np.mean([rows.value(name) for rows in arm.predictions])):.2f}"
                if arm.predictions
                else ""
                for arm in arms
            ]
            rows.append([name.replace("loss", "perplexity"), *perplexities])
    return [_table(rows, ["", *(arm.label for arm in arms)], style)]


def _table(rows: Sequence[Sequence[str]], head: Sequence[str], style: str) -> str:
    """A column an arm, or a line an arm where a terminal has no room for that and has for this."""
    table = tabulate(rows, head, tablefmt=style)
    first, *labels = head
    turned = [[label, *cells] for label, *cells in zip(labels, *(r[1:] for r in rows), strict=True)]
    other = tabulate(turned, [first, *(row[0] for row in rows)], tablefmt=style)
    room = shutil.get_terminal_size((100, 24)).columns
    widths = [max(map(len, text.splitlines())) for text in (table, other)]
    return other if style == "simple" and widths[0] > room and widths[1] < widths[0] else table


def _figure(arm: Arm, name: str) -> str:
    value, low, high = figure_of(arm, name)
    text = with_interval(value, low, high)
    seeds, lost = len(arm.predictions), len(lost_runs(arm.runs))
    if lost:
        return f"{text} ({seeds} of {seeds + lost} seeds)" if seeds else f"{lost} diverged"
    return text if seeds == 1 else f"{text} ({seeds} seeds)"


def figure_of(arm: Arm, name: str) -> tuple[float, float, float]:
    """A metric with its interval: the mean over seeds, or a run's own over its rows (NaN where
    there is none)."""
    values = [rows.value(name) for rows in arm.predictions]
    if lost_runs(arm.runs):  # the mean of those that are left: of what, an interval cannot say
        return (float(np.mean(values)) if values else math.nan, math.nan, math.nan)
    if len(values) > 1:
        return mean_interval(values)
    found = run_interval(arm.predictions[0], name)
    return values[0], found.low, found.high


def run_interval(rows: Predictions, name: str) -> Interval:
    """A run's own interval, by today's method whatever its metrics.json was made by."""
    if name == "accuracy" and rows.right is not None and rows.num_groups == len(rows):
        return Interval(*wilson_interval(int(rows.right.sum()), len(rows)))
    kind = getattr(rows.statistics[name], "kind", "plain")
    return interval_of(rows.influence(name), group_index(rows.groups), kind)
