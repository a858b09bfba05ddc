"""The run folder: what a run writes while it trains, and how it comes back after a kill.

with core.distributed(config) as world, Run(config, world) as run:
    run.resume(state, evaluate)
    while not run.done(state):
        run.after_step(state, core.train_step(state, loss_sum))
    run.finish(state, test)
"""

import contextlib
import csv
import dataclasses
import datetime
import difflib
import errno
import fcntl
import heapq
import importlib.metadata
import io
import json
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import yaml

from core import (
    PROJECT,
    DiskFull,
    LossSum,
    State,
    Stopped,
    World,
    damage,
    device_name,
    disk_error,
    peak_memory,
    train_step,
    write_folder,
    write_text,
)
from evaluation.monitor import Monitor, check_trackers, open_trackers
from settings import FREE_SETTINGS, Aliases, Settings, flatten, parse_settings

SCHEMA_VERSION = 1
# Of run.json: what each session writes anew.
OWN_KEYS = (
    *("schema_version", "status", "exit_reason", "verdicts", "script", "command"),
    *("seed", "world_size", "device"),
)
FINGERPRINTS = ("data_fingerprint", "split_fingerprint")
# What --fresh deletes; other files in the folder are not ours.
RUN_FILES = (
    *("run.json", "diff.patch", "bad_rows.csv", "report.html", "report", "tensorboard", "wandb"),
    *("baseline", "train", "test", "config.yaml"),
)


