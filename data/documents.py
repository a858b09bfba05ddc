"""Text for language modelling: WikiText, the embedded reviews, or files of your own.

    documents, separated, notes = load_documents("wikitext2", "downloads/wikitext2", 0.1, 0.1)
    streams = Streams(documents, separated, tokenizer, world)
    train = WindowData(streams.part("train"), length=1024, stride=1024, pad=50256)
    test = WindowData(streams.part("test"), length=1024, stride=512, pad=50256)

A part is one stream of tokens, document after document. A window reads up to `length` tokens and
predicts the one after each; windows that overlap predict only what no earlier one did, so every
token is scored exactly once, with at least length − stride + 1 tokens before it where there are
as many.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core import IGNORE_INDEX, World
from data import corpora, reviews, texts
from data.records import (
    KINDS,
    LABEL_FIELDS,
    PARTS,
    TEXT_FIELDS,
    files_below,
    files_of_parts,
    first_row,
    load_hub,
    name_in,
    said,
    strip_control,
    text_lines,
)
from data.rows import fingerprint, normalised_text, split_of, stable_hash
from data.tokens import (
    cached_tokens,
    encode_texts,
    ladder_length,
    pad,
    target_places,
    tokenizer_fingerprint,
)

WIKITEXT = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "wikitext103": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
}
NAMED = {*texts.HUB, "reviews", *WIKITEXT, "reviews_text"}  # tasks; others are files
FEW_DOCUMENTS = 20  # of a file or folder: so few are cut into passages
PASSAGE = 2000  # characters
HEADING = re.compile(r"^ = [^=].* = \s*$")  # of an article; sections have more signs


@dataclass(slots=True)
class Document:
    id: str
    group: str
    text: str
    num_words: int  # of the original text; WikiText counts the end of a line as one
    split: str  # train | val | test


# ---------------------------------------------------------------------------- documents


def models_text(task: str, data: str | None) -> bool:
    """Whether these rows are for a language model: texts without labels."""
    if task in NAMED:
        return task not in (*texts.HUB, "reviews")
    return not texts.has_labels(Path(data or task))


def load_documents(
    task: str,
    data: str | None,
    val_frac: float = 0.1,
    test_frac: float = 0.1,
    detokenize: bool = False,
) -> tuple[list[Document], bool, list[str]]:
    """Documents, whether a separator stands between them, and lines that the user should see.

    task: wikitext2, wikitext103, reviews_text, or files of your own as in corpora.open_source.
    data: a folder with WikiText's files (train.txt, wiki.valid.tokens …); None: the hub. WikiText
    is one text without separators, as published figures have it.
    """
    if task in WIKITEXT:
        repairs: Counter[str] = Counter()
        parts = _read_wikitext_hub(task) if data is None else _read_wikitext(Path(data), repairs)
        documents, separated, notes = _articles(parts, val_frac, detokenize)
        return documents, separated, [*notes, *said(repairs)]
    if task == "reviews_text":
        named_texts = [(r.id, r.text) for r in reviews.load_reviews() if r.source == "imdb"]
        notes = [texts.REVIEWS_NOTICE]
    else:
        return _own_documents(Path(data or task), data or task, val_frac, test_frac)
    documents, more = _build({"train": named_texts}, val_frac, test_frac)
    return documents, True, notes + more


def load_held_out(
    task: str, data: str, detokenize: bool = False
) -> tuple[list[Document], bool, list[str]]:
    """As `load_documents`, of a file or folder all of whose documents are for the test; one of a
    task of WikiText is read as its files are."""
    path, repairs = Path(data), Counter()
    if task in WIKITEXT:
        if not path.is_file():
            raise FileNotFoundError(f"{data}: no such file; expected one as wiki.test.tokens")
        parts = {"test": list(text_lines(path, repairs))}
        documents, separated, notes = _articles(parts, 0.0, detokenize)
        return documents, separated, [*notes, *said(repairs)]
    source = corpora.open_source(data)
    documents = list(source.documents())
    if len(documents) < FEW_DOCUMENTS:  # as where they are trained on
        documents = _passages(documents)
    rows, notes = _build({"test": documents}, 0.0, 0.0)
    return rows, True, [*said(source.repairs), *notes]


def _own_documents(
    path: Path, name: str, val_frac: float, test_frac: float
) -> tuple[list[Document], bool, list[str]]:
    """Documents of files; of a folder with a training part its parts, else split by a hash."""
    repairs: Counter[str] = Counter()
    files = files_of_parts(path, corpora.TEXT_KINDS, repairs) if path.is_dir() else {}
    if "train" in files:
        parts = {
            part: [
                document for file in own for document in corpora.read_documents(file, path, repairs)
            ]
            for part, own in files.items()
        }
    else:
        source = corpora.open_source(name)
        parts = {"train": list(source.documents())}
        repairs = source.repairs
    rows = files.get("train") or (files_below(path, KINDS, Counter()) if path.is_dir() else [path])
    count, notes = sum(map(len, parts.values())), _other_columns(rows[0]) if rows else []
    if len(parts) == 1 and count < FEW_DOCUMENTS:
        parts = {part: _passages(own) for part, own in parts.items()}
        if (passages := len(parts["train"])) > count:
            notes.append(
                f"{count} document{'s' * (count != 1)}: cut into {passages:,} passages of about "
                f"{PASSAGE:,} characters, so that some can be held out"
            )
    documents, more = _build(parts, val_frac, test_frac)
    return documents, True, [*notes, *said(repairs), *more]


def _other_columns(path: Path) -> list[str]:
    """A line where the rows of a file have more than text: a class to predict may be among it."""
    if (row := first_row(path)) is None:
        return []
    others = [strip_control(str(name))[:30] for name in row[1] if not name_in([name], TEXT_FIELDS)]
    if not others:
        return []
    return [
        f"note: read as text without labels, other columns left out ({', '.join(others[:8])}): a "
        f"class to predict would be in one called {', '.join(LABEL_FIELDS)}"
    ]


def _build(
    parts: dict[str, list[tuple[str, str]]], val_frac: float, test_frac: float
) -> tuple[list[Document], list[str]]:
    """Each text once; the training part gives what others lack, by a hash of the text."""
    shares = (0.0 if "val" in parts else val_frac, 0.0 if "test" in parts else test_frac)
    documents: list[Document] = []
    seen: dict[str, str] = {}
    again = 0
    for part in ("test", "val", "train"):
        own = []
        for name, text in parts.get(part, ()):
            group = stable_hash("text", normalised_text([text]))  # as in texts.py: the same parts
            if not text.strip():
                continue
            if group in seen:
                again += 1
                continue
            seen[group] = split_of(group, *shares) if part == "train" else part
            own.append(Document(name, group, text, len(text.split()), seen[group]))
        documents = own + documents
    notes = [f"{again:,} documents that occur again are read once"] if again else []
    return documents, notes


def _passages(documents: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Documents in stretches of about PASSAGE characters, which end at a line's or a word's end."""
    passages = []
    for name, text in documents:
        pieces = re.findall(rf"[^\n]{{0,{PASSAGE - 1}}}(?:\s|\Z)|[^\n]{{{PASSAGE}}}", text)
        held, number = "", 0
        for piece in [*pieces, None]:
            if piece is None or len(held) + len(piece) > PASSAGE:
                if held.strip():
                    passages.append((f"{name}-{number}", held))
                    number += 1
                held = ""
            held += piece or ""
    return passages


