"""What pretrain_bert.py does besides training: irreducible losses, calibration, downloads."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

import core
from methods import clock as clocks
from methods.batch_selection import IrreducibleLosses
from methods.dropout import use_word_dropout
from models import bert
from tasks import corpora, downloads, pretraining

ROWS_EACH = 128  # a forward pass


@torch.no_grad()
def sequence_losses(
    model: torch.nn.Module,
    data: corpora.MlmData,
    rows: np.ndarray,
    device: torch.device,
    precision: str,
    bar: tqdm | None = None,
) -> np.ndarray:
    """(rows, 2): loss sum and masked tokens of each, under the masks of evaluation."""
    values = []
    for start in range(0, len(rows), ROWS_EACH):
        if bar is not None:
            bar.update(min(ROWS_EACH, len(rows) - start))
        batch = core.to_device(data.collate(rows[start : start + ROWS_EACH], None), device)
        with core.autocast(device, precision):
            found = bert.masked_lm_losses(model, {k: batch[k] for k in ("input_ids", "labels")})
        pair = torch.stack([found.sequence_loss_sums, found.sequence_num_targets], dim=1)
        values.append(pair.double().cpu().numpy())
    return np.concatenate(values)


def precision_of(settings: pretraining.Config, world: core.World) -> str:
    """As the run was trained, on this device."""
    return core.choose_precision(settings.precision, world.device.type, world.machine, "bert")


# ---------------------------------------------------------------------- irreducible losses


@dataclass
class ExtractConfig:
    """Settings of `extract_il_losses`: each training sequence's loss under the IL model."""

    run: str = ""
    """run folder of the IL model (trained with validation.il_model=True)"""
    output: str | None = None
    """folder of the table; null: il_losses in the run folder"""
    part_rows: int = 65_536
    """sequences of a part: what an interruption can cost"""
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"] = "auto"
    """where to compute"""


def whole_parts(folder: Path) -> list[Path]:
    """The parts of a table; damaged ones are deleted, so that their sequences are missing."""
    parts = sorted(folder.glob("part_" + 6 * "[0-9]"))
    for part in parts:
        if problem := core.damage(part):
            print(f"{part} is damaged ({problem}): its sequences are computed again")
            shutil.rmtree(part)
    return [part for part in parts if part.exists()]


def extract_il_losses(config: ExtractConfig) -> None:
    """Write the table part by part; the same command goes on where it was interrupted, and
    computes again what was damaged or deleted.

    The loss of one pass under fixed masks, in nats per masked token: an estimate from a single
    draw, as published.
    """
    if not config.run:
        raise ValueError("extract_il_losses needs --run FOLDER (or name=X for results/bert/X)")
    world = core.single_world(config.device)
    settings, corpus, split, model = pretraining.open_run(Path(config.run), world)
    if not settings.validation.il_model:
        raise ValueError(
            f"{config.run} was trained on the very sequences whose irreducible loss is asked for: "
            "train one with validation.il_model=True"
        )
    folder = Path(config.output or Path(config.run) / "il_losses")
    done = whole_parts(folder)
    # not len(done): where a part was deleted, that is the number of another one
    first = int(done[-1].name.removeprefix("part_")) + 1 if done else 0
    known = np.zeros(0, np.int64)
    if done:
        known = IrreducibleLosses.load(folder, split.fingerprint).ids
    missing = np.setdiff1d(split.train, known)
    data = corpora.MlmData(corpus, missing, masking=corpora.Masking(settings.mask_frac))
    precision = precision_of(settings, world)
    every = 0.5 if sys.stderr.isatty() else 30  # seconds: a log is not to fill up
    with tqdm(
        total=len(split.train), initial=len(known), unit="sequence", mininterval=every
    ) as bar:
        for number, start in enumerate(range(0, len(missing), config.part_rows), first):
            rows = np.arange(start, min(start + config.part_rows, len(missing)))
            values = sequence_losses(model, data, rows, world.device, precision, bar)
            part = IrreducibleLosses(missing[rows], values[:, 0] / values[:, 1], split.fingerprint)
            part.save_part(folder, number)
    table = IrreducibleLosses.load(folder, split.fingerprint)
    table.require(split.train)
    print(f"{len(table):,} irreducible losses: {folder}")


