"""What a model of titles expects next: at one place, and of each token on the whole."""

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from data import titles
from data.records import strip_control
from data.titles import TitleData
from data.tokens import Ragged
from device import to_device

MOST_TOKENS = 20  # in the table and picture of frequencies


class Opened(Protocol):
    """A model in evaluation mode with its settings and tokenizer."""

    config: Any
    model: nn.Module  # models.gpt.SmallGPTForCausalLM
    tokenizer: Any
    device: torch.device


def shown(text: str) -> str:
    """Text for a terminal: control characters and line ends cannot do anything."""
    return strip_control(text.replace("\n", "⏎"))


def token_text(tokenizer: Any, token: int) -> str:
    """A token as text; bytes that are no letter alone by their piece."""
    text = tokenizer.decode([token])
    return shown(tokenizer.convert_ids_to_tokens(token) if "\ufffd" in text else text)


@torch.no_grad()
def look_at_place(
    opened: Opened, rows: Ragged, batch: int, row: int, position: int
) -> dict[str, Any]:
    """What is read up to a place of the exercise's evaluation, and the ten likeliest next tokens.

    The last batch, which that evaluation leaves out, may be unfinished. ValueError for a place that
    there is not.
    """
    tokenizer, eos = opened.tokenizer, opened.tokenizer.eos_token_id
    tokens = titles.build_stream(rows, eos).tokens[1:]
    batches = math.ceil(len(tokens) / titles.OFFICIAL_SPAN)
    for name, value, count in (
        ("batch", batch, batches),
        ("row", row, titles.OFFICIAL_BATCH),
        ("position", position, titles.OFFICIAL_BLOCK),
    ):
        if not 0 <= value < count:
            raise ValueError(f"--{name} {value}: the validation titles have 0 to {count - 1}")
    start = batch * titles.OFFICIAL_SPAN + row * titles.OFFICIAL_BLOCK
    read = tokens[start : start + position + 2].astype(np.int64)
    if len(read) < position + 2:
        raise ValueError(
            f"--batch {batch} --row {row} --position {position}: the validation titles end before "
            f"it, they have {len(tokens):,} tokens"
        )
    ids = torch.from_numpy(read[None, :-1])
    shares = opened.model(ids.to(opened.device)).logits[0, -1].float().softmax(-1).cpu()
    best, likeliest = shares.topk(10)
    begins = (ids[0] == eos).nonzero().flatten().tolist()
    begins = begins[-1] if opened.model.config.within_titles and begins else 0
    actual = int(read[-1])
    return {
        "batch": batch,
        "row": row,
        "position": position,
        "read": shown(tokenizer.decode(ids[0])),
        "seen": shown(tokenizer.decode(ids[0, begins:])),
        "next": token_text(tokenizer, actual),
        "next_probability": float(shares[actual]),
        "likeliest": [
            {"token": token_text(tokenizer, token), "probability": p}
            for token, p in zip(likeliest.tolist(), best.tolist(), strict=True)
        ],
    }


def validation_batches(opened: Opened, rows: Ragged) -> Iterator[dict[str, Tensor]]:
    """Every validation token once, as the run's own evaluation reads it."""
    config, eos = opened.config, opened.tokenizer.eos_token_id
    data: Any = TitleData(rows, eos)
    if not config.within_titles:
        stream = titles.build_stream(rows, eos)
        data = titles.validation_windows(stream, config.max_length, eos)
    size = max(1, 4096 // int(np.mean(data.lengths)))
    for start in range(0, len(data.lengths), size):
        numbers = np.arange(start, min(start + size, len(data.lengths)))
        yield to_device(data.collate(numbers, None), opened.device)


@torch.no_grad()
def token_frequencies(opened: Opened, rows: Ragged) -> dict[str, Any]:
    """How often each token comes in the validation titles, and how often the model expects it.

    The latter is its probability, averaged over all places. In shares of all tokens.
    """
    from models import gpt  # slow to import

    size, eos = opened.model.config.vocab_size, opened.tokenizer.eos_token_id
    expected, counts = torch.zeros(size, dtype=torch.float64), torch.zeros(size)
    weight = opened.model.lm_head.weight
    for batch in validation_batches(opened, rows):
        hidden = opened.model.model(batch["input_ids"]).last_hidden_state
        hidden, labels = gpt.at_targets(hidden, batch["labels"], batch["places"])
        for part in hidden.split(512):
            expected += (part @ weight.T).float().softmax(-1).sum(0).cpu().double()
        counts += torch.bincount(labels.cpu(), minlength=size)
    expected, data = (expected / counts.sum()).numpy(), (counts / counts.sum()).double().numpy()
    order = np.argsort(-data, kind="stable")[:MOST_TOKENS]

    def line(token: int) -> dict[str, Any]:
        text = token_text(opened.tokenizer, token)
        return {"token": text, "data": float(data[token]), "model": float(expected[token])}

    return {"tokens": int(counts.sum()), "eos": line(eos), "commonest": [line(t) for t in order]}
