"""--on local: as --on slurm, with submitit's jobs on this machine; to try it without a cluster."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sweeps import on_slurm


def submit(
    commands: Sequence[Sequence[str]], folder: Path, options: Mapping[str, str]
) -> list[str]:
    return on_slurm.submit(commands, folder, options, "local")