def _read_wikitext_hub(task: str) -> dict[str, list[str]]:
    """Lines of each part, joined by one more line end, as in transformers' own example."""
    name, subset = WIKITEXT[task]
    advice = (
        "Give a folder with its files as --data, or use --task reviews_text, which a pip package "
        "carries"
    )
    splits = {"train": "train", "val": "validation", "test": "test"}
    loaded = {k: load_hub(name, subset, advice=advice, split=v) for k, v in splits.items()}
    return {part: [f"{line}\n\n" for line in rows["text"]] for part, rows in loaded.items()}


def _read_wikitext(folder: Path, repairs: Counter) -> dict[str, list[str]]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; expected train.txt, valid.txt, test.txt"
        )
    parts: dict[str, list[str]] = {}
    for part, stems in PARTS.items():
        names = [f"{p}{s}{e}" for p in ("", "wiki.") for s in stems for e in (".txt", ".raw")]
        names += [f"wiki.{stem}.tokens" for stem in stems]
        there = [folder / name for name in names if (folder / name).is_file()]
        if there:
            parts[part] = list(text_lines(there[0], repairs))
    if "test" not in parts or len(parts) < 2:
        raise ValueError(
            f"{folder}: expected test.txt and train.txt or valid.txt (or wiki.test.tokens …)"
        )
    return parts


