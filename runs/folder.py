"""Which folder a run writes to, that nobody else does, and what its run.json says."""

import contextlib
import datetime
import errno
import fcntl
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from core import State, World
from device import device_name, peak_memory
from evaluation import outcomes
from files import PROJECT, read_json, write_text
from runs.results import last_lines
from settings import FREE_SETTINGS, Settings, as_dict, current_names, flatten

SCHEMA_VERSION = 1
# Of run.json: what each session writes anew.
OWN_KEYS = (
    "schema_version",
    "status",
    "exit_reason",
    "verdicts",
    "verdict_rules",
    "script",
    "command",
    "seed",
    "world_size",
    "device",
)
FINGERPRINTS = ("data_fingerprint", "split_fingerprint")
# What --fresh deletes; other files in the folder are not ours.
RUN_FILES = (
    "run.json",
    "diff.patch",
    "bad_rows.csv",
    "report.html",
    "report",
    "tensorboard",
    "wandb",
    "baseline",
    "train",
    "test",
    "config.yaml",
)


class RunFolder:
    """The folder of a run, locked, and the record that it keeps in run.json."""

    def __init__(self, config: Settings, world: World, script: str):
        self.config, self.world, self.script = config, world, script
        self.status, self.exit_reason = "running", ""
        self.verdicts: list[str] = []
        self.facts: dict[str, Any] = {}
        self.rows_at_start: dict[str, str] = {}  # fingerprints of the rows that the run began with
        self.path: Path | None = None
        self._lock: io.TextIOBase | None = None

    # -- which one

    def open(self) -> str:
        """Find or make the folder; returns the result of a run that is finished, else "".

        Rank 0 only. ValueError where it holds another run, or one that is being written.
        """
        config = self.config
        name = config.model.removeprefix("results/").strip("/")
        name = re.sub(r"[^\w.-]+", "_", name).strip("_") or "model"
        if config.out is None and (not config.fresh or restarted_by_torchrun()):
            for record in sorted(Path("results", name).glob("*/run.json"), reverse=True):
                unfinished = read_json(record).get("status") not in (None, "finished")
                if unfinished and not self.other_settings(record.parent):
                    if self._take_lock(record.parent):
                        self.world.say(f"continuing {record.parent} (--fresh begins anew)")
                        self.path = record.parent
                        return ""
        stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        folder = Path(config.out) if config.out else Path("results", name, stamp)
        number = 1
        while not config.out and folder.exists():  # two runs begun within one second
            number += 1
            folder = folder.with_name(f"{stamp}_{number}")
        folder.mkdir(parents=True, exist_ok=True)
        if not self._take_lock(folder):
            raise ValueError(f"another process is writing to {folder}")
        self.path = folder
        is_run = any((folder / name).exists() for name in ("config.yaml", "run.json"))
        if is_run and config.fresh and not restarted_by_torchrun():
            for name in RUN_FILES:  # config.yaml last: until then it is known to be a run
                path = folder / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        begun = has_begun(folder)
        if begun and (folder / "config.yaml").exists():
            if differences := self.other_settings(folder):
                raise ValueError(
                    f"{folder} holds a run with other settings:\n  "
                    + "\n  ".join(differences)
                    + "\nuse these settings, another --out, or --fresh to begin anew"
                )
            if read_json(folder / "run.json").get("status") == "finished":
                metrics = read_json(folder / "test/metrics/metrics.json")
                verdicts = read_json(folder / "run.json").get("verdicts", [])
                return "\n".join(last_lines(metrics, verdicts))
        if not begun or not (folder / "config.yaml").exists():
            settings = as_dict(config)
            for key in ("out", "fresh", "dry_run", "stop_after"):
                settings.pop(key)
            write_text(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
        return ""

    def _take_lock(self, folder: Path) -> bool:
        lock = open(folder / ".lock", "w")
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                lock.close()
                return False
            # a network volume may have no locks
            self.world.say(f"note: {folder} has no file locks: start only one run there at a time")
        self._lock = lock
        return True

    def other_settings(self, folder: Path) -> list[str]:
        """How the settings of the run there differ from these, a line each."""
        try:
            there = yaml.safe_load((folder / "config.yaml").read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            return [f"config.yaml cannot be read: {error}"]
        script = read_json(folder / "run.json").get("script")
        if script not in (None, self.script):
            return [f"script: {script} there, {self.script} now"]
        # a setting that is newer than the run has its default, which changed nothing
        recorded = flatten(current_names(there))
        there = flatten(as_dict(type(self.config)())) | recorded
        now = flatten(as_dict(self.config))
        if "r_drop" not in recorded and now.get("label_smoothing") == 0 and "task" in now:
            there["label_smoothing"] = 0.0  # language models recorded .1 and did without
        return [
            f"{key}: {there.get(key)!r} there, {now.get(key)!r} now"
            for key in sorted((there.keys() | now.keys()) - FREE_SETTINGS)
            if there.get(key) != now.get(key)
        ]

    # -- the record

    def read_record(self) -> None:
        """What an earlier session recorded stays, also if this one ends early. Rank 0 only."""
        earlier = read_json(self.path / "run.json")
        self.verdicts = earlier.get("verdicts", [])
        self.facts = {key: value for key, value in earlier.items() if key not in OWN_KEYS}
        if has_begun(self.path):
            rows = {name: earlier.get(name) for name in FINGERPRINTS}
            self.rows_at_start = {name: value for name, value in rows.items() if value}

    def check_rows(self) -> None:
        """ValueError unless the rows are those that the run began with."""
        changed = [
            name for name, value in self.rows_at_start.items() if value != self.facts.get(name)
        ]
        if changed:
            raise ValueError(
                f"{self.path}: the rows of --data changed since the run began "
                f"({', '.join(changed)}): use the rows that it began with, another --out, "
                "or --fresh to begin anew"
            )

    def begin_session(self, state: State) -> None:
        """Record where this session begins, and on which machine."""
        now = environment_facts(self.world, state.precision, self.path)
        now |= {"world_size": self.world.size, "device": self.world.device.type}
        session = {"from_step": state.step, **now}
        self.facts |= now | {"sessions": [*self.facts.get("sessions", []), session]}
        self.write_record(state)

    def verdict(self, text: str, say: bool = True) -> None:
        """Keep a verdict, in the place of an earlier one of its kind. It is said, and written at
        once, when it is new."""
        kind = outcomes.kind_of(text)
        earlier = [v for v in self.verdicts if v == text or kind and outcomes.kind_of(v) == kind]
        self.verdicts = [v for v in self.verdicts if v not in earlier] + [text]
        if say and not earlier:
            self.world.say(f"warning: {text}")
            if self.world.rank == 0:
                self.write_record()

    def withdraw(self, *kinds: str) -> None:
        """Forget the verdicts of these kinds: what they were of has changed."""
        self.verdicts = [v for v in self.verdicts if outcomes.kind_of(v) not in kinds]

    def write_record(self, state: State | None = None) -> None:
        """run.json; state: as far as it has come. Rank 0 only."""
        if state is not None:
            self.facts |= {
                "seconds": round(state.seconds, 3),
                "steps": state.step,
                "total_steps": getattr(state.clock, "total_steps", None),
                "micro_batch": state.loader.micro_batch,  # halved when memory ran out
                "peak_memory_bytes": peak_memory(self.world.device),
            }
        record = {
            "schema_version": SCHEMA_VERSION,
            "status": self.status,
            "exit_reason": self.exit_reason,
            "verdicts": self.verdicts,
            "verdict_rules": outcomes.RULES,
            "script": self.script,
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "seed": self.config.seed,
            "world_size": self.world.size,
            "device": self.world.device.type,
            **self.facts,
            **self.rows_at_start,  # whatever a later session reads, until it may go on
        }
        write_text(self.path / "run.json", json.dumps(record, indent=1))


def restarted_by_torchrun() -> bool:
    """--max-restarts runs the same command again, --fresh included: it must not begin anew."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def has_begun(folder: Path) -> bool:
    """Whether a run trained here; one that ended before (a mistyped path) protects nothing."""
    parts = any((folder / part).exists() for part in ("baseline", "train"))
    return parts or any(folder.glob("*/train"))  # a suite's lie in the folders of its tasks


def environment_facts(world: World, precision: str, folder: Path) -> dict[str, Any]:
    """Device, versions, commit and threads; a dirty tree's diff goes to the run folder."""
    versions = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "tokenizers", "datasets", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)

    def git(*words: str) -> str:
        command = ["git", "-C", str(PROJECT), *words]
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace")
        return answer.stdout.strip() if answer.returncode == 0 else ""

    try:
        commit, difference = git("rev-parse", "HEAD"), git("diff", "HEAD")
        untracked = git("ls-files", "--others", "--exclude-standard")
    except OSError:  # no git on this machine
        commit = difference = untracked = ""
    if difference:
        write_text(folder / "diff.patch", difference + "\n")
    return {
        "device_name": device_name(world.device),
        "backend": world.backend if world.size > 1 else None,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "versions": versions,
        "commit": commit,
        "dirty": bool(difference or untracked),
    }
