"""Arms: runs that count as one, and what differs between them besides their figures."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from reports import packed
from reports.folder import RunFolder, find_runs, is_run, load_runs
from reports.outcomes import lost_runs
from reports.plan import plan_of
from reports.predictions import Predictions, load_predictions
from reports.ruler import other_ruler
from reports.scripts import resolved
from settings import FREE_SETTINGS, SEEDS, flatten


@dataclass
class Arm:
    """Runs that count as one: the seeds of one setting."""

    label: str
    runs: list[RunFolder]

    @cached_property
    def measured(self) -> list[tuple[RunFolder, Predictions]]:
        """The runs that have test rows, each with these."""
        lost = {run.path for run in lost_runs(self.runs)}  # counted, and no rows to read
        rows = [(run, load_predictions(run)) for run in self.runs if run.path not in lost]
        return [(run, found) for run, found in rows if found is not None]

    @property
    def tested(self) -> list[RunFolder]:
        """The runs of `measured`, and their rows in `predictions`."""
        return [run for run, _ in self.measured]

    @property
    def predictions(self) -> list[Predictions]:
        return [rows for _, rows in self.measured]


FINGERPRINTS = ("data_fingerprint", "split_fingerprint")
_spellings: dict[str, Any] = {}  # fingerprint of rows → how the first run that was read names them
_names: dict[tuple[str, str], str] = {}  # (setting, digest of what it names) → one name for it


def _one_name(setting: str, digest: str, spelling: str) -> str:
    """How the first run that was read spells it: ./tiny and a copy elsewhere are one setting, and
    another model under the same name is another."""
    if (setting, digest) not in _names:
        is_taken = any(spelling == name for (which, _), name in _names.items() if which == setting)
        _names[setting, digest] = f"{spelling} ({digest[:6]})" if is_taken else spelling
    return _names[setting, digest]


def settings_of(run: RunFolder) -> dict[str, Any]:
    """What defines the run's computation, but for its seed."""
    settings = {k: v for k, v in flatten(run.config).items() if k not in FREE_SETTINGS}
    for name in ("seed", *SEEDS):
        settings.pop(name, None)
    contents = run.record.get("contents")
    contents = dict(contents) if isinstance(contents, dict) else {}
    contents.pop("data", None)  # rows have a fingerprint
    for name, digest in contents.items():
        if settings.get(name):
            settings[name] = _one_name(name, str(digest), str(settings[name]))
    if (rows := run.record.get("data_fingerprint")) and settings.get("data"):
        settings["data"] = _spellings.setdefault(str(rows), settings["data"])
    command = run.record.get("command")
    first = command[0] if isinstance(command, list) and command else None
    return resolved(run.record.get("script") or first, settings)


def is_seed(run: RunFolder) -> bool:
    return re.fullmatch(r"seed_\d+", run.path.name) is not None


def group_runs(runs: Sequence[RunFolder], by: Sequence[str] | None = None) -> list[list[RunFolder]]:
    """Runs that are seeds of one setting together.

    They are when they lie in one folder as seed_0, seed_1, … (a sweep's layout), or else when
    all settings but the seed are the same; with `by`, when the settings named there are. Runs of
    one setting on other rows are no seeds of it. A run of another name beside seed_0 is with it
    where its settings are the same.
    """
    groups: dict[Any, list[RunFolder]] = {}
    of_seeds = {
        run.path.absolute().parent: repr(sorted(settings_of(run).items()))
        for run in runs
        if by is None and is_seed(run)
    }
    for run in runs:
        settings = settings_of(run)
        if by is not None:
            missing = [name for name in by if name not in settings]
            if missing:
                raise ValueError(f"--group-by {missing[0]}: {run.path} has no such setting")
            key = repr([settings[name] for name in by])
        else:
            folder, key = run.path.absolute().parent, repr(sorted(settings.items()))
            if is_seed(run) or of_seeds.get(folder) == key:
                key = folder
        groups.setdefault(key, []).append(run)
    if by is not None:
        return list(groups.values())
    return [part for group in groups.values() for part in _on_same_rows(group)]


def rows_of(run: RunFolder) -> dict[str, str]:
    """Which rows it was trained and tested on, as far as its record says."""
    return {n: str(run.record[n]) for n in FINGERPRINTS if run.record.get(n)}


def _on_same_rows(runs: Sequence[RunFolder]) -> list[list[RunFolder]]:
    """The runs by their rows; one that does not say (an older one) is with the first of them."""
    parts: dict[Any, list[RunFolder]] = {}
    for run in sorted(runs, key=lambda run: len(rows_of(run)) < len(FINGERPRINTS)):
        known = tuple(rows_of(run).items())
        whole = len(known) == len(FINGERPRINTS) or not parts
        parts.setdefault(known if whole else next(iter(parts)), []).append(run)
    return [list(runs)] if len(parts) == 1 else list(parts.values())


