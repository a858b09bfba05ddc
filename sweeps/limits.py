"""How long and for how much money: whether another run fits, by what runs took so far."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from files import read_json
from sweeps.ended import has_ended
from sweeps.plan import Run


@dataclass
class Limits:
    """hours: of this call, on this machine. max_cost: of the whole sweep, with all machines and all
    calls, an hour of this one at `price`; each other machine counts at its own. None: no limit."""

    jobs: int = 1
    hours: float | None = None
    price: float | None = None
    max_cost: float | None = None
    begun: float = field(default_factory=time.monotonic)

    def refusal(self, run: Run, every: Iterable[Run], running: Mapping[str, float]) -> str:
        """Why another run does not fit; "" where it does, or where nothing has been measured.

        every: the runs of the sweep. running: by name, for how many seconds each run of this
        process has been under way.
        """
        if self.hours is None and self.max_cost is None:
            return ""
        every = list(every)
        attempts = {each.name: each.claims.history() for each in every}
        took = _took(every, attempts)
        needed = _expected(took, run.arm)
        next_run = f", and the next run takes about {needed / 60:.1f} min" if needed else ""
        if self.hours is not None:
            spent = (time.monotonic() - self.begun) / 3600
            if max(spent, spent + needed / 3600) >= self.hours:
                return f"{spent:.2f} of {self.hours:g} hours have passed{next_run}"
        if self.max_cost is not None:
            each = (self.price or 0) / 3600 / self.jobs  # of a second of one run
            known = [facts for those in attempts.values() for facts in those]
            spent = sum(cost_of(facts, self.price) for facts in known)
            rest = sum(
                max(0.0, _expected(took, name.partition("/")[0]) - seconds)
                for name, seconds in running.items()
            )
            if spent + (rest + needed) * each >= self.max_cost:
                under_way = f", {rest * each:.2f} go to what is running" if rest else ""
                of_it = f" ({needed * each:.2f})" if needed else ""
                return f"{spent:.2f} of {self.max_cost:g} are spent{under_way}{next_run}{of_it}"
        return ""


def cost_of(facts: Mapping[str, Any], here: float | None = None) -> float:
    """Of an attempt, by Claims.history; one on a machine without a price costs what it would have
    cost `here`."""
    price = facts.get("price") if facts.get("price") is not None else here or 0
    return facts["seconds"] * price / 3600 / (facts.get("jobs") or 1)


def _took(runs: Iterable[Run], attempts: Mapping[str, list[dict]]) -> dict[str, list[float]]:
    """arm → seconds of each run that ended: of all attempts at it, or as its record says."""
    took: dict[str, list[float]] = {}
    for run in runs:
        if has_ended(run.folder) and not run.folder.is_symlink():
            took.setdefault(run.arm, []).append(seconds_of(run, attempts[run.name]))
    return took


def seconds_of(run: Run, attempts: Iterable[Mapping[str, Any]]) -> float:
    """Of all attempts at a run that has ended, or as its own record says: where there are no claims
    on it, or it came home from another machine."""
    seconds = read_json(run.folder / "run.json").get("seconds")
    known = seconds if isinstance(seconds, int | float) else 0.0
    return max(known, sum(facts["seconds"] for facts in attempts))


def _expected(took: Mapping[str, list[float]], arm: str) -> float:
    """Seconds of a run: the longest of its arm, else of any; 0 where none has ended."""
    return max(took.get(arm) or [s for known in took.values() for s in known], default=0.0)
