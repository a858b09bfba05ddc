"""Checkpoints of a run: train/weights/step_00000120/, best, final; written whole, read whole.

What a step left is copied before the next one begins; a thread writes it while that is computed.
"""

import json
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core import State, World, read_checkpoint, saved_parts
from experiments.experiment import Experiment
from files import add_to_folder, damage, read_json, remove, write_folder
from runs.writer import Abandoned, Writer
from saving import HostCopy, write_files

EVALUATION = "evaluation.json"


class Checkpoints:
    """All its methods that take a state are called by all ranks; rank 0 reads and writes."""

    def __init__(
        self,
        folder: Path,
        world: World,
        keep_every: int | None,
        spent: Callable,
        require: Callable[[], None],
    ):
        """keep_every: steps whose checkpoints stay. spent(checkpoint_seconds=…,
        checkpoint_bytes=…) is told for how long training stood still, and what was written.
        require: raises where the folder is another process's now."""
        self.weights, self.world = folder / "train/weights", world
        self.keep_every, self.spent, self.require = keep_every, spent, require
        self._said: set[Path] = set()  # what could not be removed
        self.origin: dict[str, str] = {}  # run and commit, for the manifests
        self._memory, self._writer = HostCopy(), Writer(self._failed)
        self._submitted: int | None = None  # the step that was given to the writer last

    def load_newest(self, state: State) -> dict | None:
        """Weights of the newest whole checkpoint into the model; returns the rest of the state, on
        the CPU. Damaged ones are named and set aside. Rank 0 only."""
        for leftover in self.weights.glob("step_*old"):
            self._remove(leftover)
        for old in sorted(self.weights.glob("*old")):  # killed between the two renames of best
            current = old.with_suffix("")
            self._remove(old) if current.exists() else old.rename(current)
        for folder in sorted(self.weights.glob("step_????????"), reverse=True):
            problem = damage(folder)
            if problem is None:
                try:
                    saved = read_checkpoint(state, folder)
                    if EVALUATION in read_json(folder / "manifest.json")["files"]:
                        saved["numbers"] |= read_json(folder / EVALUATION)
                    self._rotate(folder)  # a kill may have cut that off
                    return saved
                except pickle.UnpicklingError:
                    problem = "state.pt holds more than tensors and plain values"
            aside = folder.with_name(f"{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            try:
                folder.rename(aside)
                self.world.say(f"{folder} is damaged ({problem}): set aside as {aside.name}")
            except OSError as error:
                self.world.say(f"{folder} is damaged ({problem}): passed over ({error.strerror})")
        return None

    def _rotate(self, newest: Path) -> None:
        """Of those before the newest whole one, one stays, and every keep_every-th."""
        older = [each for each in self.weights.glob("step_????????") if each.name < newest.name]
        for old in sorted(older)[:-1]:
            step = int(old.name.removeprefix("step_"))
            if not (self.keep_every and step % self.keep_every == 0):
                self._remove(old)

    def _remove(self, folder: Path) -> None:
        """Delete what is not needed. Where that fails it is said once, and tried again whenever
        this is called."""
        problem = remove(folder)
        if problem and folder not in self._said:
            self._said.add(folder)
            self.world.say(
                f"note: {folder} cannot be removed ({problem.strerror}): tried again later"
            )

    def save(self, state: State, sync: Callable[[], None], record: Callable[[], None]) -> None:
        """A whole checkpoint of this step; the newest two stay, and every keep_every-th.

        It is being written when this returns, and there when settle() has returned. record: called
        by rank 0 ahead of that; no checkpoint is of a step that it does not know. sync: called by
        the writer's thread ahead of the files.
        """
        folder = self.weights / f"step_{state.step:08d}"

        def begin() -> None:
            if self._submitted == state.step or damage(folder) is None:
                return
            started = time.perf_counter()
            record()
            parts = saved_parts(state)
            there = state.host_copies()
            beside_training = self._memory.has_room(parts, there)
            if beside_training:
                parts = self._memory.take(parts, there)

            def write(proceed: Callable[[], None]) -> int:
                def fill(beside: Path) -> dict[str, dict]:
                    sync()
                    return write_files(*parts, beside, proceed)

                written = self._write(folder, fill, step)
                self._rotate(folder)
                return written

            step = self._submitted = state.step
            self._writer.submit(write)
            self.spent(checkpoint_seconds=time.perf_counter() - started)
            if not beside_training:
                self._settle()

        self.settle(expendable=self._submitted != state.step)
        state.collect()
        self.world.on_rank_0(begin)

    def settle(self, expendable: bool = False) -> None:
        """Wait for the checkpoint that is being written; its error is raised on all ranks.

        expendable: a newer one follows. It is then given up some seconds after a signal.
        """
        self.world.on_rank_0(lambda: self._settle(expendable))

    def poll(self) -> None:
        """Note what has become whole meanwhile; waits for nobody."""
        if self._writer.done:
            self._settle()

    def close(self) -> None:
        """At the end of a run, which may have failed: what was saved before is not lost by that."""
        try:
            self._settle()
        except Exception as error:
            self.world.say(f"warning: no checkpoint of step {self._submitted}: {error}")
        self._memory = HostCopy()

    def _settle(self, expendable: bool = False) -> None:
        started = time.perf_counter()
        try:
            written = self._writer.join(lambda: expendable and self.world.signal is not None)
        except Abandoned:
            self._memory = HostCopy()  # the thread may still be reading the old one
            self._submitted = None
            return
        if written is not None:
            waited = time.perf_counter() - started
            self.spent(checkpoint_seconds=waited, checkpoint_bytes=written)

    def _failed(self) -> None:
        """Called by the writer's thread: the step or evaluation is cut off on all ranks, as by a
        signal, and the run then meets the error where it settles."""
        self.world.signal = self.world.signal or "a checkpoint that cannot be written"

    def add_evaluation(self, state: State, before: Callable[[], None]) -> None:
        """What an evaluation of the newest checkpoint's step changed, beside its weights.

        before: called by rank 0 before the file is written.
        """
        numbers = {name: getattr(state, name) for name in state.NUMBERS}

        def write() -> None:
            self._settle()
            self.require()
            before()
            folder = self.weights / f"step_{state.step:08d}"
            add_to_folder(folder, EVALUATION, json.dumps(numbers, indent=1))

        self.world.on_rank_0(write)

    def export(self, experiment: Experiment, state: State, name: str) -> None:
        """best or final: weights that others can open; the average of them, where there is one."""
        twins = self.weights / f"step_{state.step:08d}"

        def write() -> None:
            started = time.perf_counter()
            fill = lambda beside: experiment.export(state, beside)  # noqa: E731
            written = self._write(self.weights / name, fill, state.step, twins)
            taken = time.perf_counter() - started
            self.spent(checkpoint_seconds=taken, checkpoint_bytes=written)

        self.settle()
        state.collect()
        with state.averaged():
            self.world.on_rank_0(write)

    def _write(
        self,
        folder: Path,
        fill: Callable[[Path], Any],
        step: int,
        twins: Path | None = None,
    ) -> int:
        """write_folder; returns its bytes."""
        self.require()
        write_folder(folder, fill, twins, step=step, **self.origin)
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def restore(self, experiment: Experiment, state: State, wanted: str) -> tuple[str, str]:
        """Load best or final on all ranks; returns the one that was loaded, and why it is not the
        one that was wanted."""
        problem = None
        if self.world.rank == 0 and wanted == "best":
            problem = damage(self.weights / "best")
            if not state.best_step:
                problem = "no evaluation was finite"
            held = read_json(self.weights / "best/manifest.json").get("step")
            if problem is None and held != state.best_step:
                problem = f"it holds step {held}, not {state.best_step}"
        problem = self.world.from_rank_0(problem)
        name = wanted if problem is None else "final"
        self.world.on_rank_0(lambda: experiment.restore(state, self.weights / name))
        state.share()
        return name, problem or ""