def build_arms(paths: Sequence[str], by: Sequence[str] | None = None) -> list[Arm]:
    """Each argument is an arm: a run, or a folder of runs (its seeds); of a folder with runs of
    several settings each of these is one.

    The runs of a single folder, and runs given one by one, are put into arms by group_runs;
    where that leaves one arm only, each run is an arm of its own. Of a sweep's folder the arms are
    in the order of its plan, whose first is the baseline.
    """
    if by is None and len(paths) > 1 and not all(is_run(Path(path)) for path in paths):
        arms, places = [], []
        for path in paths:
            runs = find_runs(path)
            groups = group_runs(sorted(runs, key=plan_of(runs).place))
            arms += [Arm("", group) for group in groups]
            places += [Path(path)] if len(groups) == 1 else map(_place_of, groups)
        labels = shortest_tails([place.absolute().parts for place in places])
    else:
        runs = load_runs(paths)
        if len(paths) == 1:  # else the order is that of the arguments
            runs = sorted(runs, key=plan_of(runs).place)
        groups = group_runs(runs, by)
        if len(groups) == 1 and by is None:
            groups = [[run] for run in runs]
        arms = [Arm("", group) for group in groups]
        labels = labels_of(groups) if by is None else [_named(group[0], by) for group in groups]
    if len(arms) < 2:
        raise ValueError("nothing to compare: give two runs, or two folders of runs, at least")
    for label, arm in zip(labels, arms, strict=True):
        arm.label = label
    paths = [run.path.resolve() for arm in arms for run in arm.runs]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise ValueError(f"{twice[0]} would be in two arms")
    for arm in arms:
        arm.runs = without_repeats(arm.runs)
    return arms


def _place_of(group: Sequence[RunFolder]) -> Path:
    """The folder of an arm, or its only run."""
    return group[0].path.parent if len(group) > 1 or is_seed(group[0]) else group[0].path


def _named(run: RunFolder, names: Sequence[str]) -> str:
    settings = settings_of(run)
    return ", ".join(f"{name}={show(settings[name])}" for name in names)


