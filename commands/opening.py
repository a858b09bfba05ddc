"""A saved causal language model, with its adapter, ready to use."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

import core
from experiments.instructions import find_weights
from models import causal, lora, pretrained


@dataclass
class OpenConfig:
    """Which model a command opens."""

    model: str = ""
    """run folder, folder of an adapter or of a model, or hub id"""
    weights: Literal["best", "final"] = "best"
    """which weights of a run folder"""
    base: str | None = None
    """base model of an adapter; null: the one that it names"""
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"] = "auto"
    """where to compute"""


def open_causal(config: OpenConfig) -> tuple[nn.Module, Any, dict]:
    """(model with its adapter, tokenizer, facts of the training) on the device, for evaluation."""
    if not config.model:
        raise ValueError("which model? --model RUN, a folder or a hub id")
    folder = pretrained.weights_folder(config.model, config.weights)
    has_adapter = (Path(folder) / lora.CONFIG).is_file()
    if has_adapter and config.base:
        base, adapter = config.base, Path(folder)
    else:
        base, adapter = find_weights(config.model, config.weights)
    model = causal.load_model(base, causal.load_config(base))
    model.name_or_path = str(Path(base).resolve()) if Path(base).is_dir() else base
    if adapter is not None:
        lora.load_adapter(model, adapter)
    tokenizer = causal.load_tokenizer(folder)
    facts_file = Path(folder) / "instructions.json"
    facts = json.loads(facts_file.read_text()) if facts_file.is_file() else {}
    return model.to(core.single_world(config.device).device).eval(), tokenizer, facts
