"""Both answers through one encoder: the pair classifier of core around a model of transformers.

model = core.PairClassifier(encoder, build_head("concat", hidden, dropout=0.1))
logits = pair_outputs(model, batch)      # (A, B) and (B, A), (rows, 2 · classes)
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import core
from data.style import exchanged
from device import is_compiled
from files import write_text
from models import heads, pretrained

FACTS = "preference.json"  # beside the weights: what is needed to answer with them

LEAST_TOKENS = 400  # of a pass through the encoder on a CPU


def build_head(
    name: str,
    hidden: int,
    dropout: float | None = None,
    classes: int = 3,
    style: tuple[Tensor, Tensor] | None = None,
    joint: bool = False,
) -> nn.Module:
    """concat, symmetric or davidson; dropout: None for .1; classes: 2 where there are no ties;
    style: (mean, scale) of the style features that it reads, too; joint: both answers are in one
    sequence, so that nothing is left to concatenate."""
    kind = {
        "concat": heads.JointHead if joint else core.ConcatHead,
        "symmetric": heads.SymmetricHead,
        "davidson": heads.DavidsonHead,
    }[name]
    dropout = 0.1 if dropout is None else dropout
    if style is None:
        return kind(hidden, classes, dropout=dropout)
    inside = kind(hidden + heads.STYLE_SIZE, classes, dropout=dropout)
    return heads.StyleHead(inside, *style, dropout)


def build_model(encoder: nn.Module, head: nn.Module, pooling: str) -> core.PairClassifier:
    """pooling: first (token) or mean."""
    return {"first": core.PairClassifier, "mean": heads.MeanPairs}[pooling](encoder, head)


def pair_logits(model: core.PairClassifier, batch: dict[str, Tensor]) -> Tensor:
    """(rows, classes)"""
    a, b = embed_pairs(model, batch)
    return model.head(a, b, *style_of(batch))


def style_of(batch: dict[str, Tensor]) -> list[Tensor]:
    """The style features (rows, features), where the batch has them."""
    return [batch["style"]] if "style" in batch else []


def length_groups(lengths: Tensor) -> list[Tensor]:
    """Numbers of the sequences that a CPU takes through the encoder together, by length.

    The fewer differ in length, the less is padding; groups below LEAST_TOKENS would make the
    products too small. lengths (sequences,).
    """
    groups = min(len(lengths), int(lengths.sum()) // LEAST_TOKENS, 4)
    return list(lengths.argsort(stable=True).tensor_split(max(1, groups)))


def embed_pairs(model: core.PairClassifier, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """a, b (rows, hidden): of both answers, or both orders; where the batch has one order alone,
    that one twice, for nothing reads the second."""
    embeddings = embed(model, batch)
    if "labels" in batch and len(batch["labels"]) == len(embeddings):
        return embeddings, embeddings
    return embeddings.chunk(2)


def embed(model: core.PairClassifier, batch: dict[str, Tensor]) -> Tensor:
    """(sequences, hidden): the batch's embeddings, or from its states on, or from all layers."""
    if "embeddings" in batch:
        return batch["embeddings"]
    names = ("input_ids", "attention_mask", "token_type_ids", "states")
    inputs = {name: batch[name] for name in names if name in batch}
    if batch["input_ids"].device.type != "cpu" or is_compiled(model.encoder):
        return first_tokens(model, **inputs)
    lengths = inputs["attention_mask"].sum(dim=1)
    groups = length_groups(lengths)
    states = [
        first_tokens(model, **{name: x[rows, : lengths[rows].max()] for name, x in inputs.items()})
        for rows in groups
    ]
    places = torch.cat(groups).argsort()
    return torch.cat(states)[places]


def first_tokens(
    model: core.PairClassifier,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    states: Tensor | None = None,
    **more: Tensor,
) -> Tensor:
    """input_ids, attention_mask (sequences, seq), None without padding, states (sequences, seq,
    hidden) where a frozen part's are kept, more: token_type_ids → (sequences, hidden)."""
    if states is None:
        return model.first_tokens(input_ids, attention_mask, **more)
    with pretrained.from_border(model.encoder, states):
        return model.first_tokens(input_ids, attention_mask, **more)


def pair_outputs(model: core.PairClassifier, batch: dict[str, Tensor]) -> Tensor:
    """Logits of (A, B) and of (B, A), (rows, 2 · classes); the second order costs the head alone
    again."""
    a, b = embed_pairs(model, batch)
    style = style_of(batch)
    swapped = model.head(b, a, *map(exchanged, style))
    return torch.cat([model.head(a, b, *style), swapped], dim=-1)


def save_model(model: core.PairClassifier, tokenizer: Any, facts: dict, folder: Path) -> None:
    """An encoder folder that AutoModel.from_pretrained opens, the head and our facts beside it."""
    from safetensors.torch import save_file

    pretrained.save_weights(model.encoder, folder, tokenizer)
    weights = {name: tensor.contiguous() for name, tensor in model.head.state_dict().items()}
    save_file(weights, folder / "head.safetensors")
    write_text(folder / FACTS, json.dumps(facts, indent=1))


def restore_model(model: core.PairClassifier, folder: Path) -> None:
    """Read weights that save_model wrote into a model of the same shape."""
    from safetensors.torch import load_file

    pretrained.restore_weights(model.encoder, folder)
    model.head.load_state_dict(load_file(folder / "head.safetensors"))
