"""ledger: how many runs looked at which test rows, and what the best of several is worth on others.

Rows are told apart by their ids in predictions.csv, whatever else of a split differs. Trials of a
sweep's tuning looked, too, and are counted; they are no settings that a best is chosen from.
"""

import contextlib
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from claims import place_of
from evaluation import comparisons
from evaluation.metrics import with_interval
from evaluation.stats import group_index
from evaluation.winners import Lead, shrunk
from reports import packed
from reports.arms import (
    Arm,
    group_runs,
    labels_of,
    refusal,
    rows_of,
    settings_of,
    without_repeats,
)
from reports.compare import SCHEMA, mean_influence, metrics_of
from reports.folder import (
    RunFolder,
    clean,
    find_runs,
    is_run,
    load_run,
    not_there,
    number,
    shared_notes,
    trials_among,
    without_copies,
)
from reports.outcomes import has_test_rows, lost_runs
from reports.predictions import direction, ids_digest


@dataclass
class Best:
    """The best of `settings` settings, by its mean over seeds."""

    label: str
    run: RunFolder  # one of its seeds
    metric: str
    settings: int
    seeds: int
    value: float
    mean: float
    claimed: float  # better than the mean of all, above 0
    lead: Lead | None  # on fresh rows; None where no interval is known
    over_seeds: bool
    higher_is_better: bool
    diverged: int = 0  # of its seeds, which have no figure

    def is_seed(self, run: RunFolder) -> bool:
        """Whether a run is of this setting, on these rows."""
        return all(of(run) == of(self.run) for of in (settings_of, rows_of))

    def on_fresh_rows(self, lead: float) -> float:
        return self.mean + (lead if self.higher_is_better else -lead)

    def __str__(self) -> str:
        text = (
            f"the best of {self.settings} settings is {self.label}: {self.metric} "
            f"{self.value:.4f}, better than their mean by {self.claimed:.4f}"
        )
        if self.diverged:
            text += f" (seeds of it that diverged are left out: {self.diverged})"
        if self.lead is None:
            return f"{text}; what of that is luck cannot be said"
        low, high = sorted(map(self.on_fresh_rows, self.lead[1:]))
        what = "fresh rows and seeds" if self.over_seeds else "fresh rows, of these very models,"
        return (
            f"{text}. On {what} expect "
            f"{with_interval(self.on_fresh_rows(self.lead.expected), low, high)}, better by "
            f"{self.lead.expected:.4f}: it was chosen by these rows, so that some of its lead is "
            "luck"
        )


@dataclass
class Split:
    """Test rows, and all that looked at them."""

    rows: int
    digest: str
    runs: list[RunFolder]
    trials: int  # of tuning, among them
    best: Best | None
    why: str = ""  # there is no best
    notes: list[str] = field(default_factory=list)  # on runs that looked and are not in the best

    def __str__(self) -> str:
        arms = f"{self.best.settings} settings" if self.best else "settings"
        trials = f", {self.trials} of them trials of a tuning" if self.trials else ""
        looked = "1 run" if len(self.runs) == 1 else f"{len(self.runs)} runs"
        head = f"test rows {self.digest} ({self.rows:,}): {looked} looked{trials}"
        head += f", {arms}" if self.best else ""
        return "\n".join([f"{head}.", *([f"  {self.best}."] if self.best else []),
                          *([f"  {self.why}."] if self.why else []),
                          *(f"  {note}" for note in self.notes)])  # fmt: skip


@dataclass
class Ledger:
    splits: list[Split]

    def __str__(self) -> str:
        return clean("\n".join(map(str, self.splits)))

    def as_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "splits": [_split_as_json(split) for split in self.splits]}


def _split_as_json(split: Split) -> dict[str, Any]:
    found: dict[str, Any] = {
        **{"rows": split.rows, "digest": split.digest, "runs": len(split.runs)},
        **{"trials": split.trials, "best": None, "why": split.why or None, "notes": split.notes},
    }
    if (best := split.best) is not None:
        ends = [None] * 3 if best.lead is None else [number(float(x)) for x in best.lead]
        found["best"] = {
            **{"label": best.label, "metric": best.metric, "settings": best.settings},
            **{"seeds": best.seeds, "value": best.value, "mean": best.mean},
            **{"claimed": best.claimed, "expected": ends[0], "low": ends[1], "high": ends[2]},
            **{"over_seeds": best.over_seeds, "diverged": best.diverged},
        }
    return found


def build_ledger(paths: Sequence[str]) -> Ledger:
    """Of all runs at or below these paths; the rows that most runs looked at come first.

    ValueError where none of them has test rows.
    """
    runs = looking_runs(paths)
    if not runs:
        raise ValueError(f"{', '.join(paths)}: no run that looked at test rows")
    splits: dict[str, list[RunFolder]] = {}
    sizes = {}
    for run in runs:
        digest, size = test_rows_of(run.path)
        splits.setdefault(digest, []).append(run)
        sizes[digest] = size
    order = sorted(splits, key=lambda digest: -len(splits[digest]))
    trials = trials_among(run.path for run in runs)
    found = [_split(digest, sizes[digest], splits[digest], trials) for digest in order]
    lost = _diverged(paths)
    for split in found:
        if split.best:
            split.best.diverged = sum(map(split.best.is_seed, lost))
    return Ledger(found)


