"""gate: keep a proposed change, discard it, or add seeds? For loops in which a program proposes.

    report.py gate BASE CANDIDATE --ledger loop.jsonl --json

exits with 0 keep, 1 discard, 2 undecided, 3 not comparable (or any error). The ledger holds the
terms and every look, a JSON object a line, and is only added to. How noise is kept from being kept:
evaluation/investing.py; a loop that runs: docs/gate.md.
"""

import argparse
import datetime
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.comparisons import MIN_SEEDS
from evaluation.investing import Terms, Wealth, is_hopeless, is_shown
from evaluation.metrics import with_interval
from files import appending
from reports import packed
from reports.arms import Arm, environment_notes, refusal, require_rows, settings_of
from reports.compare import Comparison, compare, metrics_of
from reports.folder import BESIDE, RunFolder, find_runs, number, shared_notes
from reports.outcomes import has_test_rows, lost_runs
from reports.outcomes import notes as notes_on_outcomes
from reports.predictions import direction, rows_digest
from reports.steps import changes

SCHEMA = 1
EXITS = {"keep": 0, "discard": 1, "undecided": 2, "not comparable": 3}
FEWEST_GROUPS = 10  # of rows, in each half


@dataclass
class Answer:
    """verdict: of EXITS; facts: what --json shows besides."""

    verdict: str
    why: str
    facts: dict[str, Any]

    @property
    def exit(self) -> int:
        return EXITS[self.verdict]

    def as_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "verdict": self.verdict, "exit": self.exit,
                "why": self.why, **self.facts}  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{self.verdict}: {self.why}"]
        if (shown := self.facts.get("shown")) is not None:
            lines.append(
                "on the rows that are shown: "
                f"{with_interval(shown['difference'], shown['low'], shown['high'], '+')} at 95 %"
                if shown["low"] is not None
                else f"on the rows that are shown: {shown['difference']:+.4f}, no interval"
            )
        for name, what in (("base_seeds", "it, as the base,"), ("next_seeds", "what comes next")):
            if seeds := self.facts.get(name):
                lines.append(f"fresh seeds for {what}: {', '.join(map(str, seeds))}")
        lines += self.facts.get("notes", [])
        return "\n".join(lines)


class Answered(Exception):
    """An answer was given; `exit` is its code."""

    def __init__(self, code: int):
        super().__init__(code)
        self.exit = code


class NotComparable(ValueError):
    """Exit 3, and why."""


def gate(base: str, candidate: str, path: Path, given: argparse.Namespace) -> Answer:
    """given: proposals, seeds and metric, which the first call fixes; later they may be left out.

    The ledger is locked for the whole of it, so that two loops share one wealth.
    """
    try:
        arms = [_arm(base), _arm(candidate)]
        packed.refuse_inside(path)
        with appending(path) as (lines, add):
            return _judge(arms, lines, add, given)
    except (ValueError, OSError) as problem:
        return Answer("not comparable", str(problem), {"ledger": str(path)})


def _arm(path: str) -> Arm:
    every = sorted(find_runs(path), key=lambda run: (str(type(run.seed)), run.seed))
    runs = [run for run in every if has_test_rows(run) or lost_runs([run])]
    if not runs:
        raise NotComparable(f"{path}: no run with test rows")
    runs[0].notes += [
        f"{BESIDE}{run.path} has no test rows: not counted" for run in every if run not in runs
    ]
    if len({repr(sorted(settings_of(run).items())) for run in runs}) > 1:
        raise NotComparable(f"{path}: its runs differ in more than the seed")
    seeds = [run.seed for run in runs]
    if len(set(seeds)) < len(seeds) or not all(isinstance(seed, int) for seed in seeds):
        raise NotComparable(f"{path}: each run needs a seed of its own, they have {seeds}")
    arm = Arm(Path(path).name, runs)
    require_rows(arm)
    return arm


