"""Pairs of answers as sequences of tokens and as batches: two sequences a row, A's and B's; or, in
the joint form, both answers in one sequence, in either order.

ids = cached_sequences(rows, tokenizer, max_length, with_prompt, prompt_frac, world)
train = PairData(ids, index, labels, pad, max_length, swap_seed=0)
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from core import World, mix_seed
from data.arena import PairRow
from data.rows import fingerprint
from data.style import exchanged, style_features
from data.tokens import (
    Ragged,
    cached_tokens,
    encode_texts,
    fill,
    keep_ends,
    ladder_length,
    pad_sequences,
    segment_separator,
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
    others: Sequence[Sequence[int]] | None = None,
) -> list[int]:
    """[cls] prompt [sep] response [sep] …, turn after turn, at most max_length tokens.

    prompts may be empty (responses alone). others: the other answer's turns, each of which stands
    behind that of responses; both answers may keep as many tokens, and what one does not need the
    other gets. Of a very long conversation the last turns are kept, so that each text has at least
    about 8 tokens.
    """
    answers = [responses] if others is None else [responses, others]
    turns = max(1, max_length // (8 + 8 * len(answers)))
    prompts, answers = prompts[-turns:], [answer[-turns:] for answer in answers]
    lengths = [[len(text) for text in answer] for answer in answers]
    budget = max_length - 1 - len(prompts) - sum(map(len, answers))
    prompt, response = share_budget(
        sum(map(len, prompts)), sum(map(sum, lengths)), budget, prompt_frac
    )
    kept_prompts = fill([len(p) for p in prompts], prompt)
    shares = fill(list(map(sum, lengths)), response)
    kept = [fill(each, share) for each, share in zip(lengths, shares, strict=True)]
    ids = [cls]
    for turn in range(len(answers[0])):
        if prompts:
            ids += [*keep_ends(prompts[turn], kept_prompts[turn]), sep]
        for answer, room in zip(answers, kept, strict=True):
            ids += [*keep_ends(answer[turn], room[turn]), sep]
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
    joint: bool = False,
) -> Iterator[list[int]]:
    """Two sequences a row, one at a time: number 2i is A's side, 2i + 1 is B's; joint: both answers
    are in each, in 2i A first, in 2i + 1 B."""
    count = sum(1 for _ in texts_of(rows, with_prompt))
    ids = encode_texts(tokenizer, texts_of(rows, with_prompt), count, "tokenising", quiet)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    for row in rows:
        prompts = [next(ids) for _ in row.prompt] if with_prompt else []
        a, b = ([next(ids) for _ in side] for side in (row.response_a, row.response_b))
        for one, other in ((a, b), (b, a)):
            others = other if joint else None
            yield build_sequence(prompts, one, max_length, prompt_frac, cls, sep, others)


def cached_sequences(
    rows: Sequence[PairRow],
    tokenizer: Any,
    max_length: int,
    with_prompt: bool,
    prompt_frac: float,
    world: World,
    joint: bool = False,
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
    } | ({"form": "joint"} if joint else {})

    def build() -> Iterator[list[int]]:
        quiet = world.rank != 0
        shape = (max_length, with_prompt, prompt_frac)
        return build_sequences(rows, tokenizer, *shape, quiet, joint)

    return cached_tokens(key, build, world)


def soft_labels(rows: Sequence[PairRow], classes: int) -> np.ndarray | None:
    """(rows, classes) probabilities, of a hard label 1 and 0; None where all labels are hard."""
    if not any(row.soft for row in rows):
        return None
    hard = np.eye(3)
    each = [hard[row.label] if row.soft is None else row.soft for row in rows]
    return np.array(each, np.float32)[:, :classes]


class Joint(NamedTuple):
    """What is to be known of sequences that hold both answers."""

    texts: int  # of a turn: prompt, first and second answer, or the answers alone
    both_orders: bool  # whether training reads both orders of a row, or one
    separator: int | None  # of `segment_separator`; None: a model that knows no segments


def joint_form(tokenizer: Any, model_config: Any, with_prompt: bool, both_orders: bool) -> Joint:
    """both_orders: in training."""
    return Joint(2 + with_prompt, both_orders, segment_separator(tokenizer, model_config))


def segments(sequences: Sequence[np.ndarray], width: int, joint: Joint | None) -> dict[str, Tensor]:
    """token_type_ids (rows, width), 1 in the texts of the second answer; {} where the model knows
    no segments, or each sequence has one answer."""
    if joint is None or joint.separator is None:
        return {}
    types = np.zeros((len(sequences), width), np.int64)
    for row, ids in zip(types, sequences, strict=True):
        text = np.cumsum(np.asarray(ids[1:]) == joint.separator)
        row[2 : len(ids)] = text[:-1] % joint.texts == joint.texts - 1
    return {"token_type_ids": torch.from_numpy(types)}


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
        joint: Joint | None = None,
    ):
        """soft: probabilities (all rows, classes) in the place of labels. joint: of sequences that
        hold both answers."""
        self.soft, self.joint = soft, joint
        self.ids, self.index, self.labels, self.pad = ids, index, labels, pad
        self.max_length, self.ladder, self.swap_seed = max_length, ladder, swap_seed
        # outputs of a frozen part: (sequences, hidden) or (tokens of ids, hidden), bf16 as int16
        self.embeddings: np.ndarray | None = None
        self.states: np.ndarray | None = None
        self.style: np.ndarray | None = None  # style_features of all rows, for a head that reads it
        self.teacher: np.ndarray | None = None  # (rows of index, classes) log p of a teacher
        sides = ids.lengths.reshape(-1, 2)[index]
        self.lengths, self.tokens = sides.max(axis=1), sides.sum(axis=1)
        if joint and not joint.both_orders:
            self.tokens = sides[:, 0]

    def collate(self, rows: np.ndarray, epoch: int | np.ndarray | None) -> dict[str, Tensor]:
        """input_ids, attention_mask (2·rows, seq), the A sides first; labels (rows,), or
        (rows, classes) where they are probabilities. Of joint sequences those that begin with A
        come first, token_type_ids may be there, and training may have one a row (rows, seq).

        Where they are kept, also states (2·rows, seq, hidden), or only embeddings (2·rows, hidden);
        style (rows, features) and teacher (rows, classes) where there is.
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
        if epoch is not None and self.joint and not self.joint.both_orders:
            sides = sides[: len(rows)]
        batch = {"labels": torch.from_numpy(labels)}
        if self.style is not None:
            style = self.style[numbers]
            style[first == 1] = exchanged(style[first == 1])
            batch["style"] = torch.from_numpy(style)
        if self.teacher is not None:
            theirs = self.teacher[rows]
            theirs = np.where(first[:, None] == 1, swap_classes(theirs), theirs)
            batch["teacher"] = torch.from_numpy(theirs)
        if self.embeddings is not None:
            return batch | {"embeddings": torch.from_numpy(self.embeddings[sides])}
        width = ladder_length(self.ids.lengths[sides].max(), self.max_length, self.ladder)
        sequences = [self.ids[side] for side in sides]
        batch |= pad_sequences(sequences, width, self.pad) | segments(sequences, width, self.joint)
        if self.states is not None:
            batch["states"] = pad_states(self.states, self.ids.offsets, sides, width)
        return batch


