"""Run folders, read in whatever state they are: running, cut off, torn, or of a later version.

    run = load_run("results/minilm/2026-11-22_02-15-00")
    run.status, run.config["lr"], run.metrics["accuracy"], run.notes

What cannot be read becomes a line in `notes`, never an exception; only a path that holds no run
is refused. A path may lie in a packed folder (reports/packed.py).
"""

import difflib
import json
import math
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

import claims
import seal
from evaluation import outcomes
from reports import packed
from settings import current_names

SCHEMA_VERSION = 1
PLAN = "sweep.yaml"
# Notes on what lies beside a run, and not on the run.
BESIDE = "beside it, "


@dataclass
class RunFolder:
    """One run: `config` (config.yaml), `record` (run.json), `metrics` (test/metrics)."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    baseline: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The last two parts of the path: model and time, or arm and seed."""
        return "/".join(self.path.absolute().parts[-2:])

    @property
    def evaluated(self) -> dict[str, Any] | None:
        """Of an evaluation of a run on other rows: which run, and which rows."""
        facts = self.record.get("evaluated")
        return facts if isinstance(facts, dict) else None

    @property
    def status(self) -> str:
        return str(self.record.get("status", "unknown"))

    @property
    def verdicts(self) -> list[str]:
        verdicts = self.record.get("verdicts", [])
        return [str(verdict) for verdict in verdicts] if isinstance(verdicts, list) else []

    @property
    def kinds(self) -> list[str]:
        """Of the verdicts, each once."""
        return list(dict.fromkeys(kind for v in self.verdicts if (kind := outcomes.kind_of(v))))

    @property
    def failures(self) -> list[str]:
        """The kinds that say that its model is no answer: diverged, collapsed …"""
        kinds = outcomes.failures(self.verdicts)
        # older runs ended with an error where an answer was not finite
        trained = self.status == "failed" and number(self.record.get("steps"))
        if trained and re.search(r"NaN or [Ii]nf", self.exit_reason):
            kinds += ["diverged"] * ("diverged" not in kinds)
        return kinds

    @staticmethod
    def kind_of(verdict: str) -> str:
        return outcomes.kind_of(verdict)

    @property
    def exit_reason(self) -> str:
        """In a line: an error of a loader's process brings its traceback along."""
        lines = str(self.record.get("exit_reason") or "").strip().splitlines()
        return " … ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))

    @property
    def digest(self) -> str:
        """Of the record of a run that is over; a copy has the same, a bundle has that of the run it
        is of. "" where there is none, or the record was changed."""
        if self.record.get("digest") != seal.digest_of(self.record):
            return ""
        bundled = self.record.get("bundled")
        return str((bundled if isinstance(bundled, dict) else self.record).get("digest") or "")

    @property
    def seed(self) -> Any:
        return self.record.get("seed", self.config.get("seed"))

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """The record for each start of the run, with the device, versions and commit it met."""
        sessions = self.record.get("sessions")
        sessions = sessions if isinstance(sessions, list) else []
        sessions = [each for each in sessions if isinstance(each, dict)]
        # what an older session did not write down is unknown, not what the last one met
        common = {k: v for k, v in self.record.items() if not any(k in each for each in sessions)}
        return [common | each for each in sessions] or [self.record]

    @cached_property
    def lines(self) -> tuple[list[dict], list[dict]]:
        """(training lines, evaluation lines) of train/metrics/metrics.jsonl."""
        log = MetricsLog(self.path)
        log.read()
        self.notes += log.notes() if self.evaluated is None else []  # which has no training
        return log.training, log.evaluations

    @cached_property
    def ends(self) -> tuple[dict, list[dict]]:
        """(last training line with a finite loss, evaluation lines): all that a table needs of a
        long log."""
        path = self.path / "train/metrics/metrics.jsonl"
        try:
            lines = packed.read_bytes(path).splitlines()
        except OSError:
            return {}, []
        last: dict = {}
        for line in reversed(lines):
            if b'"train_loss"' in line and (row := _json_object(line)):
                last = last or row
                if number(row.get("train_loss")) is not None:
                    last = row
                    break
        rows = [_json_object(line) for line in lines if b'"train_loss"' not in line]
        return last, [row for row in rows if row]


