"""Gradients summed inside the backward pass, by core.py's own hands and by torch's DDP wrapper.

python bench.py overlap --repeats 30
python bench.py overlap --repeats 30 --tasks 150mbit        # of free, 1gbit, 400mbit, 150mbit

Two processes of one thread each train the same small BERT on the same rows, two micro-batches a
rank and step, over a loopback that is free or throttled (a network namespace with tc; Linux, and
the right to make one). Each pair is one step of each, in turns, in the same processes. Whole steps
count: forward and backward passes, sums, clipping, AdamW. The weights of both must agree at the
end. A third column is ours with the sums after the backward pass, which shows what overlap saves.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np

from benchmarks import PROJECT, Line, Measured

RATES = {"free": None, "1 Gbit/s": "1gbit", "400 Mbit/s": "400mbit", "150 Mbit/s": "150mbit"}
COUNTED = False
VOCABULARY, LENGTH, MICRO_BATCH, LEARNING_RATE = 8192, 64, 8, 1e-4


def run(arguments: argparse.Namespace) -> Measured:
    """A line a rate, ours over DDP's."""
    measured = Measured()
    asked = arguments.tasks.split(",")
    rates = {name: rate for name, rate in RATES.items() if (rate or name) in asked} or RATES
    rates = {"free": None} if arguments.quick else rates
    table = []
    for name, rate in rates.items():
        pairs, model = (3, "bert-tiny") if arguments.quick else (arguments.repeats, "bert-mini")
        found = measure(rate, max(pairs, 2), model)
        measured.runs.append({"rate": name, **found})
        ours, peer, after = (np.array(found[side]) for side in ("ours", "ddp", "after"))
        logs = np.log(peer / ours)
        from scipy.special import stdtrit

        half = stdtrit(len(logs) - 1, 0.975) * logs.std(ddof=1) / math.sqrt(len(logs))
        low, high = math.exp(logs.mean() - half), math.exp(logs.mean() + half)
        measured.lines.append(
            Line(
                what=f"2 processes, loopback of {name}" if rate else "2 processes, free loopback",
                peer="DistributedDataParallel",
                unit="speed",
                ratios=list(peer / ours),
                checks=tuple(found["weights"]),
                tolerance=1e-3 * abs(found["weights"][1]),
                checked="norms of the weights",
                note=f"mean {math.exp(logs.mean()):.2f}, 95 % [{low:.2f}, {high:.2f}]",
            )
        )
        print(measured.lines[-1])
        medians = [float(np.median(side)) for side in (ours, peer, after)]
        names = ("ours, s a step", "DDP, s a step", "ours without overlap, s a step")
        table.append({"loopback": name, **dict(zip(names, medians, strict=True))})
    measured.tables["A step of two processes"] = table
    return measured


def measure(rate: str | None, pairs: int, model: str) -> dict:
    """Seconds of the steps of each side, and the norms of the weights at the end."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = [*launch, "-m", "benchmarks.overlap", str(pairs), model]
    if rate is not None:
        if not (shutil.which("unshare") and shutil.which("tc")):
            raise SystemExit("a throttled loopback needs unshare (util-linux) and tc (iproute2)")
        limit = f"tc qdisc add dev lo root tbf rate {rate} burst 1mb latency 400ms"
        inner = f'ip link set lo up && {limit} && exec "$@"'
        words = ["unshare", "--map-root-user", "--net", "sh", "-c", inner, "sh", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        words, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"bench.py overlap: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ------------------------------------------------------------------------- in each process


class Rows:
    """Random tokens; every eighth is to be predicted, so that all rows have as many targets."""

    def __init__(self, count: int = 4096):
        draw = np.random.default_rng(0)
        self.ids = draw.integers(5, VOCABULARY, (count, LENGTH))
        self.lengths = self.tokens = np.full(count, LENGTH)

    def collate(self, rows: np.ndarray, epoch: int | None) -> dict:
        import torch

        import core

        ids = torch.from_numpy(self.ids[rows])
        labels = torch.full_like(ids, core.IGNORE_INDEX)
        labels[:, ::8] = ids[:, ::8]
        return {"input_ids": ids, "labels": labels}


def compare(pairs: int, architecture: str, device: str = "cpu") -> dict:
    """In each of the two processes: steps of each side in turns; the first three do not count.

    A GPU is for bench.py's check: there is no wire to throttle.
    """
    import torch
    import torch.distributed as dist

    import core
    from device import pins, to_device
    from methods.optimizers import build_optimizer, parameter_groups
    from models import bert
    from settings import Settings

    torch.set_num_threads(1)
    config = Settings(batch=4 * MICRO_BATCH, micro_batch=MICRO_BATCH, device=device, epochs=1e6)
    with core.distributed(config) as world:

        def build() -> tuple:
            model = bert.build_masked_lm(architecture, VOCABULARY, 0, LENGTH).to(world.device)
            groups = parameter_groups({"bert": model.parameters()}, {"bert": LEARNING_RATE}, 0.01)
            optimizer = build_optimizer("adamw", groups, LEARNING_RATE, betas=(0.9, 0.98))
            return model, optimizer, core.TrainLoader(Rows(), config, world)

        def loss_sum(model, batch: dict) -> tuple:
            outputs = model(**batch)
            return outputs.loss_sum, outputs.num_targets

        states = {}
        for side in ("ours", "after"):
            model, optimizer, loader = build()
            clock = core.StepClock(10**9)
            states[side] = core.State(
                config, world, model, optimizer, loader, clock, lambda fraction: 1.0
            )
        states["after"].gradient_sums.begin = lambda loss: None  # all buckets wait for flush()
        wrapped, optimizer, loader = build()
        wrapped = torch.nn.parallel.DistributedDataParallel(wrapped)
        ddp = SimpleNamespace(model=wrapped, optimizer=optimizer, loader=loader)

        def ddp_step() -> None:
            work = ddp.loader.next()
            targets = work.examples * LENGTH / 8
            for number, (_, batch) in enumerate(work.micro_batches, start=1):
                is_last = number == len(work.micro_batches)
                with contextlib.nullcontext() if is_last else wrapped.no_sync():
                    loss, _ = loss_sum(wrapped, to_device(batch, world.device))
                    (loss * (world.size / targets)).backward()  # DDP takes the mean over ranks
            torch.nn.utils.clip_grad_norm_(wrapped.parameters(), config.max_grad_norm)
            ddp.optimizer.step()
            ddp.optimizer.zero_grad()

        steps = {
            "ours": lambda: core.train_step(states["ours"], loss_sum),
            "ddp": ddp_step,
            "after": lambda: core.train_step(states["after"], loss_sum),
        }

        def ready() -> None:
            """All ranks, and what their devices still had to do."""
            if pins(world.device):
                getattr(torch, world.device.type).synchronize()
            dist.barrier()

        seconds: dict[str, list[float]] = {side: [] for side in steps}
        for number in range(-3, pairs):
            sides = list(steps) if number % 2 else list(reversed(steps))
            for side in sides:
                ready()
                started = time.perf_counter()
                steps[side]()
                if number >= 0:
                    ready()
                    seconds[side].append(time.perf_counter() - started)
        models = states["ours"].model, wrapped
        norms = [float(torch.nn.utils.get_total_norm(m.parameters())) for m in models]
        apart = max(
            float((p - q).detach().abs().max())
            for p, q in zip(*(m.parameters() for m in models), strict=True)
        )
        return {**seconds, "weights": norms, "largest difference of a weight": apart}


if __name__ == "__main__":
    found = compare(int(sys.argv[1]), *sys.argv[2:])
    if os.environ["RANK"] == "0":
        print(json.dumps(found))
