"""`eval_bert.py --suite mlm`: the validation loss of a pretraining run, and how to open one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import core
from data import corpora
from device import autocast, choose_precision, to_device
from evaluation.metrics import Metrics, add_interval, interval_facts
from evaluation.outcomes import TokenLoss, collapsed
from evaluation.stats import Ratio, interval
from experiments.pretraining import Config, frequencies_alone, load_parts
from files import damage, read_yaml, write_text
from models import pretrained
from settings import parse_settings

ROWS_EACH = 128  # of a forward pass


def open_pretraining(
    folder: Path, world: core.World, weights: str = "final"
) -> tuple[Config, Any, Any, Any]:
    """(settings, corpus, split, model in evaluation mode) of a pretraining run."""
    path = folder / "train/weights" / weights
    if problem := damage(path):
        raise ValueError(f"{path} is no whole folder of saved weights ({problem})")
    if "mask_frac" not in read_yaml(folder / "config.yaml"):
        raise ValueError(f"{folder}: no run of pretrain_bert.py")
    config, _ = parse_settings(
        Config, ["--config", str(folder / "config.yaml")], "pretrain_bert.py"
    )
    from transformers import AutoModelForMaskedLM

    from models import bert  # noqa: F401, registers our architecture

    corpus, split = load_parts(config, world)
    shape = pretrained.load_config(str(path))
    model = pretrained.load_whole(AutoModelForMaskedLM, str(path), shape)
    return config, corpus, split, model.to(world.device).eval()


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
    from models import bert

    values = []
    for start in range(0, len(rows), ROWS_EACH):
        if bar is not None:
            bar.update(min(ROWS_EACH, len(rows) - start))
        batch = to_device(data.collate(rows[start : start + ROWS_EACH], None), device)
        with autocast(device, precision):
            rows_only = {name: batch[name] for name in ("input_ids", "labels")}
            losses = bert.masked_lm_losses(model, rows_only)
        pair = torch.stack([losses.sequence_loss_sums, losses.sequence_num_targets], dim=1)
        values.append(pair.cpu().double().numpy())
    return np.concatenate(values)


def precision_of(settings: Config, world: core.World) -> str:
    """As the run was trained, on this device."""
    return choose_precision(settings.precision, world.device.type, world.machine)


def validate(run: str, world: core.World, weights: str = "final") -> Metrics:
    """Validation loss of a run's final or best weights, under the masks of its validation."""
    settings, corpus, split, model = open_pretraining(Path(run), world, weights)
    data = corpora.MlmData(corpus, split.validation)
    values = sequence_losses(
        model, data, np.arange(len(data)), world.device, precision_of(settings, world)
    )
    groups = corpus.group_of(data.ids)
    loss_sum, targets = values.sum(axis=0)
    metrics: Metrics = {"weights": weights, "n": len(data)}
    metrics["val_loss"] = float(loss_sum / targets)
    metrics |= interval_facts("val_loss", groups, values[:, 1])
    add_interval(metrics, "val_loss", interval(values, groups, Ratio(0, 1)))
    train_ids = split.il_train if settings.validation.il_model else split.train
    metrics["unigram_entropy"] = frequencies_alone(corpus, train_ids, data)
    if verdict := collapsed(TokenLoss(metrics["val_loss"], metrics["unigram_entropy"])):
        metrics["verdict"] = verdict
    if world.rank == 0:
        write_text(Path(run) / "mlm/test/metrics/metrics.json", json.dumps(metrics, indent=1))
    return metrics