def load_run(path: str | Path) -> RunFolder:
    """Read a run folder. ValueError when `path` is none."""
    path = Path(path)
    if not packed.is_dir(path):
        raise ValueError(f"{path}: {not_there(path)}")
    if not is_run(path):
        raise ValueError(f"{path} is no run folder: it has neither run.json nor config.yaml")
    run = RunFolder(path)
    run.record = _read(path / "run.json", run.notes, needed=True)
    run.config = current_names(_read(path / "config.yaml", run.notes, needed=True))
    run.metrics = _read(path / "test/metrics/metrics.json", run.notes)
    run.baseline = _read(path / "baseline/metrics/metrics.json", run.notes)
    if not isinstance(run.metrics.get("primary", ""), str):
        run.notes.append(f"its primary metric is no name: {clean(run.metrics.pop('primary'))[:60]}")
    version = run.record.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        run.notes.append(
            f"written by a later version (schema {version}, this one knows {SCHEMA_VERSION}): "
            "what it added is not shown"
        )
    if run.status == "running":
        age = seconds_since(path / "train/metrics/metrics.jsonl", path / "run.json")
        when = f"last written {duration(age)} ago"
        when = "packed before its end" if packed.is_packed(path) else when
        run.notes.append(f"still running, or killed: {when}")
    elif run.status in ("stopped", "failed") and "diverged" not in run.kinds:  # said by a verdict
        run.notes.append(f"{run.status}: {run.exit_reason or 'no reason given'}")
    if run.status == "finished" and not run.metrics:
        run.notes.append("finished, but without test/metrics/metrics.json")
    return run


def not_there(path: Path) -> str:
    """What is wrong with a path that is no folder, and what was meant perhaps."""
    if path.exists():
        return "a file, expected the folder of a run or of runs"
    above = next((folder for folder in path.parents if folder.is_dir()), path)
    part = path.relative_to(above).parts[0] if above != path else path.name
    there = [] if not above.is_dir() else [each for each in above.iterdir() if each.is_dir()]
    near = difflib.get_close_matches(part, [each.name for each in there], 1)
    return "no such folder" + (f": did you mean {above / near[0]}?" if near else "")


def is_run(path: Path) -> bool:
    return packed.is_file(path / "run.json") or packed.is_file(path / "config.yaml")


def find_runs(path: str | Path, copies: bool = False) -> list[RunFolder]:
    """The run at `path`, or all runs below it, sorted by path. ValueError when there is none.

    copies: with those of a run that is there as well, whose files may be others by now.
    """
    path = Path(path)
    if packed.is_dir(path) and not is_run(path):
        files = packed.files_below(path)
        folders = sorted({file.parent for file in files if file.name == "run.json"})
        # the tasks of a suite lie below their run
        folders = [folder for folder in folders if not any(map(is_run, _between(folder, path)))]
        # nor do the trials behind a sweep's tuned settings count as results
        trials = trials_among(folders)
        folders = [folder for folder in folders if folder not in trials] or folders
        # nor does what a sweep has not published: it may be there twice
        places = {folder: claims.place_of(folder) for folder in folders}
        waiting = {p for p in places.values() if p and not is_run(p)}
        folders = [folder for folder in folders if places[folder] is None]
        if not folders and waiting:
            raise ValueError(f"{path}: none of its {len(waiting)} runs has ended (sweep.py status)")
        if not folders:
            raise ValueError(f"{path}: no run folder in it (none has a run.json)")
        runs = [load_run(folder) for folder in folders]
        if waiting:
            which = f"{len(waiting)} runs that have not ended, or failed, are"
            which = "a run that has not ended, or failed, is" if len(waiting) == 1 else which
            runs[0].notes.append(f"{BESIDE}{which} left out (sweep.py status)")
        runs = runs if copies else without_copies(runs)
        runs[0].notes += [f"{BESIDE}{line}" for line in packed.unread(path)]
        for link in (file for file in files if file.is_symlink() and not file.exists()):
            if not any(map(is_run, _between(link, path))):
                runs[0].notes.append(f"{BESIDE}the link {link.name} leads to nothing")
        return runs
    return [load_run(path)]


def without_copies(runs: Iterable[RunFolder]) -> list[RunFolder]:
    """The runs, each once: a bundle of runs, or a copy, may lie beside them. Of several the first
    that is unpacked stays, and says which others there are."""
    kept: dict[Any, RunFolder] = {}
    runs = list(runs)
    for run in sorted(runs, key=lambda run: packed.is_packed(run.path)):
        first = kept.setdefault(run.digest or id(run), run)
        if first is not run:
            first.notes.append(f"{BESIDE}{run.path} is a copy of it: left out")
    chosen = set(map(id, kept.values()))
    return [run for run in runs if id(run) in chosen]


