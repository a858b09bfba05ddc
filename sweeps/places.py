"""Which cores and which GPUs of a machine a run gets."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

NVIDIA, INTEL = "CUDA_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"
COUNT_INTEL = "import torch; print(torch.xpu.device_count())"


@dataclass(frozen=True)
class Cards:
    """The GPUs that runs may use, as `variable` names them."""

    variable: str = NVIDIA
    names: tuple[str, ...] = ()


def visible_cards(several: bool = True) -> Cards:
    """NVIDIA's, else Intel's; of those that the environment leaves, where it says so.

    several: more than one is wanted. One Intel card, as laptops have, is not looked at else: it may
    be two for torch, and asking that takes seconds.
    """
    for variable in (NVIDIA, INTEL):
        if variable in os.environ:
            names = [name.strip() for name in os.environ[variable].split(",")]
            return Cards(variable, tuple(name for name in names if name))
    if shutil.which("nvidia-smi"):
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
        count = sum(line.startswith("GPU ") for line in answer.stdout.splitlines())
        if count:
            return Cards(NVIDIA, tuple(map(str, range(count))))
    if (count := count_intel_cards()) > 1 or count and several:
        answer = subprocess.run([sys.executable, "-c", COUNT_INTEL], capture_output=True, text=True)
        if answer.stdout.strip().isdecimal():
            return Cards(INTEL, tuple(map(str, range(int(answer.stdout)))))
    return Cards()


def count_intel_cards(devices: Path = Path("/sys/class/drm")) -> int:
    vendors = []
    for file in devices.glob("renderD*/device/vendor"):
        with contextlib.suppress(OSError):
            vendors.append(file.read_text().strip())
    return vendors.count("0x8086")


@dataclass
class Place:
    """What a run is started with; `locks` are the cards that are its own as long as it lives."""

    environment: dict[str, str]
    locks: list[TextIO] = field(default_factory=list)

    @property
    def descriptors(self) -> list[int]:
        return [lock.fileno() for lock in self.locks]

    def close(self) -> None:
        """The run has them now."""
        for lock in self.locks:
            lock.close()


def place_of(
    slot: int, jobs: int, processes: int, cores: int, cards: Cards, given: Mapping[str, str]
) -> Place:
    """For the run in place `slot` of `jobs`: its share of the cores, and a card for each of its
    processes.

    A card is locked while a run has it, so that several sweeps on one machine take different ones.
    Where there are fewer cards than runs, they share them in turn.
    """
    environment, count = dict(given), len(cards.names)
    if jobs * processes > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // (jobs * processes))))
    if count <= processes and not (jobs > 1 and count == processes):
        return Place(environment)  # all there are, or none
    mine = [cards.names[(slot * processes + i) % count] for i in range(processes)]
    locks: dict[str, TextIO] = {}
    for name in (*mine, *(name for name in cards.names if name not in mine)):
        if len(locks) < processes and (lock := _lock(cards.variable, name)):
            locks[name] = lock
    if len(locks) == processes:
        mine = sorted(locks, key=cards.names.index)
    environment[cards.variable] = ",".join(mine)
    return Place(environment, list(locks.values()))


def _lock(variable: str, name: str) -> TextIO | None:
    """On this machine's own disk, for the child to inherit; None: another run has the card."""
    folder = Path(tempfile.gettempdir(), f"ablate-cards-{os.getuid()}")
    folder.mkdir(exist_ok=True)
    lock = open(folder / f"{variable}-{name.replace('/', '_')}", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def cores_here() -> int:
    return len(os.sched_getaffinity(0))
