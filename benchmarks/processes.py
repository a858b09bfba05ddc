"""Two processes of one thread beside one process of two threads: the same run.

python bench.py processes --repeats 5 --steps 10

The steps of `python bench.py preference`, by torchrun and without. The goal is .95 times the speed.
Memory: of one of the two processes. The losses differ by the order of summation alone.
"""

import argparse
import sys

from benchmarks import lines_of_run, preference, rates_of_run, script, timed_process

WHAT, PEER = "2 processes × 1 thread", "1 process × 2 threads"
TOLERANCE = 0.01
COUNTED = False  # they run in processes of their own


def train(arguments: argparse.Namespace, launcher: list[str], threads: int) -> dict:
    """run_2_appendprompt.py as a process of its own; rates and memory are its own log's."""
    command = [*launcher, *script("run_2_appendprompt.py")[1:], *preference.words(arguments)]
    timed_process(command, arguments.folder, OMP_NUM_THREADS=str(threads))
    folder = arguments.folder / "run"
    peak = lines_of_run(folder)[-1]["peak_memory_bytes"] / 2**30
    return {**rates_of_run(folder), "peak_memory_gib": peak}


def ours(arguments: argparse.Namespace) -> dict:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return train(arguments, [sys.executable, *launcher], 1)


def peer(arguments: argparse.Namespace) -> dict:
    return train(arguments, [sys.executable], 2)
