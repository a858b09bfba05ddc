"""Instructions and their answers: Alpaca, rows of your own, or the embedded reviews.

    rows, notes = load_rows("tatsu-lab/alpaca", val_frac=0.05, test_frac=0.1)
    text = format_prompt("Name a colour.", "")           # ends where the response begins
    ids = cached_sequences(rows, tokenizer, "alpaca", world)
    train = InstructionData(ids, rows, "train", pad=50256, max_length=1024, packing=True)

Rows are Alpaca's (instruction, input, output) or conversations (messages with role and content, or
conversations with from and value), in JSON, JSON lines, CSV, parquet or on the hub. The whole text
is tokenised at once, one end-of-text token follows, and every token after the first is a label;
those of the responses are known apart. The layout is Stanford Alpaca's (Taori et al. 2023).
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import core
from core import IGNORE_INDEX
from models import causal
from tasks import arena, reviews
from tasks.arena import normalised_text, stable_hash, strip_control

HUB_DATA = "tatsu-lab/alpaca"
PREAMBLE = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request."
)
PREAMBLE_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request."
)
TEMPLATES = ("alpaca", "alpaca_with_input_preamble")
REVIEWS_NOTICE = (
    "real film reviews under instructions of ours: half of the rows ask for the verdict, as people "
    "gave it, half for the rest of the text"
)
ROLES = {
    **{"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"},
    **{"bing": "assistant", "system": "system"},
}
Turn = tuple[str, str, str]  # instruction, input ("" = none), response


@dataclass(slots=True)
class Row:
    """One conversation, of one turn for Alpaca's rows."""

    id: str
    group: str  # hash of what is asked: rows that ask the same are resampled together
    system: str  # "" = none
    turns: tuple[Turn, ...]
    split: str = ""  # train | val | test


# ------------------------------------------------------------------------------ reading


def load_rows(
    data: str, val_frac: float = 0.05, test_frac: float = 0.1
) -> tuple[list[Row], list[str]]:
    """Rows with their split, and lines that the user should see.

    The first rows are for training, the next `test_frac` for the test, the last `val_frac` for
    validation, as in the runs that are to be compared with; training rows that ask what the test
    or validation asks are left out. FileNotFoundError and ValueError name file, row and field.
    """
    notes = []
    if data == "reviews":
        rows = list(_reviews())
        notes.append(REVIEWS_NOTICE)
    else:
        repairs: Counter[str] = Counter()
        rows = [build_row(record, place, n) for n, place, record in _records(data, repairs)]
    if not rows:
        raise ValueError(f"{data}: it holds no rows")
    train, test = int(len(rows) * (1 - val_frac - test_frac) + 1e-6), int(len(rows) * test_frac)
    for number, row in enumerate(rows):
        row.split = "train" if number < train else "test" if number < train + test else "val"
    asked = {row.group for row in rows if row.split != "train"}
    kept = [row for row in rows if row.split != "train" or row.group not in asked]
    if len(kept) < len(rows):
        notes.append(
            f"{len(rows) - len(kept):,} training rows ask what test or validation ask: left out"
        )
    if empty := sum(not row.turns[-1][2].strip() for row in kept):
        notes.append(f"{empty:,} rows have an empty response: they teach to say nothing")
    return kept, notes


