"""Which folder a run writes to, that nobody else does, and what its run.json says."""

import contextlib
import datetime
import errno
import fcntl
import functools
import hashlib
import importlib.metadata
import io
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

import claims
from core import State, World
from device import device_name, peak_memory
from evaluation import outcomes
from files import PROJECT, content_digest, read_json, read_yaml, write_text
from runs.contents import (
    BEGINS_ANEW,
    delete_run,
    has_begun,
    is_run,
    refuse_others,
    sweep,
)
from runs.results import last_lines
from seal import write_record
from settings import (
    FREE_SETTINGS,
    Settings,
    as_dict,
    current_names,
    field_types,
    flatten,
    model_name,
    published_run,
)

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
    "files",
    "digest",
)
FINGERPRINTS = ("data_fingerprint", "split_fingerprint")


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
        self._keeper: claims.Keeper | None = None

    # -- which one

    def open(self) -> str:
        """Find or make the folder; returns the result of a run that is finished, else "".

        Rank 0 only. ValueError where it holds another run, or one that is being written, or is no
        run and has names of its own that a run would write.
        """
        try:
            result = self._open()
        except BaseException:
            self.close()
            raise
        if result:
            self.close()
        return result

    def _open(self) -> str:
        config, restarted = self.config, restarted_by_torchrun()
        earlier = [] if config.out else newest_first(self._home())
        folder = self._unfinished(earlier) if restarted or not config.fresh else None
        if folder is None:
            folder = Path(config.out) if config.out else self._new_folder()
            refuse_others(folder)
            folder.mkdir(parents=True, exist_ok=True)
            if not self._take(folder):
                raise ValueError(f"another process is writing to {folder}")
        self.path = folder
        deletes = read_json(folder / "run.json").get("exit_reason") == BEGINS_ANEW
        if deletes or config.fresh and is_run(folder) and not restarted:
            delete_run(folder)
        sweep(folder)
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
        if not (folder / "run.json").exists():
            self.facts = {"id": secrets.token_hex(8)}
            if config.out is None:
                self.facts["number"] = 1 + max((number_of(each) for _, each in earlier), default=0)
            self.write_record()
        return ""

    def _home(self) -> Path:
        """Where runs of this model are that were given no --out."""
        name = model_name(as_dict(self.config))
        if Path(name).exists() and Path(os.path.abspath(name)).is_relative_to(Path.cwd()):
            name = os.path.relpath(name)  # one folder for ./tiny and tiny
        name = name.removeprefix("results/").strip("/")
        return Path("results", re.sub(r"[^\w.-]+", "_", name).strip("_") or "model")

    def _new_folder(self) -> Path:
        stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        folder, number = self._home() / stamp, 1
        while folder.exists():  # two runs begun within one second
            number += 1
            folder = folder.with_name(f"{stamp}_{number}")
        return folder

    def _unfinished(self, runs: list[tuple[Path, dict[str, Any]]]) -> Path | None:
        """The first of them that waits to be continued with these settings; locked."""
        for folder, record in runs:
            waits = record.get("status") not in (None, "finished")
            if waits and not self.other_settings(folder) and self._take(folder):
                self.world.say(f"continuing {folder} (--fresh begins anew)")
                return folder
        return None

    def _take(self, folder: Path) -> bool:
        """Whether nobody else writes to the folder, and none will from now on. What a lock does not
        know, of another machine or on a volume without locks, a claim does (claims.py)."""
        lock = open(folder / ".lock", "w")
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                lock.close()
                return False
        claim = claims.claim_run(folder, self.world.say)
        if claim is None:
            lock.close()
            return False
        self._lock, self._keeper = lock, claims.Keeper(claim)
        return True

    def require_claim(self) -> None:
        """claims.ClaimLost where another process writes here now. Rank 0 only."""
        if self._keeper is not None:
            self._keeper.require()

    def close(self) -> None:
        """The next process need not wait for a sign of this one."""
        if self._keeper is not None:
            self._keeper.end()
            self._keeper = None

    def other_settings(self, folder: Path) -> list[str]:
        """How the settings of the run there differ from these, a line each."""
        try:
            there = read_yaml(folder / "config.yaml")
        except ValueError as error:
            return [str(error)]
        script = read_json(folder / "run.json").get("script")
        if script not in (None, self.script):
            return [f"script: {script} there, {self.script} now"]
        # a setting that is newer than the run has its default, which changed nothing
        recorded = flatten(current_names(there))
        there = flatten(as_dict(type(self.config)())) | recorded
        now = flatten(as_dict(self.config))
        if "r_drop" not in recorded and now.get("label_smoothing") == 0 and "task" in now:
            there["label_smoothing"] = 0.0  # language models recorded .1 and did without
        if "minus_one" not in recorded:  # whom older runs took for A; rows have a fingerprint
            there["minus_one"] = now.get("minus_one")
        if recorded.get("cache_features") and "freeze" in now and now["cache_features"] is None:
            there["cache_features"] = None  # was the default; run.json knows what is done
        record = read_json(folder / "run.json")
        known, contents = record.get("contents") or {}, self.contents
        differences = []
        for key in sorted((there.keys() | now.keys()) - FREE_SETTINGS):
            was, value = there.get(key), now.get(key)
            if key in known and key in contents:  # whatever its name was and is
                # the rows of an unfinished run are looked at when it goes on
                by_rows = key == "data" and was == value and record.get("status") != "finished"
                if known[key] != contents[key] and not by_rows:
                    what = "holds something else now" if was == value else f"there, {value!r} now"
                    differences.append(f"{key}: {was!r} {what}")
            elif was != value and not (key in contents and is_same_file(was, value)):
                differences.append(f"{key}: {was!r} there, {value!r} now")
        return differences

    @functools.cached_property
    def contents(self) -> dict[str, str]:
        """The digests of the files and folders that settings name, by setting: a path may be
        written in many ways, and what is there may change."""
        types = field_types(type(self.config))
        settings = flatten(as_dict(self.config))  # which does not count as reading them
        digests = {
            name: content_digest(Path(settings[name]))
            for name in sorted(types.keys() - FREE_SETTINGS)
            if types[name] in (str, str | None) and settings[name]
        }
        return {name: digest for name, digest in digests.items() if digest}

    # -- the record

    def read_record(self) -> None:
        """What an earlier session recorded stays, also if this one ends early. Rank 0 only."""
        earlier = read_json(self.path / "run.json")
        self.verdicts = earlier.get("verdicts", [])
        self.facts = {key: value for key, value in earlier.items() if key not in OWN_KEYS}
        # older runs had no id of their own; trackers know them by this one
        path = hashlib.sha256(str(self.path.absolute()).encode()).hexdigest()[:16]
        self.facts.setdefault("id", path)
        if reference := published_run(self.config):
            self.facts["published"] = reference
        if not has_begun(self.path):
            self.facts["contents"] = self.contents
        else:
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
        self.require_claim()
        if state is not None:
            self.facts |= {
                "seconds": round(state.seconds, 3),
                "steps": state.step,
                "total_steps": getattr(state.clock, "total_steps", None),
                "micro_batch": state.loader.micro_batch,  # halved when memory ran out
                "peak_memory_bytes": peak_memory(self.world.device),
            }
            if state.evaluation_halvings:  # of its rows, as memory ran out there
                self.facts["evaluation_halvings"] = state.evaluation_halvings
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
        write_record(self.path, record)


