"""What became of runs, as tables and comparisons say it: a run that diverged is an outcome.

It has no test figures, so that no mean can count it. It is counted in words, ranked below all that
have some, and shown with the loss that it had.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from evaluation.outcomes import CAUTIONS, FAILED, worst_rank_test
from reports import packed
from reports.folder import RunFolder, clean

NAMED = 3  # runs in a note; the others are counted
MIN_SEEDS = 3
ALPHA = 0.05


def lost_runs(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Those that diverged, and so have no test figures (a suite has, of its other tasks)."""
    return [run for run in runs if "diverged" in run.failures and not run.metrics]


def has_test_rows(run: RunFolder) -> bool:
    return packed.is_file(run.path / "test/metrics/predictions.csv")


def counted(runs: Sequence[RunFolder]) -> str:
    """1 diverged, 2 collapsed of 3; "" where no rule has anything to say."""
    counts = {
        kind: sum(kind in run.failures or kind in run.kinds for run in runs)
        for kind in (*FAILED, *CAUTIONS)
    }
    said = ", ".join(
        f"{count} {kind}" if len(runs) > 1 else kind for kind, count in counts.items() if count
    )
    return f"{said} of {len(runs)}" if said and len(runs) > 1 else said


def notes(runs: Sequence[RunFolder]) -> list[str]:
    """What the runs' verdicts are, a line a kind, with the words of its first run."""
    lines = []
    of_kind: dict[str, list[tuple[RunFolder, str]]] = {}
    for run in runs:
        for verdict in run.verdicts:
            of_kind.setdefault(run.kind_of(verdict) or verdict, []).append((run, verdict))
    for said in of_kind.values():
        names = ", ".join(str(run.path) for run, _ in said[:NAMED])
        names += f" and {len(said) - NAMED} more" if len(said) > NAMED else ""
        many = f"{len(said)} of {len(runs)} runs, " if len(said) > 1 else ""
        first = " (of the first)" if len({verdict for _, verdict in said}) > 1 else ""
        lines.append(f"note: {many}{names}: {clean(said[0][1])}{first}")
    return lines


@dataclass
class ByRanks:
    """As a Comparison, of a pair of arms in which a seed diverged: no mean holds all of it."""

    metric: str
    higher_is_better: bool
    arm: Any
    baseline: Any
    difference: Any
    judged: bool = True
    p: float = math.nan  # corrected, as those of the other comparisons
    level: float = ALPHA
    family: int = 1
    margin: float | None = None
    race: int = 0  # as a Comparison's
    interval = (math.nan, math.nan)

    @property
    def num_seeds(self) -> int:
        return min(map(len, (seeds_of(self.arm), seeds_of(self.baseline))))

    @property
    def over_seeds(self) -> bool:
        return self.num_seeds >= MIN_SEEDS

    @property
    def decision(self) -> str:
        if not self.p < ALPHA or self.difference.ranked == 0:
            return "undecided"
        return "better" if self.difference.ranked > 0 else "worse"

    @property
    def sentence(self) -> str:
        counts = ", ".join(
            f"{len(lost_runs(arm.runs))} of {len(seeds_of(arm))} of {arm.label}"
            for arm in (self.arm, self.baseline)
        )
        text = (
            f"{self.metric}, {self.arm.label} against {self.baseline.label}: diverged {counts}, so "
            "that means leave out what matters. "
        )
        for arm in (self.arm, self.baseline):
            for run in lost_runs(arm.runs):
                had = loss_had(run)
                text += f"{run.name} diverged{f' with {had}' if had else ''}. "
        p = "< 0.001" if self.p < 0.001 else f"{self.p:.3f}"
        verdict = self.decision
        if verdict in ("better", "worse"):
            verdict = f"{self.arm.label} is {verdict}"
        text += f"By ranks, what diverged being the worst: p {p}: {verdict}."
        if math.isfinite(self.difference.value):
            text += f" The seeds that did not diverge differ by {self.difference.value:+.4f}."
        return text

    def as_json(self) -> dict[str, Any]:
        """The fields of a comparison that there are by ranks, and what diverged."""
        known = math.isfinite(self.difference.value)
        return {
            **{"metric": self.metric, "arm": self.arm.label, "baseline": self.baseline.label},
            "difference": self.difference.value if known else None,
            **{"low": None, "high": None, "level": 1 - self.level, "judged": self.judged},
            **{"p": self.p if self.judged else None, "margin": self.margin},
            "verdict": self.decision if self.judged else None,
            **{"by_less_than_margin": False, "by_ranks": True, "seeds": self.num_seeds},
            "diverged": {
                each.label: len(lost_runs(each.runs)) for each in (self.arm, self.baseline)
            },
            **{"over_seeds": self.over_seeds, "no_interval": "a seed diverged"},
            "sentence": self.sentence if self.judged else "",
        }


def by_ranks(
    metric: str, higher_is_better: bool, baseline: Any, arm: Any, judged: bool = True
) -> ByRanks | None:
    """The comparison of two arms where a seed diverged in one of them, else None."""
    lost = [len(lost_runs(each.runs)) for each in (baseline, arm)]
    if not any(lost):
        return None
    sign = 1 if higher_is_better else -1
    a, b = ([sign * rows.value(metric) for rows in each.predictions] for each in (baseline, arm))
    worst = -math.inf
    difference = SimpleNamespace(
        p=worst_rank_test(a, b, *lost),
        value=sign * (np.mean(b) - np.mean(a)) if a and b else math.nan,
        low=math.nan,
        high=math.nan,
        ranked=_wins([*b, *[worst] * lost[1]], [*a, *[worst] * lost[0]]),
    )
    return ByRanks(metric, higher_is_better, arm, baseline, difference, judged)


def _wins(b: Sequence[float], a: Sequence[float]) -> int:
    """Pairs in which b is better, less those in which a is."""
    return sum((x > y) - (x < y) for x in b for y in a)


def seeds_of(arm: Any) -> list[RunFolder]:
    """The runs that say something: with test rows, or diverged."""
    lost = {run.path for run in lost_runs(arm.runs)}
    return [run for run in arm.runs if has_test_rows(run) or run.path in lost]


def loss_had(run: RunFolder) -> str:
    """The last finite losses of a run, in words."""
    last, evaluations = run.ends
    said = []
    if (loss := last.get("train_loss")) is not None:
        said.append(f"a training loss of {loss:.4f} at step {last['step']}")
    known = [line for line in evaluations if isinstance(line.get("val_loss"), float)]
    if known:
        said.append(f"a validation loss of {known[-1]['val_loss']:.4f} at step {known[-1]['step']}")
    return " and ".join(said)
