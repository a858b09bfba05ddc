"""What was declared before the results: `paired` and `margin` of the sweep file above the runs.

sweep.py writes it there, and refuses to change either once a run has finished.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from reports import packed
from reports.folder import RunFolder, number

PLAN = "sweep.yaml"


@dataclass
class Plan:
    """Without a sweep file: nothing was declared."""

    paired: bool = False
    margin: float | None = None
    notes: list[str] = field(default_factory=list)
    content: dict[str, Any] = field(default_factory=dict)  # of the sweep file


def plan_of(runs: Sequence[RunFolder]) -> Plan:
    """The plan that all runs lie under: the same sweep.yaml in a folder above each."""
    plans = {_plan_above(run.path) for run in runs}
    if len(plans) != 1 or (path := plans.pop()) is None:
        return Plan()
    try:
        content = yaml.safe_load(packed.read_bytes(path).decode("utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why = str(error).splitlines()[0]
        return Plan(notes=[f"note: {path} cannot be read: {why}"])
    if not isinstance(content, dict):
        return Plan(notes=[f"note: {path} holds no names and values"])
    return Plan(content.get("paired") is True, number(content.get("margin")), content=content)


def _plan_above(run: Path) -> Path | None:
    for folder in list(run.absolute().parents)[:3]:
        if packed.is_file(folder / PLAN):
            return folder / PLAN
    return None