def is_same_file(first: Any, second: Any) -> bool:
    """Whether two paths lead to one file or folder."""
    try:
        return os.path.samefile(first, second)
    except (OSError, TypeError):
        return False


def restarted_by_torchrun() -> bool:
    """--max-restarts runs the same command again, --fresh included: it must not begin anew."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def newest_first(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The runs in results/MODEL and their records; the clock that named them may have gone back."""
    runs = [(path.parent, read_json(path)) for path in folder.glob("*/run.json")]
    return sorted(runs, key=lambda run: (number_of(run[1]), run[0].name), reverse=True)


def number_of(record: dict[str, Any]) -> int:
    """Which run of results/MODEL it is; 0 for those of older versions."""
    number = record.get("number")
    return number if isinstance(number, int) else 0


def parameter_facts(model: nn.Module, trained: Iterable[nn.Parameter]) -> dict[str, int]:
    """How many numbers a model has, each once, and how many of them are trained."""
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": sum(p.numel() for p in trained),
    }


@functools.cache
def of_git() -> tuple[str, str, str]:
    """Commit, diff and new files of the code that this process has read: asked once."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(PROJECT), *words]
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace")
        return answer.stdout.strip() if answer.returncode == 0 else ""

    try:
        commit, difference = git("rev-parse", "HEAD"), git("diff", "HEAD")
        return commit, difference, git("ls-files", "--others", "--exclude-standard")
    except OSError:  # no git on this machine
        return "", "", ""


def environment_facts(world: World, precision: str, folder: Path) -> dict[str, Any]:
    """Device, versions, commit and threads; a dirty tree's diff goes to the run folder."""
    versions = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "tokenizers", "datasets", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    commit, difference, untracked = of_git()
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