def unlabelled(
    rows: Sequence[PairRow],
    tokenizer: Any,
    max_length: int,
    with_prompt: bool,
    prompt_frac: float,
    joint: Joint | None,
    style: bool,
    ladder: int | None = None,
    quiet: bool = True,
) -> PairData:
    """Rows to be answered. style: whether the head reads it; quiet: without a progress bar."""
    shape = (max_length, with_prompt, prompt_frac)
    sequences = build_sequences(rows, tokenizer, *shape, quiet, joint is not None)
    index, labels = np.arange(len(rows)), np.zeros(len(rows), int)
    ids, pad = Ragged.from_rows(sequences), tokenizer.pad_token_id
    data = PairData(ids, index, labels, pad, max_length, ladder, joint=joint)
    if style:
        data.style = style_features(rows)
    return data


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

    def __init__(
        self, ids: Ragged, pad: int, max_length: int, ladder: int | None, joint: Joint | None = None
    ):
        self.ids, self.pad, self.max_length, self.ladder = ids, pad, max_length, ladder
        self.joint = joint
        self.lengths = self.tokens = ids.lengths

    def collate(self, rows: np.ndarray, epoch: int | None) -> dict[str, Tensor]:
        """input_ids, attention_mask (rows, seq), and token_type_ids where there are."""
        width = ladder_length(self.lengths[rows].max(), self.max_length, self.ladder)
        sequences = [self.ids[row] for row in rows]
        return pad_sequences(sequences, width, self.pad) | segments(sequences, width, self.joint)
