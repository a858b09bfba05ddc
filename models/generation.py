"""Continue prompts with a causal language model of transformers.

    answers = generate(model, tokenizer, prompts, Decoding(max_new_tokens=64))
    answers[0].text

What is written behind a prompt depends on the prompt, the model and the decoding, not on the
prompts beside it: each has its own limit, its own random numbers, and padding that nothing sees.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from data.rows import stable_hash
from data.tokens import added_tokens, encode, keep_ends
from device import rows_in_parts
from models import pretrained
from models.decoding import Chooser, Decoding


class Answer(NamedTuple):
    """What a model wrote behind a prompt."""

    text: str
    ended: bool  # by an end of text; else by its limit
    cut: int  # tokens in the middle of the prompt that the model has no positions for


TOKENS_EACH = 32_768  # keys and values of GPT-2 medium take 3 GB then, in 16 bits

# What a generation_config.json may ask for, of which nothing is followed.
FOREIGN = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "num_beams",
    "length_penalty",
    "min_length",
    "max_length",
    "min_new_tokens",
    "max_new_tokens",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
)


def own_decoding(model: nn.Module, tokenizer: Any) -> dict[str, Any]:
    """Forget how the model's makers decode, here and in what is saved of the model; returns it.

    What stays are the tokenizer's ids: an answer ends with the end of text that training teaches.
    Models that write no text stay unchanged.
    """
    from transformers import GenerationConfig

    if not model.can_generate():
        return {}
    theirs = {name: getattr(model.generation_config, name, None) for name in FOREIGN}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    model.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id, **ids)
    return {name: value for name, value in theirs.items() if value is not None}


def fit(ids: Sequence[int], positions: int, max_new_tokens: int) -> Sequence[int]:
    """A prompt that leaves no room for an answer without its middle, others unchanged.

    What is left is both ends, as much as leaves room for max_new_tokens, and half of the positions
    at least: an instruction begins with what is asked and ends with where the answer begins.
    """
    if len(ids) < positions:
        return ids
    return keep_ends(ids, max(positions - max_new_tokens, positions // 2))


def said_of_cut(names: Sequence[str]) -> str:
    """A line for the console about the prompts that were cut."""
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return (
        f"{len(names):,} prompts leave no room for an answer: cut in their middle "
        f"({', '.join(names[:5])}{more})"
    )


@torch.no_grad()
def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    decoding: Decoding,
    rows_each: int | None = None,
) -> list[Answer]:
    """What the model writes behind each prompt, up to its end of text.

    rows_each: prompts that are answered together; None: on a CPU 8, on a GPU as many as TOKENS_EACH
    allow, for there a token of eight rows takes as long as one of a hundred. Fewer where memory
    runs out.
    """
    from transformers import LogitsProcessorList

    before, _ = added_tokens(tokenizer)
    whole = [before + ids for ids in encode(tokenizer, prompts)]
    positions = pretrained.max_positions(model.config) or 1 << 30
    encoded = [fit(ids, positions, decoding.max_new_tokens) for ids in whole]
    limits = [min(decoding.max_new_tokens, positions - len(ids)) for ids in encoded]
    device, training, end = next(model.parameters()).device, model.training, tokenizer.eos_token_id
    own_decoding(model, tokenizer)
    model.eval()
    answers: dict[int, Answer] = {}

    def write(rows: np.ndarray) -> list[list[int]]:
        width = max(len(encoded[row]) for row in rows)
        ids = torch.full((len(rows), width), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for line, row in enumerate(rows):  # on the left, for all continue at the right
            ids[line, width - len(encoded[row]) :] = torch.tensor(encoded[row])
            mask[line, width - len(encoded[row]) :] = 1
        keys = [int(stable_hash("draw", prompts[row]), 16) for row in rows]
        paddings = [width - len(encoded[row]) for row in rows]
        choice = _Choice(Chooser(decoding, keys), paddings)
        outputs = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=limits[rows[0]],
            do_sample=False,  # the choice is made already
            logits_processor=LogitsProcessorList([choice]),
        )
        return outputs[:, width:].tolist()

    if rows_each is None and device.type == "cpu":
        rows_each = 8
    for group in _groups(encoded, limits, rows_each):
        for rows, lines in rows_in_parts(write, np.array(group), device):
            for row, line in zip(rows.tolist(), lines, strict=True):
                ended = end in line
                line = line[: line.index(end)] if ended else line
                text = tokenizer.decode(line, skip_special_tokens=True).strip()
                answers[row] = Answer(text, ended, len(whole[row]) - len(encoded[row]))
    model.train(training)
    return [answers[row] for row in range(len(prompts))]


class _Choice:
    """A Chooser as transformers calls it: the logits of all tokens but the chosen one fall away."""

    def __init__(self, chooser: Chooser, paddings: Sequence[int]):
        self.chooser, self.paddings = chooser, paddings

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        ids = [row[padding:] for row, padding in zip(input_ids, self.paddings, strict=True)]
        chosen = self.chooser(ids, scores)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)


def _groups(
    encoded: Sequence[Sequence[int]], limits: Sequence[int], rows_each: int | None
) -> Iterator[list[int]]:
    """Rows that are answered together: of one limit, and of lengths that are near each other.

    One limit, because a row that has reached its own would be given positions that do not exist.
    rows_each: None for TOKENS_EACH, prompts and answers together, at least 8 rows.
    """
    order = sorted(range(len(encoded)), key=lambda row: (-limits[row], -len(encoded[row]), row))
    for _, rows in itertools.groupby(order, key=lambda row: limits[row]):
        waiting = list(rows)
        while waiting:  # the longest comes first
            longest = len(encoded[waiting[0]]) + limits[waiting[0]]
            each = rows_each or max(8, TOKENS_EACH // longest)
            yield waiting[:each]
            del waiting[:each]
