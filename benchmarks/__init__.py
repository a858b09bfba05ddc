"""What bench.py compares: a file a comparison, with ours(arguments) and peer(arguments).

Each runs in a process of its own and returns {RATE: …, "loss": …, anything else worth keeping};
arguments: steps (to count), folder (its own, empty), data, model, quick, and what else a
comparison reads. Its file may set

    RATE       what is compared, tokens_per_second by default; of "seconds" less is better
    CHECK      what must be equal on both sides for the pair to count, "loss" by default
    TOLERANCE  of the difference of the checks, 0.1 by default
    PEERS      name → what it is, for --peer, the first one by default (PEER: where there is one)
    WHAT       what is compared, in the table
    prepare    called with the arguments before the first pair
    COUNTED    False where no training steps are to be counted for the share of the peak

A comparison that does not fit has run(arguments) -> Measured, which does it all. Peers that
bench.py can do without are imported where they are used.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WARM_UP = 3  # steps that are not counted
PROJECT = Path(__file__).resolve().parents[1]


@dataclass
class Line:
    """One line of the table: how many times as much as the peer, a figure a pair of runs."""

    what: str
    peer: str
    unit: str  # of which a ratio is so many times as much
    ratios: list[float]
    memory: float | None = None  # ratio of the peaks
    checks: tuple[float, float] | None = None  # ours and the peer's: losses, unless `checked`
    tolerance: float = 0.1
    checked: str = "losses"
    share_of_peak: float | None = None  # of ours
    note: str = ""

    @property
    def void(self) -> bool:
        return self.checks is not None and not abs(self.checks[0] - self.checks[1]) < self.tolerance

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    def __str__(self) -> str:
        text = f"VOID, the {self.checked} do not agree: " if self.void else ""
        text += f"{self.what}: {self.median:.2f} times the {self.unit} "
        text += f"({min(self.ratios):.2f} to {max(self.ratios):.2f} in {len(self.ratios)} pairs)"
        if self.memory is not None:
            text += f", {self.memory:.2f} times the peak memory"
        if self.checks is not None:
            text += f", {self.checked} {self.checks[0]:.3f} and {self.checks[1]:.3f}"
        if self.share_of_peak is not None:
            text += f", {self.share_of_peak:.0%} of the peak of matrix products"
        return text + (f"; {self.note}" if self.note else "")


@dataclass
class Measured:
    """What a comparison gives: lines for the table, every run, and tables of its own by title."""

    lines: list[Line] = field(default_factory=list)
    runs: list[dict] = field(default_factory=list)
    tables: dict[str, list[dict]] = field(default_factory=dict)


def lines_of_run(folder: Path) -> list[dict]:
    """The training lines of a run folder of ours."""
    log = map(json.loads, (folder / "train/metrics/metrics.jsonl").read_text().splitlines())
    return [line for line in log if "train_loss" in line]


def rates_of_run(folder: Path) -> dict[str, float]:
    """Tokens and examples a second after the warm-up, and the mean of the last five losses."""
    lines = lines_of_run(folder)
    first, last = lines[WARM_UP - 1], lines[-1]
    seconds = last["seconds"] - first["seconds"]
    return {
        **{f"{k}_per_second": (last[k] - first[k]) / seconds for k in ("tokens", "examples")},
        "loss": statistics.mean(line["train_loss"] for line in lines[-5:]),
    }


def timed_trainer(
    folder: Path, steps: int, settings: dict[str, Any], kind: Any = None, **parts: Any
) -> dict:
    """transformers' Trainer for WARM_UP + steps updates in fp32, nothing saved; on the CPU unless
    use_cpu is False.

    settings: of TrainingArguments; parts: of Trainer; kind: (class of the trainer, of its
    arguments) where another one builds on it. Returns the seconds of the counted steps and the
    mean of the last five losses.
    """
    import transformers

    trainer_class, arguments_class = kind or (transformers.Trainer, transformers.TrainingArguments)
    ended: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            ended.append(time.perf_counter())

    fixed = {
        "output_dir": str(folder),
        "max_steps": steps + WARM_UP,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    trainer = trainer_class(args=arguments_class(**fixed | settings), callbacks=[Clock()], **parts)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": ended[-1] - ended[WARM_UP - 1], "loss": statistics.mean(losses[-5:])}


def timed_process(command: list[str], folder: Path, **environment: str) -> tuple[float, float, str]:
    """(seconds, peak memory in GiB of the largest process, standard output) of a command.

    What it says goes to files in `folder`; its end is shown if it fails.
    """
    outputs = [folder / "stdout", folder / "stderr"]
    with outputs[0].open("w") as stdout, outputs[1].open("w") as stderr:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=stdout, stderr=stderr, env={**os.environ, **environment}
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{outputs[1].read_text()[-3000:]}")
    return seconds, used.ru_maxrss / 2**20, outputs[0].read_text()


def script(name: str, *words: str) -> list[str]:
    """The command of one of our scripts."""
    return [sys.executable, str(PROJECT / name), *words]


def side_words(side: str, arguments: argparse.Namespace, folder: str) -> list[str]:
    """What bench.py is told to measure one side in a process of its own."""
    names = ("data", "model", "peer", "tasks", "epochs", "precision", "steps", "threads", "width")
    names += ("device", "size")
    words = [f"--{n}={getattr(arguments, n)}" for n in names if getattr(arguments, n) is not None]
    words += [f"--{name}" for name in ("quick", "eager") if getattr(arguments, name)]
    return [arguments.comparison, *words, f"--side={side}", f"--folder={folder}"]


def run_side(side: str, arguments: argparse.Namespace) -> dict:
    """One process; returns what its last line says."""
    with tempfile.TemporaryDirectory() as folder:
        command = script("bench.py", *side_words(side, arguments, folder))
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
