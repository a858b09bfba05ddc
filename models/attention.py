"""Attention maps: what each token of a text reads, in chosen layers and heads.

    tokens, maps = attention_maps(model, tokenizer, "A text.", layers=[0, 5], heads=[])
    text = maps_text([("A text.", tokens, maps)])        # for test/analysis/attention.jsonl

Fused kernels never write the weights down: for these few texts the model computes them eagerly.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from data.tokens import added_tokens, encode

MOST_TOKENS = 32  # of a text: more could not be read in a picture


@dataclass
class Map:
    layer: int
    head: int | None  # None: the mean of all heads
    weights: Tensor  # (seq, seq): row i is what token i reads, and sums to 1


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode with attention that can be read; then as it was."""
    before, training = model.config._attn_implementation, model.training  # noqa: SLF001
    model.set_attn_implementation("eager")
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        model.set_attn_implementation(before)


@torch.no_grad()
def attention_maps(
    model: nn.Module,
    tokenizer: Any,
    text: str,
    layers: Sequence[int],
    heads: Sequence[int] = (),
    most_tokens: int = MOST_TOKENS,
) -> tuple[list[str], list[Map]]:
    """The first tokens of a text as strings, and a map for each layer and head.

    model: a causal model or an encoder of transformers; heads: none means their mean. ValueError
    for a layer or head that is not there, and for a model that returns no attention weights.
    """
    device = next(model.parameters()).device
    before, after = added_tokens(tokenizer)
    read = encode(tokenizer, [text])[0][: max(0, most_tokens - len(before) - len(after))]
    ids = torch.tensor([[*before, *read, *after]], dtype=torch.int64, device=device)
    kind = model.config.model_type
    if ids.shape[1] == 0:
        raise ValueError("a text without a token has no attention map")
    mask = torch.ones_like(ids)
    with eager_attention(model):
        # forward: what torch.compile made of the model has no place for the weights
        outputs = model.base_model.forward(
            input_ids=ids, attention_mask=mask, output_attentions=True
        )
    weights = getattr(outputs, "attentions", None)
    if not weights or weights[0] is None:
        raise ValueError(f"{kind} gives no attention weights")
    maps = []
    for layer in layers:
        check_number("layer", layer, len(weights))
        each = weights[layer][0].float().cpu()  # (heads, seq, seq)
        for head in heads:
            check_number("head", head, len(each))
        maps += [Map(layer, head, each[head]) for head in heads]
        if not heads:
            maps.append(Map(layer, None, each.mean(dim=0)))
    return [tokenizer.decode([int(token)]) for token in ids[0]], maps


def check_number(what: str, number: int, count: int) -> None:
    if not 0 <= number < count:
        raise ValueError(f"there is no {what} {number}: the model has {what}s 0 to {count - 1}")


def some_layers(count: int) -> list[int]:
    """The lowest, the middle and the highest of `count` layers."""
    return sorted({0, count // 2, count - 1})


def maps_text(texts: Sequence[tuple[str, list[str], list[Map]]]) -> str:
    """A line a text: {"text", "tokens", "maps": [{"layer", "head", "weights"}]}."""
    lines = []
    for text, tokens, maps in texts:
        rows = [
            {
                "layer": each.layer,
                "head": each.head,
                "weights": [[round(w, 4) for w in row] for row in each.weights.tolist()],
            }
            for each in maps
        ]
        line = {"text": text[:2000], "tokens": tokens, "maps": rows}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines)