class Run:
    """The run folder: finds or makes it, logs, saves, resumes, and says how the run ended."""

    def __init__(self, config: Settings, world: World):
        self.config, self.world = config, world
        # two scripts may have the same settings: which one it was is a part of the run
        self.script = Path(sys.modules[type(config).__module__].__file__ or "").name
        self.status, self.exit_reason = "running", ""
        self.verdicts: list[str] = []
        self.facts: dict[str, Any] = {}
        self.signal: str | None = None
        self._metrics: io.TextIOBase | None = None
        self._lock: io.TextIOBase | None = None
        self._trackers: list[Any] = []
        self.monitor = Monitor(world.device) if config.monitor and world.rank == 0 else None
        self._bar: Any = None
        self._recent: list[float] = []
        self._steps_here = 0
        self._step_started = 0.0
        self._said = 0.0
        self.training = False
        self._old_handlers: dict[int, Any] = {}
        self.rows_then: dict[str, str] = {}

    # -- entering and leaving

    def __enter__(self) -> "Run":
        check_trackers(self.config.log)
        found = None
        if self.world.rank == 0 and not self.config.dry_run:
            try:
                found = self._open_folder()
            except (ValueError, OSError, DiskFull) as error:
                found = error
        found = self.world.from_rank_0(found)
        if isinstance(found, Exception):
            raise SystemExit(str(found)) if isinstance(found, ValueError) else found
        if self.config.dry_run:
            self.folder = Path("dry_run")
            return self
        self.folder, finished = found
        if finished:
            self.world.say(f"{self.folder} is finished:")
            self.world.say(finished)
            raise SystemExit(0)
        if self.world.rank == 0:  # what an earlier session recorded stays if this one ends early
            earlier = _read_json(self.folder / "run.json")
            self.verdicts = earlier.get("verdicts", [])
            self.facts = {key: value for key, value in earlier.items() if key not in OWN_KEYS}
            if has_begun(self.folder):
                known = {name: earlier.get(name) for name in FINGERPRINTS}
                self.rows_then = {name: value for name, value in known.items() if value}
        # last: were __enter__ left by an error, nothing would put the handlers back
        self._old_handlers = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        }
        return self

    def _open_folder(self) -> tuple[Path, str]:
        """(folder, result of an already finished run or ""); rank 0 only."""
        config = self.config
        name = config.model.removeprefix("results/").strip("/")
        name = re.sub(r"[^\w.-]+", "_", name).strip("_") or "model"
        if config.out is None and (not config.fresh or restarted_by_torchrun()):
            for path in sorted(Path("results", name).glob("*/run.json"), reverse=True):
                record = _read_json(path)
                if record.get("status") not in (None, "finished") and not self._other_settings(
                    path.parent
                ):
                    if self._take_lock(path.parent):
                        self.world.say(f"continuing {path.parent} (--fresh begins anew)")
                        return path.parent, ""
        stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        folder = Path(config.out) if config.out else Path("results", name, stamp)
        number = 1
        while not config.out and folder.exists():  # two runs begun within one second
            number += 1
            folder = folder.with_name(f"{stamp}_{number}")
        folder.mkdir(parents=True, exist_ok=True)
        if not self._take_lock(folder):
            raise ValueError(f"another process is writing to {folder}")
        is_run = any((folder / name).exists() for name in ("config.yaml", "run.json"))
        if is_run and config.fresh and not restarted_by_torchrun():
            for name in RUN_FILES:  # config.yaml last: until then it is known to be a run
                path = folder / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        begun = has_begun(folder)
        if begun and (folder / "config.yaml").exists():
            if differences := self._other_settings(folder):
                raise ValueError(
                    f"{folder} holds a run with other settings:\n  "
                    + "\n  ".join(differences)
                    + "\nuse these settings, another --out, or --fresh to begin anew"
                )
            elif _read_json(folder / "run.json").get("status") == "finished":
                return folder, self._summary(folder)
        if not begun or not (folder / "config.yaml").exists():
            settings = dataclasses.asdict(config)
            for key in ("out", "fresh", "dry_run", "stop_after"):
                settings.pop(key)
            write_text(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
        return folder, ""

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

    def _other_settings(self, folder: Path) -> list[str]:
        try:
            theirs = yaml.safe_load((folder / "config.yaml").read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            return [f"config.yaml cannot be read: {error}"]
        script = _read_json(folder / "run.json").get("script")
        if script not in (None, self.script):
            return [f"script: {script} there, {self.script} now"]
        theirs, ours = flatten(theirs), flatten(dataclasses.asdict(self.config))
        return [
            f"{key}: {theirs.get(key)!r} there, {ours.get(key)!r} now"
            for key in sorted((theirs.keys() | ours.keys()) - FREE_SETTINGS)
            if theirs.get(key) != ours.get(key)
        ]

    @staticmethod
    def _summary(folder: Path) -> str:
        metrics = _read_json(folder / "test/metrics/metrics.json")
        return "\n".join(summary_lines(metrics)) or "  (it has no test metrics)"

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        if not self.training:  # nothing to save yet
            raise KeyboardInterrupt(self.signal)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> bool:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        if self._bar is not None:
            self._bar.close()
        if self._metrics is not None:
            with contextlib.suppress(OSError):  # on a full disk its last line is still waiting
                self._metrics.close()
        for tracker in self._trackers:
            with contextlib.suppress(Exception):
                tracker.close()
        if isinstance(error, SystemExit) and not error.code:
            return False
        if isinstance(error, KeyboardInterrupt):
            self.status, self.exit_reason = "stopped", self.signal or "SIGINT"
        elif isinstance(error, SystemExit) and error.code == 143:  # a task of this suite
            self.status, self.exit_reason = "stopped", "before training began"
        elif error is not None:
            self.status, self.exit_reason = "failed", f"{kind.__name__}: {error}"
        if self.world.rank == 0 and not self.config.dry_run:
            with contextlib.suppress(Exception):
                self.write_record()
        if isinstance(error, KeyboardInterrupt):
            self.world.say(f"stopped by {self.exit_reason} before training began")
            raise SystemExit(143)
        return False

    # -- the record

    def record(self, **facts: Any) -> None:
        """Facts for run.json, e.g. data_fingerprint, split_fingerprint, rows."""
        self.facts |= facts

    def verdict(self, text: str) -> None:
        """A finding about the run (collapsed, diverged, overfitted): said once, kept."""
        if text not in self.verdicts:
            self.verdicts.append(text)
            self.world.say(f"warning: {text}")

    def write_record(self, state: State | None = None) -> None:
        if state is not None:
            self.facts |= {"seconds": round(state.seconds, 3), "steps": state.step}
            self.facts["total_steps"] = getattr(state.clock, "total_steps", None)
            self.facts["micro_batch"] = state.loader.micro_batch  # halved when memory ran out
            self.facts["peak_memory_bytes"] = peak_memory(self.world.device)
        write_text(
            self.folder / "run.json",
            json.dumps(
                {
                    "schema_version": SCHEMA_VERSION,
                    "status": "running" if self.status == "early" else self.status,
                    "exit_reason": self.exit_reason,
                    "verdicts": self.verdicts,
                    "script": self.script,
                    "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
                    "seed": self.config.seed,
                    "world_size": self.world.size,
                    "device": self.world.device.type,
                    **self.facts,
                    **self.rows_then,  # whatever a later session found, until it may go on
                },
                indent=1,
            ),
        )

    # -- training

    def resume(self, state: State, evaluate: Callable[[], dict[str, float]]) -> None:
        """Load the newest whole checkpoint, if any, and make all ranks equal.

        evaluate() gives validation metrics, with `val_loss` to choose the best weights by.
        """
        self.evaluate = evaluate
        self.training = True
        state.stop_requested = lambda: self.signal is not None
        saved: dict | None = None

        def load() -> None:
            nonlocal saved
            self._check_rows()
            saved = self._load_newest(state)
            if saved is not None:
                state.load_state_dict(saved)
            self._cut_metrics(state.step, state.evaluation_pending)
            now = environment_facts(self.world, state.precision, self.folder)
            now |= {"world_size": self.world.size, "device": self.world.device.type}
            session = {"from_step": state.step, **now}
            self.facts |= now | {"sessions": [*self.facts.get("sessions", []), session]}
            self.write_record(state)
            self._trackers = open_trackers(
                self.config.log, self.folder, dataclasses.asdict(self.config), state.step
            )

        self._on_rank_0(load)
        saved = self.world.from_rank_0(saved)
        if saved is not None and self.world.rank != 0:
            state.load_state_dict(saved)
        state.share()
        if state.step:
            self.world.say(f"continuing at step {state.step}")
        self._seconds_before, self._started = state.seconds, time.perf_counter()
        self._step_started = self._started
        total = getattr(state.clock, "total_steps", None)
        if self.world.rank == 0 and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=state.step, unit="step", dynamic_ncols=True)
        try:
            if state.evaluation_pending:
                self._evaluate(state)
        except Stopped:
            return self._stop(state, self._agree_on_signal())
        self._check_patience(state)

    def _check_rows(self) -> None:
        """A run continues only on the rows that it began with."""
        changed = [name for name, then in self.rows_then.items() if then != self.facts.get(name)]
        if changed:
            raise ValueError(
                f"{self.folder}: the rows of --data changed since the run began "
                f"({', '.join(changed)}): use the rows of then, another --out, or --fresh to begin "
                "anew"
            )

    def _load_newest(self, state: State) -> dict | None:
        """Weights into the model; returns the rest of the state, on the CPU."""
        from safetensors.torch import load_model

        weights = self.folder / "train/weights"
        for leftover in [*weights.glob("*.tmp"), *weights.glob("step_*.old")]:
            shutil.rmtree(leftover)
        for old in weights.glob("*.old"):  # killed between the two renames of best
            kept = old.with_suffix("")
            shutil.rmtree(old) if kept.exists() else old.rename(kept)
        for folder in sorted(weights.glob("step_????????"), reverse=True):
            problem = damage(folder)
            if problem is None:
                try:
                    # on the CPU: each rank's optimizer moves the values to its own device
                    saved = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
                    load_model(state.kept, folder / "model.safetensors")
                    return saved
                except pickle.UnpicklingError:
                    problem = "state.pt holds more than tensors and plain values"
            aside = folder.with_name(f"{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            self.world.say(f"{folder} is damaged ({problem}): set aside as {aside.name}")
        return None

    def _cut_metrics(self, step: int, evaluation_pending: bool) -> None:
        """Forget the lines after `step` (and a torn last one): they will be written again.

        So will an evaluation of `step` itself that the checkpoint does not know of.
        """
        path = self.folder / "train/metrics/metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                again = evaluation_pending and "train_loss" not in found and found["step"] == step
                if found["step"] <= step and not again:
                    kept.append(line + "\n")
        write_text(path, "".join(kept))
        self._metrics = open(path, "a", encoding="utf-8", buffering=1)

    def log(self, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        if self._metrics is not None:
            try:
                self._metrics.write(json.dumps(_finite(line)) + "\n")
            except OSError as error:
                raise disk_error(error, self.folder / "train/metrics/metrics.jsonl") from error
            for tracker in list(self._trackers):
                try:
                    tracker.log(line)
                except Exception as error:  # a copy of the log is not worth the run
                    self._trackers.remove(tracker)
                    self.world.say(f"warning: no more logging to {tracker.name}: {error}")

    def done(self, state: State) -> bool:
        """Whether to leave the training loop; all ranks agree since all decide from sums."""
        return state.clock.done or self.status != "running"

    def after_step(self, state: State, stats: dict[str, float] | None) -> None:
        """Log the step; evaluate, save, stop early or stop for a signal where that is due."""
        config, now = self.config, time.perf_counter()
        state.seconds = self._seconds_before + now - self._started
        if stats is None:
            return self._stop(state, self._agree_on_signal())
        took = max(now - self._step_started, 1e-9)
        self._log_step(state, stats, took)
        self._steps_here += 1
        self._check_health(state, stats["train_loss"])
        steps = state.loader.steps_per_epoch
        if state.evaluation_due is not None:
            evaluate_due = state.evaluation_due()
        else:
            evaluate_due = state.clock.done or state.step % (config.eval_every or steps) == 0
        try:
            if evaluate_due:
                state.evaluation_pending = True
                self._evaluate(state)
        except Stopped:
            return self._stop(state, self._agree_on_signal())
        save_due = evaluate_due if config.save_every is None else False
        save_due = save_due or bool(config.save_every and state.step % config.save_every == 0)
        # a new best is saved with the state that knows of it
        improved = evaluate_due and state.best_step == state.step
        if save_due or improved or state.clock.done or self.status != "running":
            self.save(state)
        if config.stop_after and self._steps_here >= config.stop_after and not state.clock.done:
            return self._stop(state, f"--stop_after {config.stop_after}")
        self._step_started = time.perf_counter()

    def _agree_on_signal(self) -> str:
        names = self.world.gather_rows([self.signal] if self.signal else [])
        return names[0] if names else "signal"

    def _log_step(self, state: State, stats: dict[str, float], took: float) -> None:
        per_second = {
            "examples_per_second": stats.pop("examples_in_step") / took,
            "tokens_per_second": stats.pop("tokens_in_step") / took,
        }
        line = {"step": state.step, **stats, "examples": state.examples, "tokens": state.tokens}
        line |= {name: round(value, 1) for name, value in per_second.items()}
        memory = peak_memory(self.world.device)
        line |= {"seconds": state.seconds, "peak_memory_bytes": memory}
        if self.monitor is not None:
            waited = state.loader.waited_seconds
            if found := self.monitor.sample(time.perf_counter(), state.seconds, waited):
                line["machine"] = found
        self.log(line)
        if self.world.rank != 0:
            return
        text = f"loss {stats['train_loss']:.4f}  lr {stats['lr']:.2e}"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(1)
            return
        total = getattr(state.clock, "total_steps", None)
        now = time.perf_counter()
        if now - self._said > 10 or state.step == total:
            self._said = now
            rate = per_second["examples_per_second"]
            left = (1 - state.clock.fraction) / max(state.clock.fraction, 1e-9) * state.seconds
            of = f"/{total}" if total else ""
            self.world.say(
                f"step {state.step}{of}  {text}  {rate:.1f} rows/s  {left / 60:.1f} min left"
            )

    def _check_health(self, state: State, loss: float) -> None:
        if state.skipped_steps and state.precision != "fp16":
            self.world.say(f"step {state.step}: loss or gradient is not finite; update skipped")
        if state.skipped_steps >= 20 or (state.skipped_steps >= 5 and state.precision != "fp16"):
            self.verdict(
                "diverged: the gradient stayed NaN or infinite; try a lower --lr, a longer "
                "--warmup_frac, or --precision fp32"
            )
            raise RuntimeError(f"training diverged at step {state.step}")
        self._recent = [*self._recent[-49:], loss]
        usual = float(np.median(self._recent))
        if len(self._recent) == 50 and loss > 3 * usual and loss > usual + 1:
            self.world.say(f"step {state.step}: loss spike, {loss:.3f} (median of 50: {usual:.3f})")

    def _evaluate(self, state: State) -> None:
        started = time.perf_counter()
        metrics = self.world.from_rank_0(self.evaluate())  # all ranks decide from the same numbers
        self._spent(evaluation_seconds=time.perf_counter() - started)
        self.log({"step": state.step, **metrics})
        text = "  ".join(f"{k} {v:.4f}" for k, v in metrics.items() if isinstance(v, float))
        self.world.say(f"step {state.step}  {text}")
        loss = metrics["val_loss"]
        if loss < state.best:
            state.best, state.best_step, state.bad_evaluations = loss, state.step, 0
            self._write_weights(state, "best")
        else:
            state.bad_evaluations += 1
        state.evaluation_pending = False
        state.last_val_loss = loss
        self._check_patience(state)
        # evaluation is no training time
        now = time.perf_counter()
        self._seconds_before, self._started = state.seconds, now

    def _check_patience(self, state: State) -> None:
        if self.config.patience is not None and state.bad_evaluations >= self.config.patience:
            self.status, self.exit_reason = "early", f"early stopping at step {state.step}"

    def _on_rank_0(self, action: Callable[[], None]) -> None:
        """Rank 0 writes, and all ranks learn whether that went well."""
        problem = None
        if self.world.rank == 0:
            try:
                action()
            except Exception as error:
                problem = error
        problem = self.world.from_rank_0(problem)
        if problem is not None:
            raise problem

    def _write_weights(self, state: State, name: str) -> None:
        folder = self.folder / "train/weights" / name
        state.collect()
        self._on_rank_0(lambda: self._write_checkpoint(folder, state.export, state.step))

    def _write_checkpoint(self, folder: Path, fill: Callable[[Path], None], step: int) -> None:
        """write_folder, its time and size noted; rank 0 only."""
        started = time.perf_counter()
        write_folder(folder, fill, step=step)
        seconds = time.perf_counter() - started
        written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        self._spent(checkpoint_seconds=seconds, checkpoint_bytes=written)

    def _spent(self, **amounts: float) -> None:
        """For the next training line, and as sums over all sessions for run.json."""
        if self.monitor is not None:
            self.monitor.add(**amounts)
            for name, amount in amounts.items():
                self.facts[name] = round(self.facts.get(name, 0) + amount, 3)

    def save(self, state: State) -> None:
        """A whole checkpoint of this step; the newest two stay, and every keep_every-th."""
        from safetensors.torch import save_model

        weights = self.folder / "train/weights"
        folder = weights / f"step_{state.step:08d}"

        def fill(beside: Path) -> None:
            if self._metrics is not None:  # or a machine that vanishes takes its lines along
                os.fsync(self._metrics.fileno())
            save_model(state.kept, beside / "model.safetensors")
            torch.save(state.state_dict(), beside / "state.pt")

        def write() -> None:
            if damage(folder) is None:
                return
            self._write_checkpoint(folder, fill, state.step)
            self.write_record(state)
            for old in sorted(weights.glob("step_????????"))[:-2]:
                step = int(old.name.removeprefix("step_"))
                if not (self.config.keep_every and step % self.config.keep_every == 0):
                    shutil.rmtree(old)

        state.collect()
        self._on_rank_0(write)
        self._started, self._seconds_before = time.perf_counter(), state.seconds

    def _stop(self, state: State, reason: str) -> None:
        self.save(state)
        self.status, self.exit_reason = "stopped", reason
        if self.world.rank == 0:
            self.write_record(state)
        self.world.say(
            f"stopped at step {state.step} ({reason}); the same command continues {self.folder}"
        )

    # -- the end

    def finish(self, state: State, test: Callable[[], tuple[dict, list[dict]]]) -> None:
        """Write the final weights, test once with the best, say the result, make the page.

        test() gives the metrics and one dict a row for predictions.csv; what a row has as "text"
        is kept for the rows that went most wrong.
        """
        if self.status == "stopped":
            return
        reason = self.exit_reason or "all steps done"
        if state.last_val_loss > 1.05 * state.best:
            self.verdict(
                f"overfitted: validation loss rose from {state.best:.4f} at step {state.best_step} "
                f"to {state.last_val_loss:.4f}; fewer --epochs, more rows or more dropout"
            )
        self._write_weights(state, "final")
        tested_with = self._restore_for_test(state)
        try:
            metrics, rows = test()
        except Stopped:
            return self._stop_in_test(state)
        metrics = {**metrics, "tested_with": tested_with, "best_step": state.best_step}
        self.status, self.exit_reason = "finished", reason

        def write() -> None:
            folder = self.folder / "test"
            worst = "".join(json.dumps(_finite(row)) + "\n" for row in worst_rows(rows))
            write_text(folder / "analysis/worst_rows.jsonl", worst)
            write_text(folder / "metrics/predictions.csv", csv_text(rows))
            write_text(folder / "metrics/metrics.json", json.dumps(metrics, indent=1))
            self.write_record(state)

        self._on_rank_0(write)
        if self._bar is not None:
            self._bar.close()
        lines = [f"finished: {self.folder} ({state.seconds:.0f} s of training)"]
        self.world.say("\n".join([*lines, *summary_lines(metrics)]))
        if self.config.page and self.world.rank == 0:
            self._make_page()

    def _make_page(self) -> None:
        """In a process of its own: whatever goes wrong there, the run is finished."""
        command = [sys.executable, str(PROJECT / "report.py"), "page", str(self.folder)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=600
            )
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            problem = last if done.returncode else []
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = [str(error)]
        if problem:
            self.world.say(f"warning: no page ({problem[0]}); later: report.py page {self.folder}")
        else:
            self.world.say(f"page: {self.folder / 'report.html'}")

    def _stop_in_test(self, state: State) -> None:
        self.status, self.exit_reason = "stopped", self._agree_on_signal()
        if self.world.rank == 0:
            self.write_record(state)
        self.world.say(f"stopped in the test; the same command continues {self.folder}")

    def _restore_for_test(self, state: State) -> str:
        """Load the weights to test with on all ranks; returns 'best' or 'final'."""
        wanted, weights = self.config.test_with, self.folder / "train/weights"
        problem = None
        if self.world.rank == 0 and wanted == "best":
            problem = damage(weights / "best") if state.best_step else "no evaluation was finite"
            held = _read_json(weights / "best/manifest.json").get("step")
            if problem is None and held != state.best_step:
                problem = f"it holds step {held}, not {state.best_step}"
        problem = self.world.from_rank_0(problem)
        if problem is not None:
            self.verdict(f"tested with the final weights: best cannot be used ({problem})")
            wanted = "final"
        self._on_rank_0(lambda: state.restore(weights / wanted))
        state.share()
        return wanted

    def dry_run(
        self,
        state: State,
        loss_sum: LossSum,
        before_step: Callable[[], object] = lambda: None,
        steps: int = 3,
    ) -> None:
        """Time a few steps and say what the whole run would take; writes nothing."""
        state.share()
        total = getattr(state.clock, "total_steps", None)  # None: the budget is no number of steps
        tokens = int(np.sum(state.loader.data.tokens))
        times = []
        for _ in range(steps if total is None else min(steps, total)):
            before_step()
            started = time.perf_counter()
            train_step(state, loss_sum)
            times.append(time.perf_counter() - started)
        if total is None:
            total = max(1, round(state.step / state.clock.fraction))  # at what these steps cost
        trained = sum(p.numel() for p in state.parameters)
        everything = sum(p.numel() for p in state.model.parameters())
        each = min(times)
        self.world.say(
            f"steps {total:,} ({state.loader.steps_per_epoch:,} an epoch) · "
            f"tokens {tokens:,} an epoch · parameters {everything:,}, trained {trained:,} · "
            f"memory {peak_memory(self.world.device) / 2**30:.2f} GiB · "
            f"{each:.2f} s a step, about {each * total / 60:.0f} min without evaluation"
        )


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


def summary_lines(metrics: dict[str, Any]) -> list[str]:
    """The figures that have an interval, one a line."""
    lines = []
    for name, value in metrics.items():
        interval = metrics.get(f"{name}_ci95")
        if isinstance(value, float) and interval:
            lines.append(f"  {name:<28} {value:.4f}  [{interval[0]:.4f}, {interval[1]:.4f}]")
    if lines:
        lines.insert(0, f"  test rows: {metrics.get('n')} (95 % intervals in brackets)")
    return lines


def row_loss(row: dict[str, Any]) -> float:
    """How wrong a row of predictions.csv is: nats, nats a target, or the error of a number."""
    if "loss_sum" in row:
        return row["loss_sum"] / max(row["num_targets"], 1)
    if f"p_{row['label']}" in row:
        return -math.log(max(row[f"p_{row['label']}"], np.finfo(np.float64).eps))
    return abs(float(row["label"]) - float(row["prediction"]))


def worst_rows(rows: list[dict], count: int = 20, characters: int = 2000) -> list[dict]:
    """The rows with a text that the model got most wrong, worst first, long texts cut."""
    with_text = [row for row in rows if "text" in row]
    worst = heapq.nlargest(count, with_text, key=row_loss)
    return [
        row | {"loss": row_loss(row), "text": {k: v[:characters] for k, v in row["text"].items()}}
        for row in worst
    ]


def csv_text(rows: list[dict]) -> str:
    text = io.StringIO()
    names = [name for name in rows[0] if name != "text"] if rows else ["id"]
    writer = csv.DictWriter(text, fieldnames=names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _finite(value: Any) -> Any:
    """NaN and Inf as None, which is all that JSON has for them."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def launch(
    main: Callable,
    kind: type[Settings],
    commands: dict[str, tuple] | None = None,
    aliases: Aliases | None = None,
) -> None:
    """Run a script; errors of the user's making become one line.

    commands: first word → (function, its settings) or (function, its settings, their aliases).
    aliases: other names of settings → ours.
    """
    argv, prog = sys.argv[1:], Path(sys.argv[0]).name
    commands = commands or {}
    word = argv[0] if argv else ""
    if commands and re.fullmatch(r"\w+", word) and word not in commands:
        near = difflib.get_close_matches(word, commands, 1)
        known = f"did you mean '{near[0]}'?" if near else f"expected {', '.join(commands)}"
        raise SystemExit(f"{prog}: '{word}' is no command: {known}")
    try:
        if word in commands:
            action, settings, *own_aliases = commands[argv[0]]
            action(parse_settings(settings, argv[1:], f"{prog} {argv[0]}", *own_aliases)[0])
        else:
            config, given = parse_settings(kind, argv, prog, aliases)
            main(config, given)
    except (ValueError, OSError, DiskFull, ModuleNotFoundError) as error:
        if os.environ.get("ABLATE_DEBUG"):
            raise
        rank = int(os.environ.get("RANK", "0"))
        where = f"[rank {rank}] " if rank else ""
        raise SystemExit(f"{where}error: {error}") from None
