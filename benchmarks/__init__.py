"""What bench.py compares: a file a row, with ours(arguments) and peer(arguments).

Each runs in a process of its own and returns {RATE: …, "loss": …, anything else worth keeping};
arguments: steps (to count), folder (its own, empty), data, and what a row reads besides. RATE,
default tokens_per_second, may be another name in the row's file, and TOLERANCE, default 0.1,
another bound on the difference of the losses. A row that compares something else than speed has
run(arguments), which does it all.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any

WARM_UP = 3  # steps that are not counted


def rates_of_run(folder: Path) -> dict[str, float]:
    """Tokens and examples a second after the warm-up, and the mean of the last five losses."""
    log = map(json.loads, (folder / "train/metrics/metrics.jsonl").read_text().splitlines())
    lines = [line for line in log if "train_loss" in line]
    first, last = lines[WARM_UP - 1], lines[-1]
    seconds = last["seconds"] - first["seconds"]
    return {
        **{f"{k}_per_second": (last[k] - first[k]) / seconds for k in ("tokens", "examples")},
        "loss": statistics.mean(line["train_loss"] for line in lines[-5:]),
    }


def timed_trainer(folder: Path, steps: int, settings: dict[str, Any], **parts: Any) -> dict:
    """transformers' Trainer for WARM_UP + steps updates in fp32 on the CPU, nothing saved.

    settings: of TrainingArguments; parts: of Trainer. Returns the seconds of the counted steps
    and the mean of the last five losses.
    """
    import transformers

    ended: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            ended.append(time.perf_counter())

    fixed = {
        **{"output_dir": str(folder), "max_steps": steps + WARM_UP, "logging_steps": 1},
        **{"save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True},
    }
    trainer = transformers.Trainer(
        args=transformers.TrainingArguments(**fixed | settings), callbacks=[Clock()], **parts
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": ended[-1] - ended[WARM_UP - 1], "loss": statistics.mean(losses[-5:])}