def _articles(
    parts: dict[str, list[str]], val_frac: float, detokenize: bool
) -> tuple[list[Document], bool, list[str]]:
    """Articles by their headings. Where a part is missing, validation and training share the
    other one by a hash of the article."""
    documents, notes = [], []
    alone = next((part for part in ("train", "val") if len(parts) == 2 and part in parts), None)
    if alone:
        notes.append(f"there is no other part: {alone} is split into train and validation by us")
    for part, part_lines in parts.items():
        first = next((i for i, line in enumerate(part_lines) if line.strip()), 0)
        starts = [i for i, line in enumerate(part_lines) if HEADING.match(line)]
        starts = [0, *(start for start in starts if start > first)]
        for number, (start, end) in enumerate(
            zip(starts, [*starts[1:], len(part_lines)], strict=True)
        ):
            text = "".join(part_lines[start:end])
            if not text:
                continue
            split = part
            if part == alone:
                split = split_of(stable_hash("text", normalised_text([text])), val_frac, 0.0)
            words = len(text.split()) + end - start
            shown = join_words(text) if detokenize else text
            name = f"{part}-{number}"
            documents.append(Document(name, name, shown, words, split))
    return documents, False, notes


# WikiText writes words, marks and numbers apart; these undo it. Longest first where one is a part
# of another.
JOINED = [
    *((f" @{mark}@ ", mark) for mark in "-,."),
    *((f" {mark} ", f"{mark} ") for mark in (":", ";", ".", "!", "?", ",")),
    (" 's", "'s"),
    (" n't", "n't"),
    ("s '", "s'"),
    (" 're", "'re"),
    (" 've", "'ve"),
    (" 'll", "'ll"),
    (" 'd ", "'d "),
    (" 'm ", "'m "),
]
QUOTED = [(r"\(\s*([^\)]*?)\s*\)", r"(\1)"), (r"\[\s*([^\]]*?)\s*\]", r"[\1]")]
QUOTED += [(r'"\s*([^"\n]*?)\s*"', r'"\1"'), (r"(?<=\s)'\s*([^'\n]*?)\s*'(?=\s)", r"'\1'")]


def join_words(text: str) -> str:
    """WikiText's words as they were written, nearly: the detokenised form of published figures.

    After Radford et al. 2019, section 3.1, whose own rules were not published.
    """
    for apart, together in JOINED:
        text = text.replace(apart, together)
    for apart, together in QUOTED:
        text = re.sub(apart, together, text)
    return re.sub(r" +\n", "\n", text).replace(" N ", " 1 ")


def data_fingerprint(documents: Iterable[Document]) -> str:
    """16 hex digits of SHA-256 over ids and texts, in their order."""
    return fingerprint([document.id, document.text] for document in documents)


# ------------------------------------------------------------------------------ streams


@dataclass
class Stream:
    """One part: its tokens, and where its documents begin and end in them.

    It begins with a separator, or with a document's token where the tokenizer has none.
    """

    tokens: np.ndarray
    offsets: np.ndarray  # (documents + 1,)
    documents: list[Document]


