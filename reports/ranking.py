"""Rankings: the arms on the same test rows by their primary metric, in groups that cannot be told
apart.

Every arm is compared with every other one by the engine of `compare`, all pairs corrected together
(Holm). Arms share a letter where no difference between them was called: they were not told apart,
which does not make them equal. A third arm may lie between two that differ and share a letter with
each: a compact letter display, Piepho 2004 (J. Comput. Graph. Stat. 13(2), 456–466).
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from string import ascii_lowercase

from evaluation.comparisons import MIN_SEEDS
from reports.arms import Arm, refusal
from reports.compare import few_groups, figure_of, metrics_of, pairwise
from reports.ledger import Best, best_of
from reports.outcomes import has_test_rows, lost_runs
from reports.plan import plan_of
from reports.predictions import direction, rows_digest
from reports.steps import figure_cell
from reports.table import Cell

MOST_COMPARED = 60  # arms: 1,770 pairs; those below them in a ranking are listed without letters
MOST_GROUPS = 12  # that a reader can tell apart by letters
LARGEST = 1000  # sets while groups are made


@dataclass
class Place:
    """An arm in a ranking: its metric with its interval, the letters of its groups, and the places
    (from 1, its own among them) that it was not told apart from."""

    arm: Arm
    cell: Cell
    groups: list[str] = field(default_factory=list)
    peers: list[int] = field(default_factory=list)

    @property
    def among(self) -> str:
        """1–4, 7"""
        runs: list[list[int]] = []
        for place in self.peers:
            if runs and place == runs[-1][-1] + 1:
                runs[-1].append(place)
            else:
                runs.append([place])
        return ", ".join(f"{r[0]}–{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs)


@dataclass
class Ranking:
    """The best arm first. letters: of all groups, none where they are too many to be read; why:
    arms were not compared, or what has to be said."""

    metric: str
    rows: int
    split: str
    places: list[Place]
    letters: list[str] = field(default_factory=list)
    why: str = ""
    best: Best | None = None

    @property
    def over_seeds(self) -> bool:
        return all(len(place.arm.predictions) >= MIN_SEEDS for place in self.places)


def rankings(arms: Sequence[Arm]) -> tuple[list[Ranking], list[str]]:
    """(a ranking for each set of test rows that two or more arms have, the largest first; why arms
    are in none)."""
    on_rows: dict[tuple, list[Arm]] = {}
    diverged, left_out = [], []
    for arm in arms:
        rows = {_rows_of(*pair) for pair in arm.measured}
        if len(rows) > 1:
            left_out.append(f"{arm.label} is in no ranking: its runs have different test rows")
        elif rows:
            on_rows.setdefault(rows.pop(), []).append(arm)
        elif lost_runs(arm.runs):
            diverged.append(arm)
        elif any(map(has_test_rows, arm.runs)):
            left_out.append(f"{arm.label} is in no ranking: its test rows cannot be read")
    for arm in diverged:  # which has no rows: where its split is that of one ranking alone
        split = _split_of(arm.runs[0])
        places = [key for key in on_rows if key[:2] == split]
        if len(places) == 1:
            on_rows[places[0]].append(arm)
    found = []
    for key, those in on_rows.items():
        if len(those) > 1:
            try:
                found.append(rank(those, split=key[0]))
            except ValueError as error:
                labels = ", ".join(arm.label for arm in those[:3])
                labels += f" and {len(those) - 3} more" if len(those) > 3 else ""
                left_out.append(f"no ranking of {labels}: {error}")
    return sorted(found, key=lambda ranking: -len(ranking.places)), left_out


def _split_of(run) -> tuple[str, str]:
    return tuple(str(run.record.get(f"{name}_fingerprint") or "") for name in ("split", "data"))


def _rows_of(run, predictions) -> tuple[str, ...]:
    """Which test rows, with which labels and groups."""
    answers = predictions.groups if predictions.labels is None else predictions.labels
    both = "\n".join(map(str, (*answers, *predictions.groups)))
    digest = hashlib.sha256(both.encode("utf-8", "replace")).hexdigest()
    return (*_split_of(run), rows_digest(predictions), digest)


def rank(arms: Sequence[Arm], split: str = "") -> Ranking:
    """ValueError where the arms cannot be compared row by row, or have no metric in common."""
    if why := refusal(arms):
        raise ValueError(why)
    [metric], _ = metrics_of(arms)
    sign = direction(metric) or 1
    values = [figure_of(arm, metric)[0] for arm in arms]
    # what has no figure at all comes last
    order = sorted(range(len(arms)), key=lambda i: (math.isnan(values[i]), -sign * values[i]))
    ordered = [arms[i] for i in order]
    places = [Place(arm, figure_cell(arm, metric)) for arm in ordered]
    rows = next(len(arm.predictions[0]) for arm in ordered if arm.predictions)
    found = Ranking(metric, rows, split, places)
    try:
        found.best = best_of([arm for arm in ordered if arm.predictions]) if len(arms) > 2 else None
    except ValueError:
        found.best = None
    plan = plan_of([run for arm in arms for run in arm.runs])
    if any(plan_of(arm.runs).race for arm in arms):
        found.why = (
            "A race judges each arm against the first one: looks at all pairs were not planned."
        )
        return found
    if any(p.num_groups < 2 for arm in arms for p in arm.predictions):
        found.why = "All test rows are in one group: how groups differ cannot be known."
        return found
    compared = ordered[:MOST_COMPARED]
    unmade = math.comb(len(ordered), 2) - math.comb(len(compared), 2)
    results = pairwise(compared, metric, plan, unmade)
    # better or worse; of a figure of no known direction, higher or lower
    differ = {pair for pair, r in results.items() if not _is_open(r.decision)}
    for i, place in enumerate(places[: len(compared)]):
        pairs = ((j, (min(i, j), max(i, j))) for j in range(len(compared)))
        place.peers = [j + 1 for j, pair in pairs if pair not in differ]
    groups = letter_groups(len(compared), sorted(differ))
    found.letters = list(ascii_lowercase[: len(groups)])
    for name, members in zip(found.letters, groups, strict=True):
        for member in members:
            places[member].groups.append(name)
    said = few_groups([*results.values()])
    if unmade:
        said.append(f"The best {len(compared)} are compared, and corrected for the pairs of all.")
    found.why = " ".join(said)
    return found


def _is_open(decision: str) -> bool:
    return decision.startswith(("undecided", "the same"))


def letter_groups(
    count: int, differ: Iterable[tuple[int, int]], most: int = MOST_GROUPS
) -> list[list[int]]:
    """The largest sets of 0 … count − 1 in which no two differ, in the order of their first member;
    none where they are more than `most`.

    Two share a set exactly where they do not differ: insert and absorb, Piepho 2004. All begin in
    one set; each pair that differs splits every set that has both, and sets inside others are
    absorbed.
    """
    sets = [frozenset(range(count))] if count else []
    for i, j in differ:
        both = [each for each in sets if i in each and j in each]
        sets = [each for each in sets if not (i in each and j in each)]
        for new in (each - {gone} for each in both for gone in (i, j)):
            if not any(new <= other for other in sets):
                sets = [other for other in sets if not other < new] + [new]
        if len(sets) > LARGEST:  # while they are made; they seldom become fewer
            return []
    return sorted(map(sorted, sets)) if len(sets) <= most else []
