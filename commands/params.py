"""`params` of alpaca_sft.py: how many parameters, from the configuration alone."""

from dataclasses import dataclass
from typing import Literal

import console
from models import causal, lora, pretrained
from settings import Section

# Layers, width and heads of the published GPT-2s, so that `params` needs no hub.
GPT2 = {
    "gpt2": (12, 768, 12),
    "gpt2-medium": (24, 1024, 16),
    "gpt2-large": (36, 1280, 20),
    "gpt2-xl": (48, 1600, 25),
}


@dataclass
class ParamsConfig(Section):
    """Settings of `params`: how many parameters, from the configuration alone."""

    ONLY_WITH = {"lora_qkv": "lora_r", "lora_layers": "lora_r", "lora_head": "lora_r"}

    model: str = "gpt2-medium"
    """gpt2, gpt2-medium, gpt2-large, gpt2-xl; or a run or local folder, or a hub id"""
    lora_r: int | None = None
    """rank of LoRA's updates; null: no LoRA"""
    lora_qkv: Literal["separate", "fused"] = "separate"
    """GPT-2's query, key and value: an adapter each, or one for the three"""
    lora_layers: str = "all"
    """blocks with adapters: all, or last:k"""
    lora_head: bool = True
    """an adapter at the output matrix as well"""


def params(config: ParamsConfig) -> None:
    """Totals with the head tied to the embeddings and not, their memory, and LoRA by layer."""
    if config.model in GPT2:
        from transformers import GPT2Config

        pretrained.quiet_transformers()
        layers, width, heads = GPT2[config.model]
        shape = GPT2Config(n_layer=layers, n_embd=width, n_head=heads)
    else:
        pretrained.check_model(config.model)
        shape = causal.load_config(pretrained.weights_folder(config.model, "best"))
    chosen = None
    if config.lora_r is not None:
        parts = {"qkv": config.lora_qkv, "layers": config.lora_layers, "head": config.lora_head}
        chosen = lora.LoraConfig(config.lora_r, config.lora_r, **parts)
    counts = lora.count_parameters(shape, chosen)
    console.answer(config.model)
    for name, count in (("tied head", counts.tied), ("untied head", counts.untied)):
        console.answer(f"  {name:<12} {count:>15,} parameters  {_mib(count):>10,.2f} MB in fp32")
    if chosen is None:
        return
    share = counts.trainable / counts.tied
    console.answer(
        f"  LoRA, rank {config.lora_r:<2} {counts.trainable:>13,} parameters  "
        f"{_mib(counts.trainable):>10,.2f} MB in fp32, {share:.2%} of the tied model"
    )
    for name, count in counts.lora.items():
        console.answer(f"    {name:<10} {count:>15,}")


def _mib(parameters: int) -> float:
    return parameters * 4 / 2**20
