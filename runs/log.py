"""What a run says of each step: a line of metrics.jsonl, of the console, and to trackers."""

import contextlib
import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core import State, World
from device import peak_memory
from evaluation.monitor import Monitor, open_trackers
from evaluation.outcomes import Course
from files import disk_error, sync, write_text
from runs.results import finite


class Log:
    """The log of one session, written by rank 0; the other ranks' does nothing."""

    def __init__(self, folder: Path, world: World, monitor: Monitor | None, course: Course):
        """course: is told of every line."""
        self.path, self.world, self.monitor = folder / "train/metrics/metrics.jsonl", world, monitor
        self._samples = folder / "train/analysis/samples.jsonl"
        self.bar: Any = None
        self._file: io.TextIOBase | None = None
        self._trackers: list[Any] = []
        self.course = course
        self._said = 0.0

    def open(self, state: State, trackers: str | None, settings: dict[str, Any], id: str) -> None:
        """Go on behind the step resumed from; id: the run's, for trackers. Rank 0 only."""
        self._cut(state.step, state.evaluation_pending)
        self._file = open(self.path, "a", encoding="utf-8", buffering=1)
        self._trackers = open_trackers(trackers, self.path.parents[2], settings, state.step, id)

    def _cut(self, step: int, evaluation_pending: bool) -> None:
        """Forget the lines after `step` (and a torn last one): they will be written again.

        So will an evaluation of `step` itself that the checkpoint does not know of.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = []
        for line in lines:
            with contextlib.suppress(ValueError):
                values = json.loads(line)
                is_evaluation = "train_loss" not in values
                again = evaluation_pending and is_evaluation and values["step"] == step
                if values["step"] <= step and not again:
                    kept.append(line + "\n")
                    self.course.add(values)
        write_text(self.path, "".join(kept))
        if self._samples.is_file():
            write_text(self._samples, "".join(self._kept_samples(step - evaluation_pending)))

    def _kept_samples(self, step: int) -> Iterator[str]:
        """Lines up to this step; a torn one ends them."""
        for line in self._samples.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if json.loads(line)["step"] > step:
                    return
            except (ValueError, KeyError, TypeError):
                return
            yield line + "\n"

    def samples(self, state: State, answers: list[dict[str, Any]]) -> None:
        """What was asked at this evaluation, in a file of its own."""
        if not (answers and self.world.rank == 0):
            return
        text = "".join(json.dumps({"step": state.step} | row) + "\n" for row in answers)
        try:
            self._samples.parent.mkdir(parents=True, exist_ok=True)
            with open(self._samples, "a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise disk_error(error, self._samples) from error

    def show_bar(self, state: State) -> None:
        """A progress bar, where there is a terminal to draw it on."""
        if self.world.rank == 0 and sys.stderr.isatty():
            from tqdm import tqdm

            total = getattr(state.clock, "total_steps", None)
            self.bar = tqdm(total=total, initial=state.step, unit="step", dynamic_ncols=True)

    def write(self, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        if self._file is None:
            return
        self.course.add(line)
        try:
            self._file.write(json.dumps(finite(line)) + "\n")
        except OSError as error:
            raise disk_error(error, self.path) from error
        for tracker in list(self._trackers):
            try:
                tracker.log(line)
            except Exception as error:  # a copy of the log is not worth the run
                self._trackers.remove(tracker)
                self.world.say(f"warning: no more logging to {tracker.name}: {error}")

    def sync(self) -> None:
        """To disk, or a machine that vanishes takes its lines along."""
        if self._file is not None:
            sync(self._file.fileno())

    def step(self, state: State, stats: dict[str, Any], took: float) -> None:
        """The line of a step that took so many seconds."""
        work = stats["work"]
        per_second = {
            "examples_per_second": work.examples / took,
            "tokens_per_second": work.tokens / took,
        }
        line = {
            "step": state.step,
            **{name: value for name, value in stats.items() if name != "work"},
            "examples": state.examples,
            "tokens": state.tokens,
            **{name: round(value, 1) for name, value in per_second.items()},
            "seconds": state.seconds,
            "peak_memory_bytes": peak_memory(self.world.device),
        }
        if self.monitor is not None:
            waited = state.loader.waited_seconds
            if machine := self.monitor.sample(time.perf_counter(), state.seconds, waited):
                line["machine"] = machine
        self.write(line)
        if self.world.rank == 0:
            self._show(state, stats, per_second["examples_per_second"])

    def _show(self, state: State, stats: dict[str, Any], rate: float) -> None:
        text = f"loss {stats['train_loss']:.4f}  lr {stats['lr']:.2e}"
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(1)
            return
        total = getattr(state.clock, "total_steps", None)
        now = time.perf_counter()
        if now - self._said > 10 or state.step == total:
            self._said = now
            left = (1 - state.clock.fraction) / max(state.clock.fraction, 1e-9) * state.seconds
            of = f"/{total}" if total else ""
            self.world.say(
                f"step {state.step}{of}  {text}  {rate:.1f} rows/s  {left / 60:.1f} min left"
            )

    def evaluation(self, state: State, metrics: dict[str, float]) -> None:
        """The line of an evaluation."""
        self.write({"step": state.step, **metrics})
        text = "  ".join(f"{k} {v:.4f}" for k, v in metrics.items() if isinstance(v, float))
        self.world.say(f"step {state.step}  {text}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        if self._file is not None:
            with contextlib.suppress(OSError):  # on a full disk its last line is still waiting
                self._file.close()
        for tracker in self._trackers:
            with contextlib.suppress(Exception):
                tracker.close()
