"""Copies of the log for those who want them: TensorBoard and Weights & Biases, on demand.

metrics.jsonl is the record; a tracker that fails is dropped with a warning, the run goes on.
"""

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """Takes each line of metrics.jsonl as it is written."""

    name: str

    def log(self, line: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def check_trackers(log: str | None) -> list[str]:
    """The names in `log`. ValueError for an unknown one, or one that is not installed."""
    names = [name.strip() for name in (log or "").split(",") if name.strip()]
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"--log {name}: expected tensorboard, wandb or tensorboard,wandb")
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"--log {name}: not installed (pip install {name})")
    return names


def open_trackers(
    log: str | None, folder: Path, settings: dict[str, Any], step: int
) -> list[Tracker]:
    """The trackers named in `log`, for a run in `folder` that is at `step`."""
    return [TRACKERS[name](folder, settings, step) for name in check_trackers(log)]


def scalars(line: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line, those of a nested dict as name/inner."""
    for name, value in line.items():
        if isinstance(value, dict):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            yield f"{prefix}{name}", float(value)


class TensorBoard:
    """Event files in RUN/tensorboard: tensorboard --logdir RUN."""

    name = "tensorboard"

    def __init__(self, folder: Path, settings: dict[str, Any], step: int):
        from torch.utils.tensorboard import SummaryWriter

        # what an earlier session wrote after the step that it is continued from is hidden
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, line: dict[str, Any]) -> None:
        for name, value in scalars(line):
            self.writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        self.writer.close()


class WandB:
    """One W&B run a run folder, continued with it; WANDB_* variables say where and as whom."""

    name = "wandb"

    def __init__(self, folder: Path, settings: dict[str, Any], step: int):
        import wandb

        self.run = wandb.init(
            project="ablate",
            id=hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16],
            name="/".join(folder.absolute().parts[-2:]),
            dir=str(folder),
            config=settings,
            resume="allow",
        )
        self.run.define_metric("*", step_metric="step")

    def log(self, line: dict[str, Any]) -> None:
        self.run.log({"step": line["step"], **dict(scalars(line))})

    def close(self) -> None:
        self.run.finish()


TRACKERS: dict[str, type] = {"tensorboard": TensorBoard, "wandb": WandB}
