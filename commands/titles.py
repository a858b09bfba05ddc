"""`generate` and `export` of train_headlines.py: titles that a run writes; its model for others.

python train_headlines.py generate --run_folder results/headlines/ours --prompt "Show HN:" --count 5
python train_headlines.py export --run_folder results/headlines/ours --output llama
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import nn

import console
import core
from commands.opening import new_folder, note
from commands.verdicts import note_failures
from data import titles
from data.records import repair_surrogates
from data.tokens import encode
from experiments.next_tokens import shown
from files import read_json, read_yaml, write_folder
from models import pretrained
from models.decoding import Decoding
from models.generation import fit, said_of_cut
from settings import Section, replace


@dataclass
class Opened:
    """A saved run: its settings, model in evaluation mode, tokenizer."""

    config: Any
    model: nn.Module  # models.gpt.SmallGPTForCausalLM
    tokenizer: Any
    device: torch.device


def open_titles(
    run: str, weights: str | None, device: str = "auto", world: core.World | None = None
) -> Opened:
    """world: of processes that measure together; None: this one alone. ValueError where the folder
    holds no finished weights of train_headlines.py."""
    if not run:
        raise ValueError("needs --run_folder FOLDER, a run of train_headlines.py")
    record = Path(run) / "run.json"
    if not record.is_file():
        raise FileNotFoundError(f"{run}: no run of train_headlines.py (it has no run.json)")
    script = read_json(record).get("script")
    if script != "train_headlines.py":
        raise ValueError(f"{run}: a run of {script}, not of train_headlines.py")
    weights = weights or pretrained.tested_weights(run, "final")
    folder = Path(pretrained.weights_folder(run, weights))
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"{run} has no {weights} weights: has the run been finished?")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from models import gpt  # noqa: F401, registers our architecture

    world = world or core.single_world(device)
    if world.rank == 0:
        note_failures(run)
    settings = read_yaml(Path(run) / "config.yaml")
    config = pretrained.load_config(str(folder))
    model = pretrained.load_whole(AutoModelForCausalLM, str(folder), config)
    model.to(world.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Opened(SimpleNamespace(**settings), model, tokenizer, world.device)


@dataclass
class GenerateConfig(Decoding):
    """Settings of `generate`: titles that a run's model writes."""

    max_new_tokens: int = 60
    """tokens of a title at most"""
    temperature: float = 1.0
    """0: always the likeliest token, so that all titles are the same"""

    run_folder: str = ""
    """run folder"""
    weights: Literal["best", "final"] | None = None
    """which of its weights; null: those that it was tested with"""
    prompt: str = ""
    """how the titles begin"""
    count: int = 10
    """titles to write"""
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"] = "auto"
    """where to compute"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 1:
            raise ValueError(f"--count {self.count}: expected 1 or more")


def generate(config: GenerateConfig) -> None:
    opened = open_titles(config.run_folder, config.weights, config.device)
    for title in write_titles(opened, config.prompt, config.count, config):
        console.answer(title)


def write_titles(opened: Opened, prompt: str, count: int, decoding: Decoding) -> list[str]:
    """Titles that begin with the prompt, one a line; the first ones do not depend on the count."""
    if count < 1:
        return []
    tokenizer, model = opened.tokenizer, opened.model
    prompt = repair_surrogates(prompt, set())
    ids = [tokenizer.eos_token_id, *encode(tokenizer, [prompt])[0]]
    if model.config.positions == "learned":
        positions, length = model.config.n_positions, len(ids)
        ids = fit(ids, positions, decoding.max_new_tokens)
        if len(ids) < length:
            note(said_of_cut(["the prompt"]))
        limit = min(decoding.max_new_tokens, positions - len(ids))
        decoding = replace(decoding, max_new_tokens=limit)
    start = torch.tensor([ids] * count, device=opened.device)
    written = model.generate(start, decoding)[:, 1:].tolist()
    return [shown(titles.decode_title(tokenizer, cut_at_eos(row, ids[0]))) for row in written]


def cut_at_eos(ids: Sequence[int], eos: int) -> Sequence[int]:
    return ids[: ids.index(eos)] if eos in ids else ids


@dataclass
class ExportConfig(Section):
    """Settings of `export`: the model as transformers' own Llama or Qwen3."""

    run_folder: str = ""
    """run folder"""
    weights: Literal["best", "final"] | None = None
    """which of its weights; null: those that it was tested with"""
    output: str = ""
    """folder to write; it must not exist"""


def export(config: ExportConfig) -> None:
    """A folder that AutoModelForCausalLM opens without ours; refused where logits would differ."""
    folder = new_folder(config)
    opened = open_titles(config.run_folder, config.weights, "cpu")
    from models import gpt

    exported = gpt.to_transformers(opened.model)
    size, eos = opened.model.config.vocab_size, opened.tokenizer.eos_token_id
    ids = torch.randint(0, size, (4, 24), generator=torch.Generator().manual_seed(0))
    ids[ids == eos] = (eos + 1) % size
    ids[:, 0] = eos  # one title a row
    with torch.no_grad():
        apart = (exported(ids).logits - opened.model(ids).logits).abs().max().item()
    if apart > 1e-3:
        raise ValueError(f"the logits of the exported model are {apart:.2g} apart from ours")
    write_folder(folder, lambda to: pretrained.save_weights(exported, to, opened.tokenizer))
    kind = type(exported).__name__
    console.say(
        f"{config.output}: {kind}, logits at most {apart:.1g} apart; a title begins with <eos>"
    )
    if opened.tokenizer.decode(opened.tokenizer("a").input_ids) == " a":
        console.say("what the tokenizer decodes begins with a space (prefix_space): strip it")