def _diverged(paths: Sequence[str]) -> list[RunFolder]:
    found: dict[Path, RunFolder] = {}
    for path in paths:
        with contextlib.suppress(ValueError):  # none there that has ended
            found |= {run.path.resolve(): run for run in lost_runs(find_runs(path))}
    return list(found.values())


def looking_runs(paths: Sequence[str]) -> list[RunFolder]:
    """All runs with test rows, the trials of a tuning and the tasks of a suite among them; what a
    sweep has not published may be there twice."""
    folders: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not packed.is_dir(path):
            raise ValueError(f"{path}: {not_there(path)}")
        files = packed.files_below(path)
        found = [f.parents[2] for f in files if f.match("test/metrics/predictions.csv")]
        runs = [folder for folder in sorted(found) if is_run(folder) and not place_of(folder)]
        folders |= {folder.resolve(): folder for folder in runs}
    return without_copies(load_run(folder) for folder in folders.values())


def test_rows_of(run: Path) -> tuple[str, int]:
    """(digest of the ids, how many); of a file without ids, that of its bytes, and 0."""
    import pandas

    try:
        content = packed.read_bytes(run / "test/metrics/predictions.csv")
    except OSError:
        content = b""
    try:
        file = io.BytesIO(content)
        ids = pandas.read_csv(file, usecols=["id"], dtype=str, keep_default_na=False)["id"]
    except ValueError:  # no such column, or nothing in it
        return hashlib.sha256(content).hexdigest()[:16], 0
    return ids_digest(ids), len(ids)


def _split(digest: str, size: int, runs: list[RunFolder], trials: set[Path]) -> Split:
    results = [run for run in runs if run.path not in trials]
    split = Split(size, digest, runs, len(runs) - len(results), None)
    groups = list(map(without_repeats, group_runs(results)))
    if len(groups) < 2:
        split.why = "one setting alone: nothing was chosen by these rows" if groups else ""
        return split
    arms = [Arm(label, group) for label, group in zip(labels_of(groups), groups, strict=True)]
    unread = ", ".join(arm.label for arm in arms if not arm.predictions)
    arms = [arm for arm in arms if arm.predictions]
    split.notes = shared_notes(run for group in groups for run in group)
    if unread:
        split.notes.append(
            f"note: not among these settings, as their rows cannot be read: {unread}"
        )
    if why := refusal(arms):
        split.why = f"no best of them can be named: {why}"
        return split
    try:
        split.best = best_of(arms)
    except ValueError as error:
        split.why = f"no best of them can be named: {error}"
    return split


def best_of(arms: Sequence[Arm]) -> Best:
    """Which arm has the best mean of the primary metric, and what is left of its lead.

    ValueError where they are fewer than two, have no such metric, or it no better side.
    """
    if len(arms) < 2:
        raise ValueError("fewer than two settings have rows that can be read")
    (metric, *_), _ = metrics_of(arms)
    sign = direction(metric)
    if not sign:
        raise ValueError(f"{metric}: neither higher nor lower is known to be better")
    means = np.array([np.mean([rows.value(metric) for rows in arm.predictions]) for arm in arms])
    if not np.isfinite(means).all():
        raise ValueError(f"{metric} is not defined in each run")
    first = int((sign * means).argmax())
    order = [arms[first], *(arm for arm in arms if arm is not arms[first])]
    cells = [[rows.influence(metric) for rows in arm.predictions] for arm in order]
    seeds = min(map(len, cells))
    over_seeds = seeds >= comparisons.MIN_SEEDS
    if not over_seeds:
        cells = [[mean_influence(cell)] for cell in cells]
    count, claimed = len(arms), float(abs(means[first] - means.mean()))
    weights = [1 - 1 / count] + [-1 / count] * (count - 1)
    found = comparisons.contrast(cells, weights, group_index(order[0].predictions[0].groups))
    lead = None
    if not found.problem:
        spread = float(means.std(ddof=1))
        parts = (found.seed_parts, found.row_variance, found.row_freedom)
        ends = shrunk(claimed, spread, weights, *parts)
        lead = Lead(*(float(end) for end in ends))
    return Best(
        *(order[0].label, order[0].runs[0], metric, count, seeds),
        *(float(means[first]), float(means.mean())),
        *(claimed, lead, over_seeds, sign > 0),
    )


def table_note(runs: Sequence[RunFolder]) -> str:
    """The line below a table of several settings on the same rows; "" for any other."""
    lost = {run.path for run in lost_runs(runs)}
    there = [run for run in runs if has_test_rows(run) and run.path not in lost]
    settings = len(group_runs(there))
    if settings < 3 or len({str(run.record.get("split_fingerprint")) for run in there}) > 1:
        return ""
    return (
        f"{len(there)} runs of {settings} settings looked at these test rows: the best of them has "
        "luck on its side; report.py ledger says how much is left on fresh rows"
    )
