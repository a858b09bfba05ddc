"""A race: seeds are added one by one, and arms dropped as soon as they are settled, or hopeless.

Every arm is compared with the first, paired by seed on the same rows, by the engine of `compare`;
what differs is the level of a look, which is planned for the most seeds that there can be
(`evaluation/sequential.py`). Looks are kept in OUT/looks.jsonl, where a continued race finds them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import console
from evaluation import sequential
from evaluation.comparisons import MIN_SEEDS
from files import appending
from reports.arms import Arm, refusal, require_rows
from reports.compare import Comparison, compare
from reports.folder import clean, load_run, number
from reports.plan import LOOKS, plan_of


@dataclass
class Race:
    """out: the folder of the sweep; seeds: all that there may be, in their order; settled: what was
    decided of an arm, and with how many seeds; given_up: why it is not raced on ("rows" or
    "seeds", as `sequential.in_vain` says), and with how many."""

    out: Path
    baseline: str
    arms: list[str]
    seeds: list[int]
    settled: dict[str, tuple[str, int]] = field(default_factory=dict)
    given_up: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def running(self) -> list[str]:
        return [a for a in self.arms if a not in self.settled and a not in self.given_up]

    def look(self, count: int) -> None:
        """Judge the arms that are running by their first `count` seeds, or as this look did it
        before; one that had failed then is judged now. ValueError where the runs cannot be
        compared."""
        with appending(self.out / LOOKS) as (lines, add):
            judged: dict[str, Any] = {}
            for line in lines:
                if line.get("look") == count and line.get("race"):
                    judged = line["race"] | judged
            if left := [label for label in self.running if label not in judged]:
                line = self._judged(count, left)
                add(line)
                judged |= line["race"]
        for label, found in judged.items():
            if found["verdict"] != "undecided":
                self.settled[label] = found["verdict"], count
            elif why := found.get("in_vain") or found.get("only_rows") and "rows":
                self.given_up[label] = why, count  # only_rows: of a look before there was in_vain

    def _judged(self, count: int, labels: Sequence[str]) -> dict[str, Any]:
        arms = [self._arm(label, count) for label in (self.baseline, *labels)]
        for arm in arms:
            require_rows(arm)  # a look at so many seeds has so many
        if why := refusal(arms):
            raise ValueError(f"the arms cannot be compared: {why}")
        plan = plan_of([run for arm in arms for run in arm.runs])
        found = {}
        for result in compare(arms, margin=plan.margin, plan=plan):
            if not result.judged:
                continue
            low, high = result.interval
            known = isinstance(result, Comparison)
            found[result.arm.label] = {
                "verdict": result.decision,
                "difference": number(float(result.difference.value)),
                **{"low": number(low), "high": number(high), "level": result.level},
                "in_vain": sequential.in_vain(result.difference, count, plan.levels(), plan.margin)
                if known and result.decision == "undecided"
                else "",
            }
        return {"look": count, "seeds": {arm.label: self.seeds[:count] for arm in arms},
                "race": found}  # fmt: skip

    def _arm(self, label: str, count: int) -> Arm:
        folders = [self.out / label / f"seed_{seed}" for seed in self.seeds[:count]]
        return Arm(label, [load_run(folder) for folder in folders])


def race(
    plan: Any, runner: Any, runs: Mapping[str, Sequence], is_finished: Callable[[Any], bool]
) -> tuple[dict[str, list], list[str]]:
    """Run a sweep's `plan` as a race; runs: all that there may be of each arm, in the order of
    their seeds.

    Returns those that there are, and what is to be said in the end. It ends when no arm is
    running, with the last seed, with the plan's hours, or when the runner stops.
    """
    baseline, *arms = [arm.label for arm in plan.arms]
    done: dict[str, list] = {label: [] for label in runs}
    if baseline not in runs:
        return done, []
    state = Race(plan.out, baseline, [a for a in arms if a in runs], plan.arms[0].seeds)
    why = ""
    for count in range(MIN_SEEDS, plan.race + 1):
        racing = [baseline, *_whole(state.running, runner.failed)]
        wanted = {label: list(runs[label][:count]) for label in racing}
        missing = [run for those in wanted.values() for run in those if not is_finished(run)]
        if missing and plan.hours and count > MIN_SEEDS:
            had, each = hours_of([run for those in done.values() for run in those])
            if had / plan.jobs + each * len(missing) / plan.jobs > plan.hours:
                why = f"the {plan.hours:g} hours do not suffice for another seed"
                break
        if missing:
            runner.run(missing)
        for label in racing:
            done[label] = [run for run in wanted[label] if is_finished(run)]
        if runner.limited:
            why = f"another run does not fit ({runner.limited})"
            break
        if runner.stopping:
            return done, []
        lost = {label for label in racing if len(done[label]) < count}
        if baseline in lost:
            why = f"a run of {baseline}, which all are compared with, failed"
            break
        state.arms = [label for label in state.arms if label not in lost]
        if state.running:
            state.look(count)
            console.say(standing(state, count, plan.race))
        if not state.running:
            break
    return done, [clean(line) for line in summary(state, runs, done, why)]


def _whole(labels: Sequence[str], failed: Mapping[str, str]) -> list[str]:
    return [label for label in labels if not any(n.startswith(f"{label}/seed_") for n in failed)]


def hours_of(runs: Sequence[Any]) -> tuple[float, float]:
    """(hours that these runs took together, those of one on average), by their run.json."""
    records = [load_run(run.folder).record for run in runs]
    seconds = [number(record.get("seconds")) or 0.0 for record in records]
    return sum(seconds) / 3600, sum(seconds) / 3600 / max(len(seconds), 1)


def standing(state: Race, count: int, most: int) -> str:
    now = [f"{label}: {found}" for label, (found, seeds) in state.settled.items() if seeds == count]
    now += [f"{label}: given up" for label, (_, seeds) in state.given_up.items() if seeds == count]
    settled = "; ".join(now)
    left = f"still racing: {', '.join(state.running)}" if state.running else "no arm is left"
    return f"look after {count} of at most {most} seeds: {settled or 'nothing settled'}; {left}"


def summary(
    state: Race, runs: Mapping[str, Sequence], done: Mapping[str, Sequence], why: str
) -> list[str]:
    """A line an arm, and what the race took."""
    lines = [f"the race ended, as {why}; the same command goes on"] if why else []
    for label in state.arms:
        if label in state.settled:
            verdict, seeds = state.settled[label]
            lines.append(f"race: {label}: {verdict}, settled with {seeds} seeds")
            continue
        line = f"race: {label}: undecided with {len(done[label])} seeds"
        reason, _ = state.given_up.get(label, ("", 0))
        if reason == "rows":
            line += ", and these test rows alone leave it so: more rows are needed, not more seeds"
        elif reason == "seeds":
            line += f", and all {len(state.seeds)} of this race would hardly decide it"
        lines.append(line)
    took, all_of = (sum(map(len, those.values())) for those in (done, runs))
    return [*lines, f"race: {took} runs of the {all_of} that all seeds of all arms are"]
