"""Pairs of answers as sequences of tokens and as batches: two sequences a row, A's and B's.

ids = cached_sequences(rows, tokenizer, max_length, with_prompt, prompt_frac, world)
train = PairData(ids, index, labels, pad, max_length, swap_seed=0)
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core import World, mix_seed
from data.arena import PairRow
from data.rows import fingerprint
from data.style import exchanged
from data.tokens import (
    Ragged,
    cached_tokens,
    encode_texts,
    fill,
    keep_ends,
    ladder_length,
    pad_sequences,
    tokenizer_fingerprint,
)
from evaluation.metrics import SWAP, swap_classes


def share_budget(prompt: int, response: int, budget: int, prompt_frac: float) -> tuple[int, int]:
    """Tokens of (prompt, response) that fit into `budget`.

    What one does not need the other gets; if both are long the prompt keeps `prompt_frac`.
    """
    if prompt + response <= budget:
        return prompt, response
    prompt = min(prompt, max(int(budget * prompt_frac), budget - response))
    return prompt, min(response, budget - prompt)


def build_sequence(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    max_length: int,
    prompt_frac: float,
    cls: int,
    sep: int,
) -> list[int]:
    """[cls] prompt [sep] response [sep] …, turn after turn, at most max_length tokens.

    prompts may be empty (responses alone). Of a very long conversation the last turns are
    kept, so that each has at least about 16 tokens.
    """
    turns = max(1, max_length // 16)
    prompts, responses = prompts[-turns:], responses[-turns:]
    budget = max_length - 1 - len(prompts) - len(responses)
    prompt, response = share_budget(
        sum(map(len, prompts)), sum(map(len, responses)), budget, prompt_frac
    )
    kept_prompts = fill([len(p) for p in prompts], prompt)
    kept_responses = fill([len(r) for r in responses], response)
    ids = [cls]
    for turn, text in enumerate(responses):
        if prompts:
            ids += [*keep_ends(prompts[turn], kept_prompts[turn]), sep]
        ids += [*keep_ends(text, kept_responses[turn]), sep]
    return ids


def texts_of(rows: Sequence[PairRow], with_prompt: bool) -> Iterator[str]:
    """The texts of the rows in the order in which they are tokenised."""
    for row in rows:
        yield from (row.prompt if with_prompt else [])
        yield from row.response_a
        yield from row.response_b


def build_sequences(
    rows: Sequence[PairRow],
    tokenizer: Any,
    max_length: int,
    with_prompt: bool,
    prompt_frac: float,
    quiet: bool = False,
) -> Iterator[list[int]]:
    """Two sequences a row, one at a time: number 2i is A's side, 2i + 1 is B's."""
    count = sum(1 for _ in texts_of(rows, with_prompt))
    ids = encode_texts(tokenizer, texts_of(rows, with_prompt), count, "tokenising", quiet)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    for row in rows:
        prompts = [next(ids) for _ in row.prompt] if with_prompt else []
        for side in (row.response_a, row.response_b):
            responses = [next(ids) for _ in side]
            yield build_sequence(prompts, responses, max_length, prompt_frac, cls, sep)


def cached_sequences(
    rows: Sequence[PairRow],
    tokenizer: Any,
    max_length: int,
    with_prompt: bool,
    prompt_frac: float,
    world: World,
) -> Ragged:
    """build_sequences through the cache on disk, keyed by content, tokenizer and length."""
    if max_length < 8:
        raise ValueError(f"--max_length {max_length}: 8 tokens at least")
    texts = ((row.prompt if with_prompt else [], row.response_a, row.response_b) for row in rows)
    key = {
        "kind": "preference pairs, version 3",
        "content": fingerprint(texts),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "max_length": max_length,
        "with_prompt": with_prompt,
        "prompt_frac": prompt_frac if with_prompt else None,
    }

    def build() -> Iterator[list[int]]:
        quiet = world.rank != 0
        return build_sequences(rows, tokenizer, max_length, with_prompt, prompt_frac, quiet)

    return cached_tokens(key, build, world)


def soft_labels(rows: Sequence[PairRow], classes: int) -> np.ndarray | None:
    """(rows, classes) probabilities, of a hard label 1 and 0; None where all labels are hard."""
    if not any(row.soft for row in rows):
        return None
    hard = np.eye(3)
    each = [hard[row.label] if row.soft is None else row.soft for row in rows]
    return np.array(each, np.float32)[:, :classes]


class PairData:
    """Rows `index` of the token cache as a data set for core's loaders."""

    def __init__(
        self,
        ids: Ragged,
        index: np.ndarray,
        labels: np.ndarray,
        pad: int,
        max_length: int,
        ladder: int | None = None,
        swap_seed: int | None = None,
        soft: np.ndarray | None = None,
    ):
        """soft: probabilities (all rows, classes) in the place of labels."""
        self.soft = soft
        self.ids, self.index, self.labels, self.pad = ids, index, labels, pad
        self.max_length, self.ladder, self.swap_seed = max_length, ladder, swap_seed
        # outputs of a frozen part: (sequences, hidden) or (tokens of ids, hidden), bf16 as int16
        self.embeddings: np.ndarray | None = None
        self.states: np.ndarray | None = None
        self.style: np.ndarray | None = None  # style_features of all rows, for a head that reads it
        sides = ids.lengths.reshape(-1, 2)[index]
        self.lengths, self.tokens = sides.max(axis=1), sides.sum(axis=1)

    def collate(self, rows: np.ndarray, epoch: int | np.ndarray | None) -> dict[str, Tensor]:
        """input_ids, attention_mask (2·rows, seq), the A sides first; labels (rows,), or
        (rows, classes) where they are probabilities.

        Where they are kept, also states (2·rows, seq, hidden), or only embeddings (2·rows, hidden);
        style (rows, features) where there is.
        """
        numbers = self.index[rows]
        labels = self.labels[numbers] if self.soft is None else self.soft[numbers]
        first = np.zeros(len(rows), np.int64)  # which side stands first
        if self.swap_seed is not None and epoch is not None:
            drawn = zip(numbers, np.broadcast_to(epoch, len(rows)), strict=True)
            first[:] = [mix_seed(self.swap_seed, int(n), int(e), 3) & 1 for n, e in drawn]
            if self.soft is None:
                labels = np.where(first == 1, np.array(SWAP)[labels], labels)
            else:
                labels = np.where(first[:, None] == 1, swap_classes(labels), labels)
        sides = np.concatenate([2 * numbers + first, 2 * numbers + 1 - first])
        batch = {"labels": torch.from_numpy(labels)}
        if self.style is not None:
            style = self.style[numbers]
            style[first == 1] = exchanged(style[first == 1])
            batch["style"] = torch.from_numpy(style)
        if self.embeddings is not None:
            return batch | {"embeddings": torch.from_numpy(self.embeddings[sides])}
        width = ladder_length(self.ids.lengths[sides].max(), self.max_length, self.ladder)
        batch |= pad_sequences([self.ids[side] for side in sides], width, self.pad)
        if self.states is not None:
            batch["states"] = pad_states(self.states, self.ids.offsets, sides, width)
        return batch


def pad_states(states: np.ndarray, offsets: np.ndarray, numbers: np.ndarray, width: int) -> Tensor:
    """The states of each sequence's tokens (sequences, width, hidden), zero at padding."""
    padded = np.zeros((len(numbers), width, states.shape[1]), states.dtype)
    for row, number in enumerate(numbers):
        start, end = offsets[number], offsets[number + 1]
        padded[row, : end - start] = states[start:end]
    tensor = torch.from_numpy(padded)
    return tensor.view(torch.bfloat16) if padded.dtype == np.int16 else tensor


class SequenceData:
    """The sequences of the token cache one by one, for what does not depend on the pair."""

    def __init__(self, ids: Ragged, pad: int, max_length: int, ladder: int | None):
        self.ids, self.pad, self.max_length, self.ladder = ids, pad, max_length, ladder
        self.lengths = self.tokens = ids.lengths

    def collate(self, rows: np.ndarray, epoch: int | None) -> dict[str, Tensor]:
        """input_ids, attention_mask (rows, seq)."""
        width = ladder_length(self.lengths[rows].max(), self.max_length, self.ladder)
        return pad_sequences([self.ids[row] for row in rows], width, self.pad)
