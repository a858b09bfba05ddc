"""Titles for train_headlines.py: which ones, how they become tokens, and what a model is worth.

    titles, notes = load_titles("titles.txt", limit=100_000, seed=1337)
    train, val = split_titles(titles, val_frac=0.1)
    tokenizer = train_tokenizer("unigram", [t.text for t in train], 16000, prefix_space=True)

Two figures, both in nats per character of the validation titles, each followed by <eos> (which
counts as 5 characters). The official one scores whole windows of 64 × 128 + 1 tokens and divides
by all characters: what is behind the last window costs nothing, so that a smaller share scored
looks like a better model. nats_per_char scores every token once; gains are claimed by it alone, and
only where the tokenizer gives the text back exactly.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import reviews
from data.documents import Stream, WindowData
from data.records import (
    BadRow,
    field_of,
    first_row,
    is_file_name,
    kind_of,
    lines,
    load_hub,
    read_records,
    said,
    text_of,
)
from data.rows import fingerprint
from data.tokens import Ragged, cut_words
from files import cache_folder, write_text

TITLE_FIELDS = ("title", "headline", "text")
EOS = "<eos>"
OFFICIAL_BATCH, OFFICIAL_BLOCK = 64, 128  # of the exercise's evaluation, whatever is trained
OFFICIAL_SPAN = OFFICIAL_BATCH * OFFICIAL_BLOCK + 1
# ------------------------------------------------------------------------------- titles


@dataclass(slots=True)
class Title:
    id: str  # its place in the source, from 0
    text: str  # stripped


def load_titles(
    data: str, limit: int | None = 100_000, seed: int | None = 1337
) -> tuple[list[Title], list[str]]:
    """The titles to use, and lines that the user should see. The titles are shuffled as datasets'
    shuffle(seed) does, then the first are taken.

    data: a file with one title a line (blank lines do not count) or with a column of titles,
    `reviews` (8,530 snippets of film reviews, in a pip package), or a hub id. seed None: in the
    order of the source.
    """
    repairs: Counter[str] = Counter()
    texts = _read_texts(data, repairs)
    if not len(texts):
        raise ValueError(f"{data}: it holds no titles")
    order = np.arange(len(texts))
    if seed is not None:
        order = np.random.default_rng(seed).permutation(len(texts))
    # a hub set reads only the rows that are asked for
    chosen = order[:limit]
    chosen_texts = texts.of(chosen) if isinstance(texts, _HubTexts) else [texts[i] for i in chosen]
    titles = [Title(str(i), text.strip()) for i, text in zip(chosen, chosen_texts, strict=True)]
    return titles, said(repairs)


def check_rows(data: str) -> None:
    """Errors of `load_titles` that the first row shows, before what is slow to import."""
    path = Path(data)
    if row := first_row(path):
        place, record = row
        field_of(record, TITLE_FIELDS, place)
    elif not path.is_file() and (path.exists() or is_file_name(data)):
        problem = "a folder: name a file in it" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"--data {data}: {problem}; expected one title a line")


def _read_texts(data: str, repairs: Counter) -> "Sequence[str] | _HubTexts":
    if data == "reviews":
        return [r.text for r in reviews.load_reviews() if r.source == "rotten_tomatoes"]
    path = Path(data)
    if path.is_file() and kind_of(path):
        texts = []
        for place, record in read_records(path, repairs, columns=TITLE_FIELDS):
            if isinstance(record, BadRow):
                raise ValueError(f"{place}: {record}")
            texts.append((text_of(record, TITLE_FIELDS, place) or "").strip())
        return [text for text in texts if text]
    if path.is_file():
        return [line.strip() for line in lines(path, repairs) if line.strip()]
    check_rows(data)
    return _HubTexts(data)


class _HubTexts:
    """The column of titles of a hub set."""

    def __init__(self, name: str):
        advice = (
            "Give a file with one title a line, or use --data reviews, which a pip package carries"
        )
        self.rows = load_hub(name, advice=advice, split="train")
        columns = [c for c in self.rows.column_names if c.lower() == "title"]
        if not columns:
            names = ", ".join(self.rows.column_names)
            raise ValueError(f"--data {name}: no column of titles (it has {names})")
        self.column = columns[0]

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, places: np.ndarray) -> list[str]:
        texts = zip(places.tolist(), self.rows.select(places)[self.column], strict=True)
        names = (self.column,)
        return [text_of({self.column: text}, names, f"row {n + 1}") or "" for n, text in texts]


def split_titles(titles: list[Title], val_frac: float) -> tuple[list[Title], list[Title]]:
    """(train, validation): the last `val_frac` of the titles. ValueError where one is empty."""
    cut = int(len(titles) * (1 - val_frac))
    train, val = titles[:cut], titles[cut:]
    if not train or not val:
        raise ValueError(f"{len(titles)} titles: too few for --val_frac {val_frac:g}")
    return train, val


def titles_fingerprint(titles: Iterable[Title]) -> str:
    """16 hex digits of SHA-256 over ids and texts, in their order."""
    return fingerprint([title.id, title.text] for title in titles)


# --------------------------------------------------------------------------- tokenizers


def train_tokenizer(kind: str, texts: Sequence[str], vocab_size: int, prefix_space: bool) -> str:
    """A tokenizer over bytes, as JSON of the tokenizers library; <eos> is token 0.

    kind: bpe (Sennrich et al. 2016; on bytes: Radford et al. 2019) or unigram (Kudo 2018), whose
    pieces are those of a byte's characters, too. Words and spaces are cut as GPT-2 does. The same
    texts give the same tokenizer. ValueError for fewer tokens than there are bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size <= len(alphabet):
        raise ValueError(
            f"--vocab_size {vocab_size}: expected {len(alphabet) + 1} or more, the bytes and {EOS}"
        )
    model, trainer = {
        "bpe": (models.BPE, trainers.BpeTrainer),
        "unigram": (models.Unigram, trainers.UnigramTrainer),
    }[kind]
    tokenizer = Tokenizer(model())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        cut_words(texts),
        trainer(
            vocab_size=vocab_size,
            special_tokens=[EOS],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return order_pieces(tokenizer.to_str()) if kind == "unigram" else tokenizer.to_str()


def order_pieces(saved: str) -> str:
    """A Unigram model's JSON with its pieces by score, then by name, and scores to 6 digits.

    The trainer leaves three things to its hash tables and threads: the order of pieces with equal
    scores, last digits, and the scores of bytes that never occur, which it puts .0001 apart at the
    bottom (here they share the lowest). Each would make one seed two experiments.
    """
    parsed = json.loads(saved)
    eos, *pieces = parsed["model"]["vocab"]
    lowest = min(score for _, score in pieces)
    bottom = lowest + 256 * 1e-4
    settled = [(piece, round(lowest if score < bottom else score, 6)) for piece, score in pieces]
    parsed["model"]["vocab"] = [eos, *sorted(settled, key=lambda pair: (-pair[1], pair[0]))]
    return json.dumps(parsed, ensure_ascii=False)


def build_tokenizer(saved: str) -> Any:
    """transformers' tokenizer from that JSON. An <eos> that stands in a title stays text."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(saved),
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def load_or_train_tokenizer(
    kind: str, vocab_size: int, prefix_space: bool, titles: Sequence[Title], folder: Path | None
) -> str:
    """The run's own tokenizer, the cached one of the same titles and settings, or a new one.

    folder: of the run, None for none. A run keeps what it began with: another version of the
    library may learn other pieces.
    """
    own = None if folder is None else folder / "train/tokenizer.json"
    if own is not None and own.exists():
        return own.read_text(encoding="utf-8")
    key = ["ordered", kind, vocab_size, prefix_space, titles_fingerprint(titles)]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    cached = cache_folder() / "tokenizers" / f"{digest}.json"
    if not cached.exists():
        texts = [title.text for title in titles]
        write_text(cached, train_tokenizer(kind, texts, vocab_size, prefix_space), shared=True)
    saved = cached.read_text(encoding="utf-8")
    if own is not None:
        write_text(own, saved)
    return saved


def decode_title(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of a title's tokens without <eos>; the space that prefix_space adds is dropped."""
    text = tokenizer.decode(ids)
    added = getattr(tokenizer.backend_tokenizer.pre_tokenizer, "add_prefix_space", False)
    return text.removeprefix(" ") if added else text


def is_exact(tokenizer: Any, titles: Sequence[Title], rows: Ragged) -> bool:
    """Whether decoding gives each title back, letter by letter."""
    return all(
        decode_title(tokenizer, ids.tolist()) == title.text
        for title, ids in zip(titles, rows, strict=True)
    )


# -------------------------------------------------------------------------------- rows


class TitleData:
    """Titles one by one: [<eos>, tokens] predicts [tokens, <eos>]; never cut, never padded.

    A micro-batch is one packed row, in which the model parts titles at each <eos>.
    """

    def __init__(self, rows: Ragged, eos: int):
        self.rows, self.eos = rows, eos
        self.lengths = np.asarray(rows.lengths) + 1
        self.tokens = self.lengths

    def collate(self, rows: np.ndarray, epoch: int | None) -> dict[str, Tensor]:
        """input_ids, labels (1, tokens): labels come after inputs; places of the labels;
        title_lengths (rows,)."""
        eos = np.array([self.eos], np.int32)
        ids = np.concatenate([part for row in rows for part in (eos, self.rows[row])] + [eos])
        ids = torch.from_numpy(ids.astype(np.int64))[None]
        lengths = torch.from_numpy(self.lengths[rows])
        return {
            "input_ids": ids[:, :-1],
            "labels": ids[:, 1:],
            "places": torch.arange(ids.shape[1] - 1),
            "title_lengths": lengths,
        }


class OfficialWindows:
    """The rows of the exercise's evaluation: 64 × 128 tokens of each whole window of the text.

    tokens: of all titles, each followed by <eos>. Windows do not overlap; the first token of each
    is context only.
    """

    def __init__(self, tokens: np.ndarray):
        self.stream = tokens
        windows = len(tokens) // OFFICIAL_SPAN
        firsts = np.arange(windows)[:, None] * OFFICIAL_SPAN
        self.starts = (firsts + np.arange(OFFICIAL_BATCH) * OFFICIAL_BLOCK).reshape(-1)
        self.lengths = np.full(len(self.starts), OFFICIAL_BLOCK)
        self.tokens = self.lengths

    def collate(self, rows: np.ndarray, epoch: int | None) -> dict[str, Tensor]:
        """input_ids, labels (rows, 128); places of the labels."""
        places = self.starts[rows][:, None] + np.arange(OFFICIAL_BLOCK + 1)
        ids = torch.from_numpy(self.stream[places].astype(np.int64))
        every = torch.arange(len(rows) * OFFICIAL_BLOCK)
        return {"input_ids": ids[:, :-1], "labels": ids[:, 1:], "places": every}

    def losses_of_tokens(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """values (rows, 128) → (tokens,) nats, 0 where not scored; (tokens,) whether scored."""
        losses, scored = np.zeros(len(self.stream)), np.zeros(len(self.stream))
        if len(self.starts):
            places = self.starts[:, None] + np.arange(1, OFFICIAL_BLOCK + 1)
            losses[places], scored[places] = values, 1.0
        return losses, scored


def build_stream(rows: Ragged, eos: int) -> Stream:
    """<eos>, then each title's tokens and <eos>. offsets: of each title behind the first <eos>."""
    end = np.array([eos], np.int32)
    parts = [end] + [part for row in rows for part in (row, end)]
    return Stream(np.concatenate(parts), np.concatenate([[0], np.cumsum(rows.lengths + 1)]), [])


def validation_windows(stream: Stream, length: int, eos: int) -> WindowData:
    """Windows that overlap by half: a token is scored once, with length / 2 tokens before it."""
    return WindowData(stream, length, max(1, length // 2), eos)


def stretches(tokens: np.ndarray, eos: int, data: WindowData, within_titles: bool) -> np.ndarray:
    """Lengths of what attention sees as one in windows: whole windows, or the titles in them."""
    if not within_titles:
        return data.lengths
    begins = np.union1d(data.starts, np.flatnonzero(tokens[:-1] == eos))
    return np.diff(np.append(begins, len(tokens) - 1))
