"""A saved causal language model, with its adapter, ready to use."""

import json
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from torch import nn

import core
from commands.verdicts import note_failures
from experiments.instructions import find_weights, weights_digest
from files import read_json
from models import causal, generation, lora, pretrained
from settings import Section


@dataclass
class OpenConfig(Section):
    """Which model a command opens."""

    model: str = ""
    """run folder, folder of an adapter or of a model, or hub id"""
    weights: Literal["best", "final"] | None = None
    """which weights of a run folder; null: those that it was tested with"""
    base: str | None = None
    """base model of an adapter; null: the one that it names"""
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"] = "auto"
    """where to compute"""


def processes(device: str) -> AbstractContextManager[core.World]:
    """The processes of a command: one, or those of torchrun."""
    settings = SimpleNamespace(device=device, backend="auto", deterministic=False)
    return core.distributed(settings)


def note(text: str) -> None:
    """A line for the user that is no part of what a command prints."""
    print(f"note: {text}", file=sys.stderr, flush=True)


def new_folder(config: Any) -> Path:
    """--output, where nothing is yet. ValueError where something is, or none is named."""
    if not config.output:
        raise ValueError("where to? --output FOLDER")
    if Path(config.output).exists():
        raise ValueError(f"{config.output} exists already: name a new folder")
    return Path(config.output)


def base_of(config: OpenConfig) -> tuple[str, Path | None]:
    """(base model, folder of its adapter or None); OSError where a base is not where it was."""
    for name in filter(None, (config.model, config.base)):
        pretrained.check_model(name)
    folder = pretrained.weights_folder(config.model, config.weights)
    if config.base is not None:
        if not (Path(folder) / lora.CONFIG).is_file():
            raise ValueError(f"--base: {config.model} is no adapter, it needs no base model")
        return pretrained.weights_folder(config.base, "best"), Path(folder)
    base, adapter = find_weights(config.model, config.weights)
    if adapter is not None and Path(base).is_absolute() and not Path(base).is_dir():
        raise FileNotFoundError(
            f"{config.model} is an adapter of the model that was in {base}: say with --base FOLDER "
            "where it is now"
        )
    return base, adapter


def trained_on(adapter: Path | None) -> list[str] | None:
    """The digests of the base that an adapter was trained on; None where they are not known."""
    return None if adapter is None else read_json(adapter / "instructions.json").get("base")


def weights_files(config: OpenConfig) -> list[Any]:
    """What tells a model from another: the digests of its weights and of its base's, or names."""
    base, adapter = base_of(config)
    return [weights_digest(base) or base, adapter and weights_digest(str(adapter))]


def open_causal(
    config: OpenConfig, world: core.World | None = None
) -> tuple[nn.Module, Any, dict[str, Any]]:
    """(model with its adapter, tokenizer, facts of the training) on the device, for evaluation."""
    if not config.model:
        raise ValueError("which model? --model RUN, a folder or a hub id")
    world = world or core.single_world(config.device)
    if world.rank == 0:
        note_failures(config.model)
    base, adapter = base_of(config)
    was, now = trained_on(adapter), weights_digest(base)
    if was and now and was != now and world.rank == 0:
        note(f"{base} has other weights than the base that the adapter was trained on")
    folder = pretrained.weights_folder(config.model, config.weights)
    shape = causal.load_config(base)
    tokenizer = causal.load_tokenizer(folder, config=shape)
    model = causal.load_model(base, shape, tokenizer=tokenizer)
    model.name_or_path = str(Path(base).resolve()) if Path(base).is_dir() else base
    if adapter is not None:
        lora.load_adapter(model, adapter)
    theirs = generation.own_decoding(model, tokenizer)
    if theirs and world.rank == 0:
        wishes = ", ".join(f"{name} {value}" for name, value in theirs.items())
        note(f"its generation_config.json ({wishes[:200]}) is not followed: only settings decide")
    facts_file = Path(folder) / "instructions.json"
    facts = json.loads(facts_file.read_text()) if facts_file.is_file() else {}
    facts.pop("base", None)
    return model.to(world.device).eval(), tokenizer, facts
