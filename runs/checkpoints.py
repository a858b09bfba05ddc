"""Checkpoints of a run: train/weights/step_00000120/, best, final; written whole, read whole."""

import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from core import State, World, read_checkpoint, write_checkpoint
from experiments.experiment import Experiment
from files import damage, read_json, write_folder


class Checkpoints:
    """All its methods that take a state are called by all ranks; rank 0 reads and writes."""

    def __init__(self, folder: Path, world: World, keep_every: int | None, spent: Callable):
        """keep_every: steps whose checkpoints stay. spent(checkpoint_seconds=…,
        checkpoint_bytes=…) is told what each write took."""
        self.weights, self.world = folder / "train/weights", world
        self.keep_every, self.spent = keep_every, spent

    def load_newest(self, state: State) -> dict | None:
        """Weights of the newest whole checkpoint into the model; returns the rest of the state, on
        the CPU. Damaged ones are named and set aside. Rank 0 only."""
        for leftover in [*self.weights.glob("*.tmp"), *self.weights.glob("step_*.old")]:
            shutil.rmtree(leftover)
        for old in self.weights.glob("*.old"):  # killed between the two renames of best
            current = old.with_suffix("")
            shutil.rmtree(old) if current.exists() else old.rename(current)
        for folder in sorted(self.weights.glob("step_????????"), reverse=True):
            problem = damage(folder)
            if problem is None:
                try:
                    return read_checkpoint(state, folder)
                except pickle.UnpicklingError:
                    problem = "state.pt holds more than tensors and plain values"
            aside = folder.with_name(f"{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            self.world.say(f"{folder} is damaged ({problem}): set aside as {aside.name}")
        return None

    def save(self, state: State, before: Callable[[], None], after: Callable[[], None]) -> None:
        """A whole checkpoint of this step; the newest two stay, and every keep_every-th.

        before, after: called by rank 0 before and after the files are written.
        """
        folder = self.weights / f"step_{state.step:08d}"

        def fill(beside: Path) -> None:
            before()
            write_checkpoint(state, beside)

        def write() -> None:
            if damage(folder) is None:
                return
            self._write(folder, fill, state.step)
            after()
            for old in sorted(self.weights.glob("step_????????"))[:-2]:
                step = int(old.name.removeprefix("step_"))
                if not (self.keep_every and step % self.keep_every == 0):
                    shutil.rmtree(old)

        state.collect()
        self.world.on_rank_0(write)

    def export(self, experiment: Experiment, state: State, name: str) -> None:
        """best or final: weights that others can open; the average of them, where there is one."""
        state.collect()
        with state.averaged():
            self.world.on_rank_0(
                lambda: self._write(
                    self.weights / name, lambda beside: experiment.export(state, beside), state.step
                )
            )

    def _write(self, folder: Path, fill: Callable[[Path], None], step: int) -> None:
        """write_folder, its time and size noted."""
        started = time.perf_counter()
        write_folder(folder, fill, step=step)
        seconds = time.perf_counter() - started
        written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        self.spent(checkpoint_seconds=seconds, checkpoint_bytes=written)

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