class Streams:
    """The parts of all documents, each a contiguous stretch of one cached array."""

    def __init__(
        self, documents: Sequence[Document], separated: bool, tokenizer: Any, world: World
    ):
        order = ("train", "val", "test")
        self.documents = sorted(documents, key=lambda d: order.index(d.split))
        separator = tokenizer.eos_token_id
        if separator is None:
            separator = tokenizer.bos_token_id
        key = {
            "kind": "documents, version 3",
            "content": fingerprint([d.text, d.split] for d in self.documents),
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "separated": separated,
            "separator": separator,
        }

        def build() -> Iterator[list[int]]:
            all_texts, count = (d.text for d in self.documents), len(self.documents)
            sequences = encode_texts(tokenizer, all_texts, count, "tokenising", world.rank != 0)
            last = None
            for document, ids in zip(self.documents, sequences, strict=True):
                begins = separated or document.split != last
                last = document.split
                yield [separator, *ids] if begins and separator is not None else ids

        self.ids = cached_tokens(key, build, world)

    def part(self, split: str) -> Stream:
        numbers = [i for i, document in enumerate(self.documents) if document.split == split]
        first, end = numbers[0], numbers[-1] + 1
        offsets = np.asarray(self.ids.offsets[first : end + 1])
        tokens = self.ids.ids[offsets[0] : offsets[-1]]
        return Stream(tokens, offsets - offsets[0], self.documents[first:end])


class WindowData:
    """Windows of a stream as a data set for core's loaders.

    Window k reads tokens [k·stride, k·stride + length) and predicts the token after each; with
    `once` it predicts only those that no earlier window did. The first token of the stream is
    context only.
    """

    def __init__(
        self,
        stream: Stream,
        length: int,
        stride: int,
        pad: int,
        once: bool = True,
        ladder: int | None = None,
    ):
        if not 1 <= stride <= length:
            raise ValueError(f"stride {stride}: expected 1 to the length of a window, {length}")
        self.stream, self.length, self.pad, self.ladder = stream, length, pad, ladder
        targets = len(stream.tokens) - 1
        if targets < 1:
            raise ValueError("a stream of one token has nothing to predict")
        # the last window is the first that reaches the end
        count = 1 + max(0, math.ceil((targets - length) / stride))
        self.starts = np.arange(count, dtype=np.int64) * stride
        self.lengths = np.minimum(length, targets - self.starts)
        self.tokens = self.lengths
        ends = self.starts + self.lengths  # targets of window k are at starts + 1 … ends
        self.scored_from = np.concatenate([[0], ends[:-1]]) if once else self.starts

    def collate(self, rows: np.ndarray, epoch: int | None) -> dict[str, Tensor]:
        """input_ids, labels (rows, seq): labels[:, i] is the token after input_ids[:, i]; places
        of the labels."""
        longest = int(self.lengths[rows].max())
        width = ladder_length(longest, self.length, self.ladder)
        inputs, labels = [], []
        for row in rows:
            start, end = self.starts[row], self.starts[row] + self.lengths[row]
            inputs.append(self.stream.tokens[start:end])
            targets = self.stream.tokens[start + 1 : end + 1].astype(np.int64)
            targets[: self.scored_from[row] - start] = IGNORE_INDEX
            labels.append(targets)
        labels = torch.from_numpy(pad(labels, width, IGNORE_INDEX))
        return {
            "input_ids": torch.from_numpy(pad(inputs, width, self.pad)),
            "labels": labels,
            "places": target_places(labels),
        }

    def losses_of_tokens(self, values: np.ndarray) -> np.ndarray:
        """(tokens,) float64 from what the windows gave, (windows, length); 0 for the first."""
        losses = np.zeros(len(self.stream.tokens))
        for row, (start, size) in enumerate(zip(self.starts, self.lengths, strict=True)):
            skipped = self.scored_from[row] - start
            losses[start + 1 + skipped : start + 1 + size] = values[row, skipped:size]
        return losses
