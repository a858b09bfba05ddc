"""`extract_il_losses`: each training sequence's loss under a model of other data, for RHO-loss."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

import console
import core
from commands.validate import open_pretraining, precision_of, sequence_losses
from data import corpora
from files import content_digest, damage, read_json
from methods.batch_selection import IrreducibleLosses
from settings import Aliases, Section


@dataclass
class ExtractConfig(Section):
    """Settings of `extract_il_losses`: each training sequence's loss under the IL model."""

    LEAST = {"part_rows": 1}

    run_folder: str = ""
    """run folder of the IL model (trained with validation.il_model=True)"""
    output: str | None = None
    """folder of the table; null: il_losses in the run folder"""
    part_rows: int = 65_536
    """sequences of a part: what an interruption can cost"""
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"] = "auto"
    """where to compute"""


def whole_parts(folder: Path, weights: str) -> list[Path]:
    """The parts of a table; damaged ones are deleted, so that their sequences are missing.
    ValueError for those of other weights than these (their digest)."""
    parts = sorted(folder.glob("part_" + 6 * "[0-9]"))
    for part in parts:
        if problem := damage(part):
            console.say(f"{part} is damaged ({problem}): its sequences are computed again")
            shutil.rmtree(part)
        elif read_json(part / "manifest.json").get("weights", weights) != weights:
            raise ValueError(
                f"{folder} holds the losses of another model (its weights are others): name another"
                " --output, or delete that folder"
            )
    return [part for part in parts if part.exists()]


def extract_il_losses(config: ExtractConfig) -> None:
    """Write the table part by part; the same command goes on where it was interrupted, and
    computes again what was damaged or deleted.

    The loss of one pass under fixed masks, in nats per masked token: an estimate from a single
    draw, as published.
    """
    if not config.run_folder:
        raise ValueError("extract_il_losses needs --run_folder F (or name=X for results/bert/X)")
    world = core.single_world(config.device)
    settings, corpus, split, model = open_pretraining(Path(config.run_folder), world)
    if not settings.validation.il_model:
        raise ValueError(
            f"{config.run_folder} was trained on the very sequences whose irreducible loss is "
            "asked for: train one with validation.il_model=True"
        )
    folder = Path(config.output or Path(config.run_folder) / "il_losses")
    weights = content_digest(Path(config.run_folder) / "train/weights/final")
    done = whole_parts(folder, weights)
    # not len(done): where a part was deleted, that is the number of another one
    first = int(done[-1].name.removeprefix("part_")) + 1 if done else 0
    ids = np.zeros(0, np.int64)
    if done:
        ids = IrreducibleLosses.load(folder, split.fingerprint).ids
    missing = np.setdiff1d(split.train, ids)
    data = corpora.MlmData(corpus, missing, masking=corpora.Masking(settings.mask_frac))
    precision = precision_of(settings, world)
    every = 0.5 if sys.stderr.isatty() else 30  # seconds: a log is not to fill up
    with tqdm(total=len(split.train), initial=len(ids), unit="sequence", mininterval=every) as bar:
        for number, start in enumerate(range(0, len(missing), config.part_rows), first):
            rows = np.arange(start, min(start + config.part_rows, len(missing)))
            values = sequence_losses(model, data, rows, world.device, precision, bar)
            part = IrreducibleLosses(missing[rows], values[:, 0] / values[:, 1], split.fingerprint)
            part.save_part(folder, number, weights)
    table = IrreducibleLosses.load(folder, split.fingerprint)
    table.require(split.train)
    console.say(f"{len(table):,} irreducible losses: {folder}")


ALIASES: Aliases = {"name": lambda value: {"run_folder": f"results/bert/{value}"}}