def _records(data: str, repairs: Counter) -> Iterator[tuple[int, str, dict]]:
    path = Path(data)
    if path.exists():
        for number, (place, record) in enumerate(arena.read_records(data, repairs), start=1):
            if not isinstance(record, dict):
                raise ValueError(f"{place}: {record}")
            yield number, place, record
        return
    if path.suffix or data.count("/") != 1:
        raise FileNotFoundError(
            f"{data}: no such file; expected JSON, JSON lines, CSV or parquet with instruction, "
            "input and output, or with messages; or a hub id; or reviews, which need no network"
        )
    try:
        import datasets

        rows = datasets.load_dataset(data, split="train")
    except Exception as error:  # whatever fails on the way, the user needs the same advice
        reason = strip_control(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
        raise OSError(
            f"{data} could not be read from the hub ({reason}). Give a file of Alpaca's rows as "
            "--data, or use --data reviews, which a pip package carries"
        ) from None
    for number, record in enumerate(rows, start=1):
        yield number, f"{data}, row {number}", record


def build_row(record: dict, place: str, number: int) -> Row:
    """A row of Alpaca's fields, of messages or of conversations; ValueError names the field."""
    name = str(record.get("id", f"row-{number}"))
    for key, role, content in (("messages", "role", "content"), ("conversations", "from", "value")):
        if key in record:
            system, turns = _read_messages(record[key], f"{place}, field {key}", role, content)
            return _row(name, system, turns)
    texts = []
    for field, optional in (("instruction", False), ("input", True), ("output", False)):
        text = record.get(field)
        if text is None and optional:
            text = ""
        if not isinstance(text, str):
            there = ", ".join(strip_control(str(key))[:30] for key in list(record)[:10])
            found = f"{type(text).__name__}" if field in record else f"fields {there}"
            raise ValueError(f"{place}, field {field}: expected text, found {found}")
        texts.append(text)
    if not texts[0].strip() and not texts[1].strip():
        raise ValueError(f"{place}, field instruction: expected text, found a blank")
    return _row(name, "", [(texts[0], texts[1], texts[2])])


def _row(name: str, system: str, turns: Sequence[Turn]) -> Row:
    asked = [system, *(text for turn in turns for text in turn)][:-1]
    return Row(name, stable_hash("instruction", normalised_text(asked)), system, tuple(turns))


def _read_messages(
    messages: Any, place: str, role_key: str, text_key: str
) -> tuple[str, list[Turn]]:
    system, turns, asked = "", [], None
    for number, message in enumerate(messages if isinstance(messages, list) else [], start=1):
        where = f"{place}, message {number}"
        if not isinstance(message, dict):
            raise ValueError(f"{where}: expected an object with {role_key} and {text_key}")
        role, text = ROLES.get(str(message.get(role_key))), message.get(text_key)
        if role is None or not isinstance(text, str):
            shown = strip_control(str(message.get(role_key)))[:30]
            raise ValueError(
                f"{where}: expected {role_key} user or assistant and text, not {shown}"
            )
        if role == "system" and number == 1:
            system = text
        elif role == "user" and asked is None:
            asked = text
        elif role == "assistant" and asked is not None:
            turns.append((asked, "", text))
            asked = None
        else:
            raise ValueError(f"{where}: {role} out of turn; user and assistant take turns")
    if not turns or asked is not None:
        raise ValueError(f"{place}: expected a list of messages that ends with the assistant's")
    return system, turns


def _reviews() -> Iterator[Row]:
    """Snippets of reviews, in an order without meaning: positive or negative, or how it goes on."""
    found = [review for review in reviews.load_reviews() if review.source == "rotten_tomatoes"]
    for number, review in enumerate(sorted(found, key=lambda r: stable_hash("order", r.id))):
        words = review.text.split()
        turn = (
            "Is this sentence of a film review positive or negative?",
            review.text,
            "positive" if review.positive else "negative",
        )
        if number % 2 and len(words) >= 8:
            half = len(words) // 2
            turn = (
                "Continue the film review.",
                *(" ".join(w) for w in (words[:half], words[half:])),
            )
        yield _row(review.id, "", [turn])


def data_fingerprint(rows: Iterable[Row]) -> str:
    """16 hex digits of SHA-256 over ids and texts, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.id, row.system, row.turns]).encode() + b"\n")
    return digest.hexdigest()[:16]


# ----------------------------------------------------------------------------- template


def format_prompt(
    instruction: str, input_text: str = "", template: str = "alpaca", system: str = ""
) -> str:
    """The text in front of the first response; system: in place of the preamble."""
    preamble = PREAMBLE
    if input_text and template == "alpaca_with_input_preamble":
        preamble = PREAMBLE_WITH_INPUT
    return f"{system or preamble}\n\n{_ask(instruction, input_text)}"


def _ask(instruction: str, input_text: str) -> str:
    given = f"\n\n### Input:\n{input_text}" if input_text else ""
    return f"### Instruction:\n{instruction}{given}\n\n### Response:\n"


def segments(row: Row, template: str) -> list[tuple[str, bool]]:
    """The text of a row in parts, each with whether it is a response; the last one is."""
    parts = []
    for number, (instruction, input_text, response) in enumerate(row.turns):
        if number == 0:
            asked = format_prompt(instruction, input_text, template, row.system)
        else:
            asked = f"\n\n{_ask(instruction, input_text)}"
        parts += [(asked, False), (response, True)]
    return parts


def prompt_of(row: Row, template: str) -> str:
    """All in front of the last response."""
    return "".join(text for text, _ in segments(row, template)[:-1])


# ------------------------------------------------------------------------------- tokens


def encode(parts: Sequence[Sequence[tuple[str, bool]]], tokenizer: Any) -> Iterator[list[int]]:
    """Token ids of each text; those of its responses are written as ~id, which is negative.

    A token that reaches over the border between prompt and response belongs to the prompt unless
    it begins in the response. The end of text follows, as a part of the response. ValueError where
    the tokenizer has none, or finds it in a text.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError("the tokenizer has no end-of-text token, which ends a response")
    before, _ = causal.added_tokens(tokenizer)
    encoded = tokenizer(
        ["".join(text for text, _ in row) for row in parts],
        **{"add_special_tokens": False, "return_attention_mask": False, "verbose": False},
        split_special_tokens=True,  # an <|endoftext|> that somebody wrote is text like any other
        return_offsets_mapping=True,
    )
    for row, ids, offsets in zip(
        parts, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        is_response = np.concatenate([np.full(len(text), kind) for text, kind in row] + [[False]])
        starts = np.array([start for start, _ in offsets], np.int64)
        ids = np.array(ids, np.int64)
        if (ids == end).any():  # a Unigram model has it among its pieces
            raise ValueError(
                f"a row has the text {tokenizer.eos_token}, which this tokenizer takes for the end "
                "of text: take it out"
            )
        answer = is_response[np.minimum(starts, len(is_response) - 1)].astype(bool)
        yield [*before, *np.where(answer, ~ids, ids).tolist(), ~end]


def cached_sequences(
    rows: Sequence[Row], tokenizer: Any, template: str, world: core.World
) -> core.Ragged:
    """`encode` of all rows, from the cache on disk."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    key = {
        **{"kind": "instructions, version 2", "content": data_fingerprint(rows)},
        **{"tokenizer": core.tokenizer_fingerprint(tokenizer), "template": template},
    }

    def build() -> Iterator[list[int]]:
        if world.rank == 0:
            print(f"tokenising {len(rows):,} rows", flush=True)
        for start in range(0, len(rows), 1000):
            part = [segments(row, template) for row in rows[start : start + 1000]]
            yield from encode(part, tokenizer)

    return core.cached_tokens(key, build, world)


class InstructionData:
    """The rows of one split as a data set for core's loaders; long ones keep their beginning.

    packing: the rows of a micro-batch stand end to end (models/packed.py); else they are padded.
    answered: without the rows that end before their first response, which are counted in left_out;
    a batch of them alone would have nothing to train on.
    """

    def __init__(
        self,
        ids: core.Ragged,
        rows: Sequence[Row],
        split: str,
        pad: int,
        max_length: int,
        packing: bool = True,
        ladder: int | None = None,
        count: int | None = None,
        answered: bool = False,
    ):
        self.ids, self.pad, self.max_length = ids, pad, max_length
        self.packing, self.ladder = packing, ladder
        index = [i for i, row in enumerate(rows) if row.split == split]
        kept = [i for i in index if self.has_response(i)] if answered else index
        self.left_out = len(index) - len(kept)
        self.index = np.array(kept[:count], np.int64)
        self.rows = [rows[i] for i in self.index]
        whole = ids.lengths[self.index] - 1  # the last token is a label only
        self.lengths = self.tokens = np.minimum(whole, max_length)
        self.cut = int((whole > max_length).sum())

    def has_response(self, i: int) -> bool:
        """Whether a label of ids[i] inside max_length belongs to a response."""
        return bool((self.ids[i][1 : self.max_length + 1] < 0).any())

    def collate(self, rows: np.ndarray, epoch: int | None) -> dict[str, Tensor]:
        """input_ids, labels, is_response (rows, seq), or (1, tokens) with row_lengths (rows,).

        labels[:, i] is the token after input_ids[:, i]; is_response: it belongs to a response.
        No rows: one token without a label, to compute along with other ranks.
        """
        if len(rows) == 0:
            blank = torch.full((1, 1), self.pad)
            found = {"input_ids": blank, "labels": torch.full((1, 1), IGNORE_INDEX)}
            found["is_response"] = torch.zeros((1, 1), dtype=torch.bool)
            return found | ({"row_lengths": torch.ones(1, dtype=int)} if self.packing else {})
        sequences = [self.ids[self.index[row]][: self.max_length + 1] for row in rows]
        plain = [np.where(ids < 0, ~ids, ids).astype(np.int64) for ids in sequences]
        if self.packing:
            lengths = np.array([len(ids) - 1 for ids in plain], np.int64)
            found = {
                "input_ids": np.concatenate([ids[:-1] for ids in plain])[None],
                "labels": np.concatenate([ids[1:] for ids in plain])[None],
                "is_response": np.concatenate([ids[1:] < 0 for ids in sequences])[None],
                "row_lengths": lengths,
            }
            return {name: torch.from_numpy(array) for name, array in found.items()}
        longest = max(len(ids) for ids in plain) - 1
        width = core.ladder_length(longest, self.max_length, self.ladder)
        shape = (len(rows), width)
        input_ids, labels = (
            np.full(shape, self.pad, np.int64),
            np.full(shape, IGNORE_INDEX, np.int64),
        )
        is_response = np.zeros(shape, bool)
        for line, (ids, signed) in enumerate(zip(plain, sequences, strict=True)):
            size = len(ids) - 1
            input_ids[line, :size], labels[line, :size] = ids[:-1], ids[1:]
            is_response[line, :size] = signed[1:] < 0
        return {
            "input_ids": torch.from_numpy(input_ids),
            "labels": torch.from_numpy(labels),
            "is_response": torch.from_numpy(is_response),
        }


def row_sums(losses: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """(rows, 4): loss sum in nats and number of all labels, then of those in responses.

    losses: of each label, in the shape of batch["labels"].
    """
    there = batch["labels"] != IGNORE_INDEX
    response = there & batch["is_response"]
    values = torch.stack([losses, there, losses * response, response], dim=-1)
    if "row_lengths" not in batch:
        return values.sum(dim=1)
    sizes = batch["row_lengths"]
    row = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
    return values.new_zeros(len(sizes), 4).index_add_(0, row, values[0])
