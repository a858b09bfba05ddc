"""What a run takes of its machine, and copies of the log: TensorBoard and Weights & Biases.

    monitor = Monitor(torch.device("cpu"))
    monitor.add(evaluation_seconds=3.2)
    line = monitor.sample(now, trained_seconds, waited_seconds)     # {} within a second of the last

metrics.jsonl is the record; a tracker that fails is dropped with a warning, the run goes on.
"""

import importlib.util
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch


def gpu_of(device: torch.device) -> Any:
    """torch.cuda, torch.xpu or torch.mps; None on a CPU."""
    return None if device.type == "cpu" else getattr(torch, device.type, None)


def device_memory(gpu: Any) -> int | None:
    """Bytes of the device that tensors of this process hold now; None where torch cannot say."""
    for name in ("memory_allocated", "current_allocated_memory"):  # the latter is Apple's
        if hasattr(gpu, name):
            return getattr(gpu, name)()
    return None


def device_share(gpu: Any) -> float | None:
    """Share of the last moments in which the device was busy, 0 to 1; None where nothing tells.

    NVIDIA's comes from its driver, through the pip package nvidia-ml-py; XPU and Apple have none.
    """
    try:
        return gpu.utilization() / 100
    except Exception:  # no such function, package, driver or permission: it is only a figure
        return None


class Monitor:
    """The `machine` part of a training line, written at most once in `every_seconds`.

    cpu_share: of all cores of the machine, whoever uses them; process_share: of them, by this
    process; data_share: of the training time, spent waiting for batches; device_share,
    device_memory_bytes: on a GPU; memory_bytes: of this process; beside these, what was added
    since the last sample (evaluation_seconds, checkpoint_seconds, checkpoint_bytes).
    """

    def __init__(
        self,
        device: torch.device,
        every_seconds: float = 1.0,
        cpu_percent: Callable[[], float] = psutil.cpu_percent,
        cpu_seconds: Callable[[], float] = time.process_time,
        cores: int = psutil.cpu_count() or 1,
    ):
        self.every_seconds, self.cores = every_seconds, cores
        self.cpu_percent, self.cpu_seconds = cpu_percent, cpu_seconds
        self.gpu, self.process = gpu_of(device), psutil.Process(os.getpid())
        self.added: Counter[str] = Counter()  # since the last sample
        self.started: tuple[float, float, float, float] | None = None
        self.unknown: set[str] = set()  # what this machine cannot tell is asked for once

    def add(self, **amounts: float) -> None:
        """Something that happened between two training lines."""
        self.added.update(amounts)

    def sample(self, now: float, trained: float, waited: float) -> dict[str, float]:
        """now: a clock's seconds; trained, waited: seconds of training, and for batches, so far."""
        if self.started is not None and now - self.started[0] < self.every_seconds:
            return {}
        percent, used = self.cpu_percent(), self.cpu_seconds()
        before, self.started = self.started, (now, trained, waited, used)
        if before is None:  # shares need two moments
            return {}
        wall, training, waiting, worked = (
            max(a - b, 0.0) for a, b in zip(self.started, before, strict=True)
        )
        values = {
            "cpu_share": percent / 100,
            "process_share": worked / wall / self.cores,
            "data_share": min(1.0, waiting / training) if training else 0.0,
            "memory_bytes": self.process.memory_info().rss,
        }
        if self.gpu is not None:
            for name, ask in (
                ("device_share", device_share),
                ("device_memory_bytes", device_memory),
            ):
                value = None if name in self.unknown else ask(self.gpu)
                if value is None:
                    self.unknown.add(name)
                else:
                    values[name] = value
        values |= self.added
        self.added.clear()
        return {name: round(value, 4) for name, value in values.items()}


class Tracker(Protocol):
    """Takes each line of metrics.jsonl as it is written."""

    name: str

    def log(self, line: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def check_trackers(asked: str | None) -> list[str]:
    """The names in --trackers. ValueError for an unknown one, or one that is not installed."""
    names = [name.strip() for name in (asked or "").split(",") if name.strip()]
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"--trackers {name}: expected tensorboard, wandb or tensorboard,wandb")
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"--trackers {name}: not installed (pip install {name})")
    return names


def open_trackers(
    asked: str | None, folder: Path, settings: dict[str, Any], step: int, id: str
) -> list[Tracker]:
    """The trackers that are asked for, of the run `id` in `folder` that is at `step`."""
    return [TRACKERS[name](folder, settings, step, id) for name in check_trackers(asked)]


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

    def __init__(self, folder: Path, settings: dict[str, Any], step: int, id: str):
        from torch.utils.tensorboard import SummaryWriter

        # what an earlier session wrote after the step that it is continued from is hidden
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, line: dict[str, Any]) -> None:
        for name, value in scalars(line):
            self.writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        self.writer.close()


class WandB:
    """One W&B run a run, continued with it wherever its folder is; WANDB_* variables say where
    and as whom."""

    name = "wandb"

    def __init__(self, folder: Path, settings: dict[str, Any], step: int, id: str):
        import wandb

        self.run = wandb.init(
            project="ablate",
            id=id,
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
