"""What a step was like whose loss spiked: its learning rate, and the rows of its batch."""

from typing import Any

import numpy as np

import core


def describe(state: core.State, stats: dict[str, Any], usual: float) -> dict[str, Any]:
    """Of the step that was just taken; usual: the mean loss of the steps before."""
    facts = {"step": state.step, "loss": stats["train_loss"], "usual": usual, "lr": stats["lr"]}
    return facts | {"grad_norm": stats["grad_norm"]} | last_rows(state.loader)


def last_rows(loader: core.TrainLoader) -> dict[str, Any]:
    """The rows of the last batch, all ranks' together, and how long they were beside all others:
    longest_percentile, the share of training rows that are shorter; padding_share, of what was
    computed. Nothing of a loader that selects rows."""
    if type(loader) is not core.TrainLoader or not loader.position:
        return {}
    sampler = core.StepSampler(loader.data, loader.config, loader.world, loader.micro_batch)
    parts = [sampler.lengths[part] for part in sampler.global_batch(loader.position - 1)[1]]
    lengths = np.concatenate(parts)
    longest, packed = int(lengths.max()), getattr(loader.data, "packing", False)
    computed = lengths.sum() if packed else sum(len(part) * part.max() for part in parts)
    return {
        "rows": len(lengths),
        "longest_row": longest,
        "longest_percentile": float((sampler.lengths < longest).mean()),
        "mean_row": float(lengths.mean()),
        "padding_share": float(1 - lengths.sum() / computed),
    }
