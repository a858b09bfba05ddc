"""Continue prompts with a causal language model of transformers."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from data.tokens import added_tokens
from models import pretrained


@torch.no_grad()
def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    rows_each: int = 8,
) -> list[str]:
    """What the model writes after each prompt, up to its end of text; without the prompt.

    temperature 0: always the most likely token. ValueError for a prompt that leaves no room.
    """
    from transformers import GenerationConfig

    before, _ = added_tokens(tokenizer)
    # as in training, an <|endoftext|> that somebody wrote is text
    plain = {"add_special_tokens": False, "split_special_tokens": True}
    encoded = [before + tokenizer(prompt, **plain)["input_ids"] for prompt in prompts]
    positions = pretrained.max_positions(model.config) or 1 << 30
    longest = max(map(len, encoded), default=0)
    if longest >= positions:
        raise ValueError(f"a prompt of {longest} tokens: the model has {positions} positions")
    sampling: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        sampling |= {"temperature": temperature, "top_k": top_k or 0}
    device, training = next(model.parameters()).device, model.training
    model.eval()
    torch.manual_seed(seed)
    answers: dict[int, str] = {}
    for rows in _of_like_length(encoded, rows_each):
        width = max(len(encoded[row]) for row in rows)
        ids = torch.full((len(rows), width), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for line, row in enumerate(rows):  # on the left, for all continue at the right
            ids[line, width - len(encoded[row]) :] = torch.tensor(encoded[row])
            mask[line, width - len(encoded[row]) :] = 1
        settings = GenerationConfig(
            max_new_tokens=min(max_new_tokens, positions - width),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **sampling,
        )
        outputs = model.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings
        )
        for row, line in zip(rows, outputs[:, width:].tolist(), strict=True):
            if tokenizer.eos_token_id in line:
                line = line[: line.index(tokenizer.eos_token_id)]
            answers[row] = tokenizer.decode(line, skip_special_tokens=True).strip()
    model.train(training)
    return [answers[row] for row in range(len(prompts))]


def _of_like_length(encoded: Sequence[Sequence[int]], rows_each: int) -> Iterator[list[int]]:
    order = sorted(range(len(encoded)), key=lambda row: (-len(encoded[row]), row))
    for start in range(0, len(order), rows_each):
        yield order[start : start + rows_each]