def without_repeats(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Runs of the same settings, rows and seed are one draw: the first finished one stands for
    them. A seed of one source of chance alone makes no draw of its own."""
    kept: dict[Any, RunFolder] = {}
    for run in sorted(runs, key=lambda run: run.status != "finished"):
        key = repr((run.seed, sorted(settings_of(run).items()), rows_of(run)))
        first = kept.setdefault(key if run.seed is not None else id(run), run)
        if first is not run:
            sources = [name for name in SEEDS if first.config.get(name) != run.config.get(name)]
            but = f", but for {', '.join(sources)}" if sources else ""
            note = f"{run.path} has the same settings and seed{but}: left out"
            first.notes += [note] * (note not in first.notes)
    chosen = set(map(id, kept.values()))
    return [run for run in runs if id(run) in chosen]


def labels_of(groups: Sequence[Sequence[RunFolder]]) -> list[str]:
    """The folder that holds all runs of a group, as little of it as tells the groups apart.

    Groups in one folder are told apart by the settings that differ between them.
    """
    folders = [
        Path(os.path.commonpath([run.path.absolute() for run in group])).parts for group in groups
    ]
    if len(set(folders)) < len(folders):
        settings = [settings_of(group[0]) for group in groups]
        points = {repr(sorted(each.items())) for each in settings}
        if len(points) < len(settings):  # one setting, on several rows
            settings = [settings_of(group[0]) | rows_of(group[0]) for group in groups]
        names = dict.fromkeys(name for each in settings for name in each)
        differing = [name for name in names if len({show(s.get(name)) for s in settings}) > 1]
        if len(differing) > 2:  # too many to name: the first run of each must do
            return [
                group[0].path.name + (f" and {len(group) - 1} more" if len(group) > 1 else "")
                for group in groups
            ]
        return [", ".join(f"{n}={show(each.get(n))}" for n in differing) for each in settings]
    # of one run the arm's folder, too, where sweep.py put it into one
    arms = [parts[:-1] if re.fullmatch(r"seed_\d+", parts[-1]) else parts for parts in folders]
    return shortest_tails(arms if len(set(arms)) == len(arms) else folders)


def shortest_tails(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Of each path as many of its last parts as tell them all apart."""
    length = 1
    while len({parts[-length:] for parts in paths}) < len(set(paths)):
        length += 1
    return [str(Path(*parts[-length:])) for parts in paths]


# ------------------------------------------------------------------------- differences

ENVIRONMENT = (
    "device",
    "device_name",
    "world_size",
    "threads",
    "backend",
    "precision",
    "commit",
    "dirty",
)
DATA = (*FINGERPRINTS, "repairs")


def differences(arms: Sequence[Arm]) -> dict[str, list[list[str]]]:
    """{"settings" | "data and split" | "environment": [[name, value in each arm …], …]}.

    Only what differs between the arms, or (but for the seed) within one.
    """

    def settings(run: RunFolder) -> dict[str, Any]:
        return settings_of(run) | {"seed": run.seed}

    def data(run: RunFolder) -> dict[str, Any]:
        facts = {name: run.record.get(name) for name in DATA}
        return facts if lost_runs([run]) else facts | {"test rows": run.metrics.get("n")}

    def environment(run: RunFolder) -> dict[str, Any]:
        """Of all sessions: a run may have been continued on another machine."""
        sessions = []
        for session in run.sessions:
            facts = {name: session.get(name) for name in ENVIRONMENT}
            facts["commit"] = str(facts["commit"] or "")[:10]
            sessions.append(facts | flatten({"versions": session.get("versions")}))
        names = dict.fromkeys(name for facts in sessions for name in facts)
        facts = {
            name: " then ".join(dict.fromkeys(show(facts.get(name)) for facts in sessions))
            for name in names
        }
        patch = run.path / "diff.patch"
        if packed.is_file(patch):
            facts["diff.patch"] = hashlib.sha256(packed.read_bytes(patch)).hexdigest()[:10]
        return facts

    tables = {}
    sections = {"settings": settings, "data and split": data, "environment": environment}
    for section, facts_of in sections.items():
        facts = [[facts_of(run) for run in arm.runs] for arm in arms]
        rows = []
        for name in dict.fromkeys(name for arm in facts for run in arm for name in run):
            there = [[run for run in arm if name != "test rows" or name in run] for arm in facts]
            values = [list(dict.fromkeys(show(run.get(name)) for run in arm)) for arm in there]
            between = len({frozenset(arm) for arm in values if arm}) > 1
            within = name != "seed" and any(len(arm) > 1 for arm in values)
            if between or within:
                rows.append([name, *(", ".join(arm) for arm in values)])
        if rows:
            tables[section] = rows
    return tables


def require_rows(arm: Arm) -> None:
    """ValueError for a run that counts as a seed, and has no test rows that can be read; one that
    diverged is an outcome."""
    read = {run.path for run in (*arm.tested, *lost_runs(arm.runs))}
    for run in arm.runs:
        if run.path not in read:
            raise ValueError(f"{run.path}: {'; '.join(run.notes) or 'no test rows'}")


def environment_notes(arms: Sequence[Arm]) -> list[str]:
    """That more than settings differs between, or within, the arms."""
    tables = differences(arms)
    others = [row[0] for name, rows in tables.items() if name != "settings" for row in rows]
    if not others:
        return []
    return [f"note: the runs differ in {', '.join(others)}, too, which may change figures"]


def show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "-" if value is None or value == "" else str(value)


def refusal(arms: Sequence[Arm]) -> str | None:
    """Why the runs cannot be compared row by row, or None."""
    runs = [run for arm in arms for run in arm.runs]
    for name in reversed(FINGERPRINTS):
        known = {str(run.record[name]): run for run in runs if run.record.get(name)}
        if len(known) > 1:
            first, second = list(known.values())[:2]
            what = "splits" if name.startswith("split") else "data"
            return (
                f"{first.name} and {second.name} have different {what} ({name} "
                f"{first.record[name]} and {second.record[name]})"
            )
    rows = [predictions for arm in arms for predictions in arm.predictions]
    for other in rows[1:]:
        if set(rows[0].statistics).isdisjoint(other.statistics):
            return "the runs do different tasks"
        if len(rows[0]) != len(other) or (rows[0].ids != other.ids).any():
            shared = len(np.intersect1d(rows[0].ids, other.ids))
            return (
                f"the test rows are not the same: {len(rows[0])} and {len(other)}, {shared} shared"
            )
        if rows[0].labels is not None and (rows[0].labels != other.labels).any():
            return "the same test rows have other labels (shuffled in one of the runs?)"
        if (rows[0].groups != other.groups).any():
            return "the same test rows are grouped otherwise"
    return other_ruler([pair for arm in arms for pair in arm.measured])