def trials_among(folders: Iterable[Path]) -> set[Path]:
    """Those of runs by which a sweep tuned an arm, and their tasks: OUT/arm/tune/value, beside
    OUT/arm/seed_0 or below OUT/sweep.yaml. A folder of any other place may be called tune."""
    folders = list(folders)
    arms = {folder.parent for folder in folders if re.fullmatch(r"seed_\d+", folder.name)}

    def is_trial(run: Path) -> bool:
        tunes = [folder for folder in run.parents if folder.name == "tune"]
        return any(t.parent in arms or packed.is_file(t.parent.parent / PLAN) for t in tunes)

    return set(filter(is_trial, folders))


def _between(folder: Path, top: Path) -> list[Path]:
    return [parent for parent in folder.parents if parent.is_relative_to(top) and parent != top]


def load_runs(paths: Iterable[str | Path], copies: bool = False) -> list[RunFolder]:
    """The runs at or below each path, none twice; copies: as find_runs."""
    runs = {run.path.resolve(): run for path in paths for run in find_runs(path, copies)}
    return list(runs.values())


def shared_notes(runs: Iterable[RunFolder]) -> list[str]:
    """The runs' notes, one line each, the same one of many runs once."""
    said: dict[str, list[Path]] = {}
    for run in runs:
        for note in run.notes:
            said.setdefault(note, []).append(run.path)
    return [
        f"note: {paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}: {note}"
        for note, paths in said.items()
    ]


class MetricsLog:
    """train/metrics/metrics.jsonl, also while it is being written: read() takes what is new."""

    def __init__(self, run: Path):
        self.path = run / "train/metrics/metrics.jsonl"
        self.training: list[dict] = []
        self.evaluations: list[dict] = []
        self.unreadable, self.rest = 0, b""
        self._offset = self._inode = 0

    def read(self) -> bool:
        """Take the lines that were added; True when there were any.

        A continued run cuts lines off that it will write again: then all is read anew.
        """
        try:
            if packed.is_packed(self.path):  # once: nobody writes to it
                return not self._offset and self._take(packed.read_bytes(self.path))
            with open(self.path, "rb") as file:
                facts = os.fstat(file.fileno())
                if facts.st_size < self._offset or facts.st_ino != (self._inode or facts.st_ino):
                    self.__init__(self.path.parents[2])
                self._inode = facts.st_ino
                file.seek(self._offset)
                added = file.read()
        except OSError:
            return False
        return self._take(added)

    def _take(self, added: bytes) -> bool:
        self._offset += len(added)
        *lines, self.rest = (self.rest + added).split(b"\n")
        for line in lines:
            if row := _json_object(line):
                (self.training if "train_loss" in row else self.evaluations).append(row)
            elif line.strip():
                self.unreadable += 1
        return bool(lines)

    def notes(self) -> list[str]:
        notes = []
        if not packed.is_file(self.path):
            notes.append("no train/metrics/metrics.jsonl yet")
        if self.unreadable:
            notes.append(f"{self.unreadable} unreadable lines of metrics.jsonl are left out")
        if self.rest.strip():
            notes.append("the last line of metrics.jsonl is torn (or being written): left out")
        return notes


def _json_object(line: bytes) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else {}


def _read(path: Path, notes: list[str], needed: bool = False) -> dict[str, Any]:
    try:
        text = packed.read_bytes(path).decode("utf-8")
        if path.suffix == ".json":
            content = json.loads(text)
        else:
            content = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        if needed:
            notes.append(f"{path.name} is missing")
        return {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        notes.append(f"{path.name} cannot be read: {str(error).splitlines()[0]}")
        return {}
    if not isinstance(content, dict):
        notes.append(f"{path.name} holds no names and values")
        return {}
    return content


def number(value: Any) -> float | None:
    """A finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # an integer that no float can hold
        return None


def interval_of(metrics: dict[str, Any], name: str) -> tuple[float, float] | None:
    """The 95 % interval of a metric, when it is one."""
    interval = metrics.get(f"{name}_ci95")
    if not isinstance(interval, list) or len(interval) != 2 or number(metrics.get(name)) is None:
        return None
    low, high = map(number, interval)
    return None if low is None or high is None else (low, high)


# C0, C1 and 7F but tab and newline, marks that reorder text, and what UTF-8 cannot hold.
_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def clean(text: Any) -> str:
    """Text from data without control characters: they could rewrite a terminal, or break a page."""
    return _CONTROLS.sub("", str(text))


def seconds_since(*paths: Path) -> float:
    """Seconds since the newest of these files was written."""
    times = [path.stat().st_mtime for path in paths if path.exists()]
    return max(0.0, time.time() - max(times)) if times else 0.0


def duration(seconds: float) -> str:
    """45 s, 12 min, 3.2 h: as much as a reader wants to know."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
