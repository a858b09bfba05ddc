"""`calibrate`: what a sequence costs on this machine, as a table of prices for --budget_table."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

import console
import core
from device import autocast, choose_precision
from experiments.experiment import place
from experiments.pretraining import Architecture
from methods import clock as clocks
from settings import Section


@dataclass
class CalibrateConfig(Section):
    """Settings of `calibrate`: what a sequence costs on this machine, by active layers."""

    WRITES_A_FILE = True
    LEAST = {"max_length": 3, "vocab_size": 8, "batch": 1, "micro_batch": 1, "repeats": 1}

    model: Architecture = "bert-c5"
    """as in training"""
    output: str = "costs.json"
    """the table, for --budget_table"""
    max_length: int = 128
    """tokens a sequence"""
    vocab_size: int = 32768
    """of the tokenizer"""
    batch: int = 1536
    """sequences an update: the optimizer's step is shared out over them"""
    micro_batch: int = 128
    """sequences a forward pass"""
    repeats: int = 10
    """timed passes of each kind, of which the median counts"""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """as in training"""
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"] = "auto"
    """where to compute"""


def calibrate(config: CalibrateConfig) -> None:
    """Time forward, and forward with backward, at several depths; AdamW's step once."""
    from models import bert

    world = core.single_world(config.device)
    precision = choose_precision(config.precision, world.device.type, world.machine)
    model = bert.build_masked_lm(config.model, config.vocab_size, 0, config.max_length)
    place(model, world)  # as training does: another attention in bf16, other masks
    layers = model.config.num_hidden_layers
    depths = sorted({1, max(1, layers // 4), max(1, layers // 2), layers})
    shape = (config.micro_batch, config.max_length)
    ids = torch.randint(8, config.vocab_size, shape, device=world.device)
    labels = torch.where(torch.rand(shape, device=world.device) < 0.15, ids, core.IGNORE_INDEX)
    batch = {"input_ids": ids, "labels": labels}

    def losses(depth: int) -> torch.Tensor:
        with autocast(world.device, precision):
            return bert.masked_lm_losses(model, batch, list(range(depth))).loss

    def train(depth: int) -> None:
        losses(depth).backward()

    def forward(depth: int) -> None:
        with torch.no_grad():
            losses(depth)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True)
    train(layers)
    update = median_seconds(lambda: optimizer.step(), config.repeats, world) / config.batch
    tables: dict[str, dict[int, float]] = {"train": {}, "forward": {}, "curvature": {}}
    for depth in depths:
        model.train()
        model.zero_grad()
        each = median_seconds(lambda d=depth: train(d), config.repeats, world) / config.micro_batch
        # fewer layers are fewer weights to step
        share = update * (depth + 1) / (layers + 1)
        tables["train"][depth], tables["curvature"][depth] = each + share, each
        model.eval()
        each = median_seconds(lambda d=depth: forward(d), config.repeats, world)
        tables["forward"][depth] = each / config.micro_batch
        console.say(
            f"{depth:3d} layers: {1000 * tables['train'][depth]:.3f} ms a sequence to train on, "
            f"{1000 * tables['forward'][depth]:.3f} ms to score"
        )
    machine = f"{world.device.type}, {precision}, torch {torch.__version__}"
    costs = clocks.Costs("seconds", machine, config.model, config.max_length, tables)
    costs.save(Path(config.output))
    console.say(f"{config.output}: for budget_unit=rst_hours budget_table={config.output}")


def median_seconds(action: Callable[[], object], repeats: int, world: core.World) -> float:
    """Median wall-clock seconds of an action, after a first time that is not counted."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        action()
        if world.device.type in ("cuda", "xpu"):
            getattr(torch, world.device.type).synchronize()
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:]))