def identity(run: RunFolder) -> str:
    """16 hex digits of what the run computes, but for the seed: its settings and its code."""
    patch = run.path / "diff.patch"
    code = [run.record.get("commit"), ""]
    if packed.is_file(patch):
        code[1] = hashlib.sha256(packed.read_bytes(patch)).hexdigest()
    text = json.dumps([sorted(settings_of(run).items()), code], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------ the ledger


@dataclass
class Ledger:
    """What the lines say: terms, the wealth that is left, and the looks at each proposal."""

    terms: dict[str, Any]
    wealth: Wealth
    looks: list[dict[str, Any]]

    @classmethod
    def read(cls, lines: Sequence[dict]) -> "Ledger":
        terms = lines[0]
        if terms.get("gate") != SCHEMA:
            raise NotComparable("the ledger does not begin with the terms of a gate")
        wealth = Wealth(Terms(terms["proposals"], terms["seeds"]))
        looks = [line for line in lines[1:] if "proposal" in line]
        levels: dict[int, float] = {}
        for look in looks:
            if look["proposal"] not in levels:
                levels[look["proposal"]] = wealth.bid()
            if look["verdict"] == "keep":
                wealth.won(levels[look["proposal"]])
        return cls(terms, wealth, looks)

    @property
    def kept(self) -> dict[str, Any] | None:
        """The last look by which a proposal was kept."""
        return next((look for look in self.looks[::-1] if look["verdict"] == "keep"), None)

    @property
    def base(self) -> dict[str, Any] | None:
        """The first look at the base of today: since the last keep."""
        after = self.looks.index(self.kept) + 1 if self.kept else 0
        return self.looks[after] if after < len(self.looks) else None

    @property
    def used(self) -> set[int]:
        """All seeds that a base or a candidate had."""
        return {s for look in self.looks for s in (*look["seeds"], *look["base_seeds"])}

    def of(self, candidate: str, base: str) -> list[dict[str, Any]]:
        both = (candidate, base)
        return [look for look in self.looks if (look["candidate"], look["base"]) == both]


def _judge(arms: list[Arm], lines: list[dict], add: Any, given: argparse.Namespace) -> Answer:
    base, candidate = arms
    runs = [run for arm in arms for run in arm.runs]
    if why := refusal(arms):
        raise NotComparable(why)
    if lost := lost_runs(base.runs):
        raise NotComparable(f"of the base {len(lost)} seeds diverged: {lost[0].path}")
    if len(base.runs) < MIN_SEEDS:
        raise NotComparable(f"the base has {len(base.runs)} seeds, and needs {MIN_SEEDS} or more")
    rows = base.predictions[0]
    names = tuple(identity(arm.runs[0]) for arm in (candidate, base))
    seeds, base_seeds = ([run.seed for run in arm.runs] for arm in (candidate, base))
    if names[0] == names[1]:
        raise NotComparable(
            "the candidate has the settings and the code of the base: another seed is no change"
        )
    if shared := set(seeds) & set(base_seeds):
        raise NotComparable(f"seed {min(shared)} is in both: a candidate has seeds of its own")
    for name in ("proposals", "seeds"):
        if (value := getattr(given, name)) is not None and value < 1:
            raise NotComparable(f"--{name} {value}: expected 1 or more")
    if not lines:
        metric, _ = metrics_of(arms, [given.metric] if given.metric else None)
        if not direction(metric[0]):
            raise NotComparable(f"{metric[0]}: neither higher nor lower is known to be better")
        lines = [
            {
                **{"gate": SCHEMA, "proposals": given.proposals or Terms.proposals},
                **{"seeds": given.seeds or Terms.seeds, "metric": metric[0]},
                **{"rows": rows_digest(rows), "begun": _now()},
            }
        ]
        if lines[0]["seeds"] < MIN_SEEDS:
            raise NotComparable(f"--seeds {given.seeds}: {MIN_SEEDS} or more")
        add(lines[0])
    ledger = Ledger.read(lines)
    terms = ledger.terms
    for name in ("proposals", "seeds", "metric"):
        if getattr(given, name) not in (None, terms[name]):
            raise NotComparable(
                f"--{name} {getattr(given, name)}: the ledger began with {terms[name]}"
            )
    if rows_digest(rows) != terms["rows"]:
        raise NotComparable("these are other test rows than those that the ledger began with")
    past = ledger.of(*names)
    if past and past[-1]["verdict"] != "undecided":  # it is settled: more seeds do not reopen it
        return Answer(
            past[-1]["verdict"],
            f"as before (proposal {past[-1]['proposal']}): what is settled stays settled",
            {key: past[-1][key] for key in ("proposal", "changed")} | _next(ledger, 0),
        )
    _check_base(ledger, names[1], base_seeds)
    _check_seeds(ledger, past, seeds)
    new = not past
    try:
        level = ledger.wealth.bid() if new else past[0]["level"]
    except ValueError as problem:
        raise NotComparable(f"{problem}: a new ledger, and rows that nobody has seen") from None
    sign = direction(terms["metric"])
    shown, kept_back = (_half(arms, terms["metric"], which) for which in (True, False))
    verdict, why = _verdict(shown, kept_back, candidate, base_seeds, level, sign, terms)
    look = {
        **{"proposal": ledger.wealth.made if new else past[0]["proposal"], "verdict": verdict},
        **{"changed": changes(base, candidate), "why": why, "seeds": seeds, "level": level},
        **{"shown": _facts(shown), "candidate": names[0], "base": names[1]},
        **{"base_seeds": base_seeds, "runs": str(Path(candidate.runs[0].path).parent)},
        "time": _now(),
    }
    if verdict == "keep":
        look["kept_back"] = _facts(kept_back)
    if not past or past[-1]["seeds"] != seeds:  # the same runs once more are no look
        add(look)
        ledger.looks.append(look)
    more = terms["seeds"] - len(seeds) if verdict == "undecided" else 0
    facts = {key: look[key] for key in ("proposal", "changed", "seeds", "level", "shown")}
    facts |= _next(ledger, more, len(base_seeds) if verdict == "keep" else 0)
    if verdict == "keep":
        facts["kept_back"] = look["kept_back"]
    notes = [*notes_on_outcomes(runs), *shared_notes(runs), *environment_notes(arms)]
    return Answer(verdict, why, {**facts, "notes": notes})


def _check_base(ledger: Ledger, base: str, seeds: list[int]) -> None:
    """NotComparable unless it is the base of the ledger: as it was, or what was kept last, with
    seeds that had no part in its being kept."""
    kept, now = ledger.kept, ledger.base
    if kept and base != kept["candidate"]:
        raise NotComparable(
            f"proposal {kept['proposal']} was kept ({kept['changed']}): it is the base now"
        )
    if now is None and kept and (again := set(seeds) & ledger.used):
        raise NotComparable(
            f"the base was kept for what its seeds showed, luck included: it needs fresh ones, "
            f"from {max(ledger.used) + 1} on, and not {min(again)}"
        )
    if now and (now["base"], now["base_seeds"]) != (base, seeds):
        what = f"seeds {now['base_seeds']}" if now["base"] == base else "other settings"
        raise NotComparable(f"the base of this ledger has {what}: it changes by a keep alone")


def _check_seeds(ledger: Ledger, past: list[dict], seeds: list[int]) -> None:
    """NotComparable unless a proposal has seeds of its own, and none was taken away."""
    own = set(past[-1]["seeds"]) if past else set()
    if missing := own - set(seeds):
        raise NotComparable(f"seed {min(missing)} of this candidate was counted, and is not there")
    if taken := (set(seeds) - own) & ledger.used:
        raise NotComparable(
            f"seed {min(taken)} was used before: fresh ones begin with {max(ledger.used) + 1}, for "
            "what was chosen by a seed's luck has it again"
        )
    if len(seeds) > ledger.terms["seeds"]:
        raise NotComparable(f"{len(seeds)} seeds: the ledger's terms are {ledger.terms['seeds']}")


def _next(ledger: Ledger, more: int, of_base: int = 0) -> dict[str, Any]:
    """Fresh seeds: for what comes next, as many as a first look needs or `more` of an undecided
    candidate; before those, of_base for a candidate that was kept and becomes the base."""
    first = max(ledger.used, default=-1) + 1
    begin = first + of_base
    terms = ledger.wealth.terms
    return {
        **({"base_seeds": list(range(first, begin))} if of_base else {}),
        "next_seeds": list(range(begin, begin + (more or MIN_SEEDS))),
        "proposals_left": terms.proposals - ledger.wealth.made,
    }


# ----------------------------------------------------------------------------- the verdict


def _half(arms: list[Arm], metric: str, shown: bool) -> Comparison | None:
    """The comparison on the rows that are shown, or on those that are kept back; None where a seed
    diverged."""
    halves = []
    for arm in arms:
        half = Arm(arm.label, arm.runs)
        half.measured = [
            (run, rows.only(np.array([is_shown(str(group)) == shown for group in rows.groups])))
            for run, rows in arm.measured
        ]
        halves.append(half)
    groups = halves[0].predictions[0].num_groups if len(halves[0].predictions[0]) else 0
    if groups < FEWEST_GROUPS:
        raise NotComparable(
            f"half of the groups of rows are kept back, and a half has {groups}: too few"
        )
    found = compare(halves, [metric])[0]
    return found if isinstance(found, Comparison) else None


def _verdict(
    shown: Comparison | None,
    kept_back: Comparison | None,
    candidate: Arm,
    base_seeds: list[int],
    level: float,
    sign: int,
    terms: dict[str, Any],
) -> tuple[str, str]:
    seeds, most = len(candidate.runs), terms["seeds"]
    if lost := lost_runs(candidate.runs):
        return "discard", f"{len(lost)} of {seeds} seeds diverged"
    if shown is None or kept_back is None or seeds < MIN_SEEDS:
        return "undecided", f"{seeds} seeds: {MIN_SEEDS} are the first look, and {most} may keep it"
    names = Terms(terms["proposals"], most)
    if seeds < most:
        if is_hopeless(shown.difference, sign, len(base_seeds), level, names):
            return "discard", f"after {seeds} seeds it is not likely to be shown better with {most}"
        return "undecided", f"after {seeds} seeds; with {most} it can be kept"
    found = kept_back.difference.at_small_level(level)
    if found.problem:
        return "discard", f"on the rows that are kept back nothing can be said: {found.problem}"
    if sign * found.value > 0 and found.p < level:
        return "keep", f"better with {seeds} seeds on rows that were kept back, p < {level:.2g}"
    return "discard", f"not shown to be better with all {seeds} seeds (p < {level:.2g} is asked)"


def _facts(found: Comparison | None) -> dict[str, Any] | None:
    if found is None:
        return None
    low, high = (number(float(end)) for end in found.difference.interval())
    return {"difference": number(float(found.difference.value)), "low": low, "high": high,
            "rows": len(found.baseline.predictions[0])}  # fmt: skip


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
