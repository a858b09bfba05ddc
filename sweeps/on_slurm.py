"""--on slurm: the same command as jobs of a cluster, through submitit.

An engine is a module with one function; `sweep.py --on NAME` imports sweeps/on_NAME.py alone:
    submit(commands, folder, {"partition": "gpu", "gpus": "4", "time": "4:00:00"}) → ids of the jobs

Ahead of its time limit, or when it is preempted, a job gets SIGUSR2 from Slurm: its command gets
SIGTERM, so that what is running is saved, and the job is queued again and goes on.
"""

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

OURS = {"gpus": "gpus_per_node", "cpus": "cpus_per_task", "mem": "mem_gb"}  # counts, and gigabytes
SIGNAL_SECONDS = 120  # ahead of the limit; time enough to save


class Command:
    """A command as submitit runs it; `checkpoint` is called when the time is nearly up."""

    def __init__(self, words: Sequence[str], folder: str):
        self.words, self.folder = list(words), folder
        self.process: subprocess.Popen | None = None

    def __call__(self) -> int:
        self.process = subprocess.Popen(self.words, cwd=self.folder)
        while self.process.poll() is None:
            time.sleep(0.2)
        if self.process.returncode:
            raise RuntimeError(f"{self.words[1:3]} ended with exit code {self.process.returncode}")
        return 0

    def checkpoint(self) -> object:
        import submitit

        # not Popen's own wait: this is a signal's handler, which may have cut that one off
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.process.pid, signal.SIGTERM)
            os.waitpid(self.process.pid, 0)
        return submitit.helpers.DelayedSubmission(Command(self.words, self.folder))


def minutes_of(text: str) -> float:
    """As Slurm reads a time: 90, 90:00, 1:30:00, 1-12, 1-12:30, 1-12:30:00. ValueError."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise ValueError(f"time={text}: expected minutes, H:M:S or D-H:M:S")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is None and len(numbers) < 3:  # minutes, or minutes:seconds
        numbers = [0, *numbers]
    hours, minutes, seconds = (numbers + [0, 0])[:3]
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60


def submit(
    commands: Sequence[Sequence[str]], folder: Path, options: Mapping[str, str], cluster="slurm"
) -> list[str]:
    """One array of jobs; ValueError for options that cannot be, or without submitit.

    options: gpus, cpus, mem (GB), time and `signal` (seconds ahead of it); others are sbatch's own.
    """
    try:
        import cloudpickle
        import submitit
    except ModuleNotFoundError as error:
        raise ValueError(f"--on needs {error.name}: bash startup.sh setup --slurm") from None
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a job need not find this project
    more = dict(options)
    ahead = int(more.pop("signal", SIGNAL_SECONDS))
    minutes = minutes_of(more.pop("time", "60"))
    if minutes * 60 <= ahead:
        raise ValueError(f"time: {minutes:g} minutes are no more than the {ahead} s to save in")
    known = {name: int(more.pop(word)) for word, name in OURS.items() if word in more}
    often = 10_000  # a run longer than the limit is queued again as often as it takes
    try:
        if cluster == "local":
            executor = submitit.LocalExecutor(folder / "%j", max_num_timeout=often)
            executor.update_parameters(timeout_min=minutes, signal_delay_s=ahead)
        else:
            executor = submitit.AutoExecutor(folder / "%j", cluster, slurm_max_num_timeout=often)
            executor.update_parameters(name="ablate", timeout_min=math.ceil(minutes), **known)
            executor.update_parameters(
                slurm_array_parallelism=len(commands),
                slurm_signal_delay_s=ahead,
                slurm_additional_parameters=more,
            )
        with executor.batch():
            jobs = [executor.submit(Command(words, os.getcwd())) for words in commands]
    except (RuntimeError, submitit.core.utils.FailedJobError) as error:  # no sbatch, or its refusal
        raise ValueError(" ".join(str(error).split())[:400]) from None
    return [job.job_id for job in jobs]