# ------------------------------------------------------------------------------ calibration


@dataclass
class CalibrateConfig:
    """Settings of `calibrate`: what a sequence costs on this machine, by active layers."""

    model: str = "bert-c5"
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
    world = core.single_world(config.device)
    precision = core.choose_precision(config.precision, world.device.type, world.machine, "bert")
    model = bert.build_masked_lm(config.model, config.vocab_size, 0, config.max_length)
    model.to(world.device)
    if world.device.type == "cpu":
        use_word_dropout(model)  # as training does: another attention in bf16, other masks
    layers = model.config.num_hidden_layers
    depths = sorted({1, max(1, layers // 4), max(1, layers // 2), layers})
    shape = (config.micro_batch, config.max_length)
    ids = torch.randint(8, config.vocab_size, shape, device=world.device)
    labels = torch.where(torch.rand(shape, device=world.device) < 0.15, ids, core.IGNORE_INDEX)
    batch = {"input_ids": ids, "labels": labels}

    def losses(depth: int) -> torch.Tensor:
        with core.autocast(world.device, precision):
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
        print(
            f"{depth:3d} layers: {1000 * tables['train'][depth]:.3f} ms a sequence to train on, "
            f"{1000 * tables['forward'][depth]:.3f} ms to score"
        )
    machine = f"{world.device.type}, {precision}, torch {torch.__version__}"
    costs = clocks.Costs("seconds", machine, config.model, config.max_length, tables)
    costs.save(Path(config.output))
    print(f"{config.output}: for budget_unit=rst_hours budget_table={config.output}")


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


# ------------------------------------------------------------------- downloads, validation


@dataclass
class DownloadConfig:
    """Settings of `download`."""

    FIRST_WORD = "what"

    what: str = ""
    """c4-subset, or il_losses of c4, bcwk or mp"""
    data: str = "c4"
    """which irreducible losses: c4, bcwk (BookCorpus and Wikipedia), mp (MiniPile)"""
    output: str | None = None
    """folder; null: in the cache, where --data c4-subset looks"""


def download(config: DownloadConfig) -> None:
    """The published archives, continued where a connection broke off."""
    if config.what in ("c4-subset", "c4_subset"):
        print(downloads.download_c4_subset(config.output))
    elif config.what == "il_losses":
        print(downloads.download_il_losses(config.data, config.output))
    else:
        raise ValueError(f"download {config.what}: expected c4-subset or il_losses")


def validate(
    run: str, world: core.World, weights: str = "final"
) -> dict[str, str | float | int | list]:
    """Validation loss of a run's final or best weights, under the masks of its validation."""
    settings, corpus, split, model = pretraining.open_run(Path(run), world, weights)
    data = corpora.MlmData(corpus, split.validation)
    values = sequence_losses(
        model, data, np.arange(len(data)), world.device, precision_of(settings, world)
    )
    groups = corpus.group_of(data.ids)
    loss_sum, targets = values.sum(axis=0)
    found: dict[str, str | float | int | list] = {"weights": weights, "n": len(data)}
    found["val_loss"] = loss_sum / targets
    if interval := pretraining.loss_interval(values, groups):
        found["val_loss_ci95"] = interval
    found["unigram_entropy"] = corpora.unigram_entropy(corpus, split.validation)
    if world.rank == 0:
        core.write_text(Path(run) / "mlm/test/metrics/metrics.json", json.dumps(found, indent=1))
    return found


COMMANDS: dict[str, tuple] = {
    "extract_il_losses": (
        extract_il_losses,
        ExtractConfig,
        {"name": lambda value: {"run": f"results/bert/{value}"}},
    ),
    "calibrate": (calibrate, CalibrateConfig),
    "download": (download, DownloadConfig),
}
