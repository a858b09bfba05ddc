"""What was declared before the results: `paired`, `margin` and `race` of the sweep file above the
runs, and how often results were looked at, which looks.jsonl beside it keeps.

sweep.py writes both, and refuses to change what was declared once a run has finished.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from claims import place_of
from evaluation import sequential
from evaluation.comparisons import MIN_SEEDS
from files import json_lines
from reports import packed
from reports.folder import PLAN, RunFolder, number

LOOKS = "looks.jsonl"


@dataclass
class Plan:
    """Without a sweep file: nothing was declared.

    race: the most seeds of an arm in a race, 0 where it is none; arms: that race against the first;
    looks: the seeds of each arm at each look, by its label.
    """

    paired: bool = False
    margin: float | None = None
    race: int = 0
    arms: int = 1
    looks: list[dict[str, list]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    content: dict[str, Any] = field(default_factory=dict)  # of the sweep file

    @property
    def labels(self) -> list[str]:
        """Of the arms, in their order: the first is the baseline."""
        arms = self.content.get("arms")
        return list(map(str, arms)) if isinstance(arms, dict) else []

    def place(self, run: RunFolder) -> int:
        """Of a run's arm in the plan; behind all others where it has none."""
        label, labels = run.path.absolute().parent.name, self.labels
        return labels.index(label) if label in labels else len(labels)

    def levels(self, metrics: int = 1) -> dict[int, float]:
        """The level of each look of a race, by seeds, with so many metrics judged."""
        return sequential.levels_of_race(self.race, self.arms * metrics)

    def looked(self, arms: Sequence[str], seeds: int) -> list[int]:
        """With how many seeds these arms were looked at, now with so many; each number once."""
        there = [[look[arm] for arm in arms] for look in self.looks if all(a in look for a in arms)]
        counts = {min(map(len, lists)) for lists in there} | {seeds}
        return sorted(count for count in counts if MIN_SEEDS <= count <= seeds)


def plan_of(runs: Sequence[RunFolder]) -> Plan:
    """The plan that all runs lie under: the same sweep.yaml in a folder above each."""
    plans = {plan_above(run.path) for run in runs}
    if len(plans) != 1 or (path := plans.pop()) is None:
        return Plan()
    try:
        content = yaml.safe_load(packed.read_bytes(path).decode("utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why = str(error).splitlines()[0]
        return Plan(notes=[f"note: {path} cannot be read: {why}"])
    if not isinstance(content, dict):
        return Plan(notes=[f"note: {path} holds no names and values"])
    race, arms = content.get("race"), content.get("arms")
    most = number(race.get("max_seeds")) if isinstance(race, dict) else None
    return Plan(
        content.get("paired") is True,
        number(content.get("margin")),
        int(most) if most and most >= MIN_SEEDS else 0,
        max(1, len(arms) - 1) if isinstance(arms, dict) else 1,
        _looks_in(path.with_name(LOOKS)),
        content=content,
    )


def _looks_in(path: Path) -> list[dict[str, list]]:
    try:
        lines = json_lines(packed.read_bytes(path))
    except OSError:
        return []
    seeds: list[Any] = [line.get("seeds") for line in lines]
    return [
        look
        for look in seeds
        if isinstance(look, dict) and all(isinstance(each, list) for each in look.values())
    ]


def plan_above(run: Path) -> Path | None:
    """The sweep file that a run belongs to."""
    run = run.absolute()
    for folder in list((place_of(run) or run).parents)[:3]:  # also while it is being made
        if packed.is_file(folder / PLAN):
            return folder / PLAN
    return None
