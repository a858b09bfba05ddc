"""data/arena.py: every repair and error, and splits that do not move."""

import csv
import functools
import json
import os
import sys
import types
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from data import arena, layouts, records
from data.arena import PairRow, assign_splits, check_leaks, load_arena
from data.rows import split_fingerprint
from data.rows import subset as subset_by_key
from files import DiskFull

FIXTURE = Path(__file__).parent / "fixtures" / "arena.csv"
subset = functools.partial(subset_by_key, key=arena.by_content)
HEADER = ["id", "prompt", "response_a", "response_b", *arena.WINNER_COLUMNS]


@pytest.fixture(scope="module")
def real_rows() -> list[PairRow]:
    """PandaLM's rows where ABLATE_DATA names the folder, else the twelve of the fixture."""
    folder = os.environ.get("ABLATE_DATA")
    path = Path(folder) / "preference" / "pandalm.csv" if folder else FIXTURE
    rows, _ = load_arena(str(path))
    assign_splits(rows, "prompt", 0.1, 0.1)
    return rows


def make_rows(count: int, repeats: int = 3) -> list[PairRow]:
    """count rows, every prompt `repeats` times."""
    rows = []
    for i in range(count):
        prompt = [f"question {i // repeats}"]
        rows.append(
            PairRow(f"r{i}", prompt, [f"a{i}"], [f"b{i}"], i % 3, arena.prompt_hash(prompt), "")
        )
    return rows


def record(row_id="1", prompt='["p"]', a='["a"]', b='["b"]', winners=(1, 0, 0)) -> list:
    return [row_id, prompt, a, b, *winners]


def write_csv(path: Path, *records, header=HEADER) -> str:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *records])
    return str(path)


def write_jsonl(path: Path, *records) -> str:
    lines = [json.dumps(dict(zip(HEADER, values, strict=True))) for values in records]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


# ---- repairs ----


def test_fixture_rows_are_repaired_and_counted():
    rows, repairs = load_arena(str(FIXTURE))
    assert len(rows) == 12 and len({row.id for row in rows}) == 12
    assert all(len(r.prompt) == len(r.response_a) == len(r.response_b) >= 1 for r in rows)
    assert repairs == {
        "null_turns": 2,
        "both_null": 1,
        "empty_list": 1,
        "ragged_turns": 2,  # [] against one turn is ragged too
        "empty_response": 4,
        "plain_text": 1,
        "surrogates_replaced": 1,
        "not_text": 1,
    }
    by_id = {row.id: row for row in rows}
    assert by_id["104"].response_a == [""]
    assert by_id["105"].response_a == by_id["105"].response_b == [""] and by_id["105"].label == 2
    assert by_id["106"].response_a == [""]
    assert by_id["107"].response_a == ["Two eggs sit in a pan.", ""]
    assert by_id["108"].response_a == ["Half of one: \ufffd"]
    assert by_id["108"].response_b == ["A whole one: \U0001f600"]
    assert by_id["109"].prompt == ["What is 2 + 2?"] and by_id["109"].response_a == ["4"]
    assert by_id["110"].response_a == ["true"] and "\n" in by_id["110"].response_b[0]
    assert by_id["111"].response_a == by_id["111"].response_b and by_id["111"].label == 0
    assert by_id["101"].group == by_id["103"].group != by_id["102"].group
    for row in rows:  # what a tokeniser does first
        json.dumps([row.prompt, row.response_a, row.response_b], ensure_ascii=False).encode()


def test_prompt_shorter_than_responses_is_padded(tmp_path):
    rows, repairs = load_arena(write_csv(tmp_path / "x.csv", record(a='["a", "b"]', b='["c"]')))
    assert (rows[0].prompt, rows[0].response_b) == (["p", ""], ["c", ""])
    assert repairs == {"ragged_turns": 1}
    assert rows[0].group == arena.prompt_hash(["P "])  # padding does not change the group


def test_cell_of_a_million_characters_and_embedded_line_ends(tmp_path):
    long = "x\n" * 600_000
    path = write_csv(tmp_path / "x.csv", record(a=json.dumps([long]), b='["two\nlines"]'))
    rows, repairs = load_arena(path)
    assert rows[0].response_a == [long] and rows[0].response_b == ["two\nlines"] and not repairs


def test_byte_order_mark_nul_and_invalid_bytes(tmp_path):
    path = tmp_path / "x.csv"
    body = b'1,p\x00q,caf\xe9,"na\xc3\xafve",0,0,1\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + ",".join(HEADER).encode() + b"\r\n" + body)
    rows, repairs = load_arena(str(path))
    assert rows[0].id == "1" and rows[0].label == 2
    assert (rows[0].prompt, rows[0].response_a) == (["pq"], ["caf\ufffd"])
    assert rows[0].response_b == ["naïve"]
    assert repairs == {"nul_bytes": 1, "invalid_utf8": 1, "plain_text": 1}


def test_row_numbers_serve_as_ids(tmp_path):
    path = write_csv(tmp_path / "x.csv", record()[1:], record()[1:], header=HEADER[1:])
    rows, repairs = load_arena(path)
    assert [row.id for row in rows] == ["1", "2"] and repairs == {"row_number_ids": 2}


# ---- other sources ----


@pytest.mark.parametrize(
    "winners", [(0, 1, 0), (False, True, False), ("0", "1", "0"), (0.0, 1.0, 0.0)]
)
def test_jsonl_with_real_lists_plain_strings_and_any_boolean(tmp_path, winners):
    path = write_jsonl(
        tmp_path / "x.jsonl",
        record("1", ["p", None], ["a", "b"], '["c", "d"]', winners),
        record(2, "plain", None, ["b"], winners),
    )
    rows, repairs = load_arena(path)
    assert [row.id for row in rows] == ["1", "2"] and [row.label for row in rows] == [1, 1]
    assert rows[0].prompt == ["p", ""] and rows[0].response_b == ["c", "d"]
    assert rows[1].prompt == ["plain"] and rows[1].response_a == [""]
    assert repairs["plain_text"] == repairs["null_turns"] == repairs["empty_list"] == 1


def test_json_list_of_objects(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([dict(zip(HEADER, record(str(i)), strict=True)) for i in range(3)]))
    assert len(load_arena(str(path))[0]) == 3


def test_parquet_file_and_folder(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for part in range(2):
        names = [f"{part}-{i}" for i in range(3)]
        texts = {name: [["t", None]] * 3 for name in layouts.TEXT_COLUMNS}
        flags = {name: [name == "winner_tie"] * 3 for name in arena.WINNER_COLUMNS}
        table = pyarrow.table({"id": names, **texts, **flags})
        parquet.write_table(table, tmp_path / f"part-{part}.parquet")
    rows, repairs = load_arena(str(tmp_path))
    assert [row.id for row in rows] == ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2"]
    assert rows[0].prompt == ["t", ""] and rows[0].label == 2 and repairs["null_turns"] == 6
    assert len(load_arena(str(tmp_path / "part-1.parquet"))[0]) == 3
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(ValueError, match="torn.parquet: not a readable parquet"):
        load_arena(str(tmp_path))


def fake_hub(monkeypatch, load_dataset):
    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_hub_rows(monkeypatch):
    halves = ["\ud83d" + "\ude00", "lone \ude00"]
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return [dict(zip(HEADER, record(7, ["p"], halves, '["b"]'), strict=True))]

    fake_hub(monkeypatch, load_dataset)
    rows, repairs = load_arena("lmarena-ai/arena-human-preference-55k")
    assert asked == [("lmarena-ai/arena-human-preference-55k", "train")]
    assert rows[0].id == "7" and rows[0].response_a == ["\U0001f600", "lone \ufffd"]
    assert repairs == {"surrogates_joined": 1, "surrogates_replaced": 1, "ragged_turns": 1}


def test_hub_failure_says_what_serves_instead(monkeypatch):
    def load_dataset(name, split):
        raise ConnectionError("no route\x1b[31m\nto host")

    fake_hub(monkeypatch, load_dataset)
    with pytest.raises(OSError, match="--data reviews, which needs no network") as error:
        load_arena("lmarena-ai/arena-human-preference-55k")
    assert "train.csv" in str(error.value) and "\x1b" not in str(error.value)
    assert "\n" not in str(error.value)


# ---- errors ----


def test_missing_file_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    fake_hub(monkeypatch, None)
    with pytest.raises(FileNotFoundError, match="data/train.csv: no such file"):
        load_arena("data/train.csv")
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="unpack archives first"):
        load_arena(str(tmp_path / "x.zip"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="folder without .csv"):
        load_arena(str(tmp_path / "empty"))


def test_missing_column_names_the_nearest(tmp_path):
    header = [name.replace("response_b", "responce_b") for name in HEADER]
    path = write_csv(tmp_path / "x.csv", record(), header=header)
    with pytest.raises(ValueError, match="response_b .nearest is 'responce_b'") as error:
        load_arena(path, skip_bad_rows=True)
    assert path in str(error.value)
    with pytest.raises(ValueError, match="column 'id' twice"):
        load_arena(write_csv(tmp_path / "y.csv", record(), header=["id", "id", *HEADER[2:]]))


@pytest.mark.parametrize("text", ["", ",".join(HEADER) + "\n", "\n\n"])
def test_no_rows(tmp_path, text):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match="it holds no rows"):
        load_arena(str(path))


def test_utf16_is_read_where_it_says_so_and_named_where_not(tmp_path):
    path = Path(write_csv(tmp_path / "x.csv", record(), record("2")))
    wanted, _ = load_arena(str(path))
    text = path.read_text()
    for encoding in ("utf-16", "utf-32", "utf-8-sig"):
        path.write_text(text, encoding=encoding)
        rows, repairs = load_arena(str(path))
        assert rows == wanted and repairs.get("utf16_files", 0) == (encoding != "utf-8-sig")
    path.write_text(text, encoding="utf-16-le")
    with pytest.raises(ValueError, match="UTF-16 without a byte order mark"):
        load_arena(str(path))


BAD_RECORDS = {
    "two winners": (record("2", winners=(1, 1, 0)), "winner_model_a", "found 2 winners"),
    "no winner": (record("2", winners=(0, 0, 0)), "winner_model_a", "found no winner"),
    "not boolean": (record("2", winners=(1, 0, "yes")), "winner_tie", "expected 0 or 1"),
    "blank winner": (record("2", winners=(1, "", 0)), "winner_model_b", "expected 0 or 1"),
    "broken JSON": (record("2", a='["cut off'), "response_a", "does not parse"),
    "deep JSON": (record("2", prompt="[" * 200_000), "prompt", "does not parse"),
    "list of lists": (record("2", b='[["b"]]'), "response_b", "expected a list of texts"),
    "blank id": (record(""), "id", "found a blank"),
    "id used before": (record("1"), "id", "is the id of row 1 already"),
    "short row": (record("2")[:-1], "winner_tie", "expected 7 cells"),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_bad_row_is_an_error_or_is_listed(tmp_path, name):
    bad, column, problem = BAD_RECORDS[name]
    path = write_csv(tmp_path / "x.csv", record("1", b='["b\nb"]'), bad, record("3"))
    with pytest.raises(ValueError) as error:
        load_arena(path)
    message = str(error.value)
    assert f"{path}, row 2 (line 4), column {column}" in message and problem in message
    assert "--skip_bad_rows" in message and len(message) < 700

    listed = tmp_path / "bad.csv"
    rows, repairs = load_arena(path, skip_bad_rows=True, bad_rows_file=listed)
    assert [row.id for row in rows] == ["1", "3"] and repairs["bad_rows"] == 1
    with open(listed, newline="") as file:
        (line,) = csv.DictReader(file)
    assert list(line) == ["row", "id", "column", "problem"]
    assert line["row"] == "2" and problem in line["problem"]
    assert line["id"] == ("" if name == "short row" else bad[0])  # its cells may have shifted
    assert sorted(os.listdir(tmp_path)) == ["bad.csv", "x.csv"]


def test_csv_that_was_cut_off_is_an_error(tmp_path):
    path = tmp_path / "x.csv"
    write_csv(path, record("1"), record("2", b=json.dumps(["long, " * 9])))
    whole = path.read_text()
    path.write_text(whole[: whole.rindex("long")])
    with pytest.raises(ValueError, match=r"row 2 \(line 3\).*cut off"):
        load_arena(str(path))
    rows, repairs = load_arena(str(path), skip_bad_rows=True)
    assert [row.id for row in rows] == ["1"] and repairs == {"bad_rows": 1}


def test_jsonl_bad_lines(tmp_path):
    path = Path(write_jsonl(tmp_path / "x.jsonl", record("1")))
    path.write_text(path.read_text() + '\n{"id": "2"\n[3]\n{"id": "4", "prompt": "p"}\n')
    with pytest.raises(ValueError, match=r"x.jsonl, line 3: not valid JSON"):
        load_arena(str(path))
    listed = tmp_path / "bad.csv"
    rows, repairs = load_arena(str(path), skip_bad_rows=True, bad_rows_file=listed)
    assert len(rows) == 1 and repairs == {"bad_rows": 3}
    assert "4,4,response_a,the field is missing" in listed.read_text()


def test_all_rows_bad(tmp_path):
    path = write_csv(tmp_path / "x.csv", record(winners=(0, 0, 0)))
    with pytest.raises(ValueError, match=r"all 1 rows are bad \(row 1: expected exactly one 1"):
        load_arena(path, skip_bad_rows=True)


def test_file_without_winners(tmp_path):
    path = write_csv(tmp_path / "test.csv", record()[:4], header=HEADER[:4])
    with pytest.raises(ValueError, match="is for predict only"):
        load_arena(path)
    rows, _ = load_arena(path, require_labels=False)
    assign_splits(rows, "prompt", 0.1, 0.1)
    assert rows[0].label is None and rows[0].split == ""
    path = write_csv(tmp_path / "blank.csv", record("1"), record("2", winners=("", "", "")))
    assert [row.label for row in load_arena(path, require_labels=False)[0]] == [0, None]
    with pytest.raises(ValueError, match="row 2"):
        load_arena(path)


# ---- splits and subsets ----


def test_prompt_hash_is_stable_and_blind_to_case_and_space():
    assert arena.prompt_hash(["Hello  World\n"]) == arena.prompt_hash(["hello world", ""])
    assert arena.prompt_hash(["a", "b"]) != arena.prompt_hash(["a b"])
    assert arena.prompt_hash(["lone \ud83d"]) != arena.prompt_hash(["lone"])
    # a value that must never change: every split of every finished run hangs on it
    assert arena.prompt_hash(["Hello"]) == "aa12ee75fb1b7215"


def test_real_rows_split_by_prompt_do_not_leak(real_rows):
    assert check_leaks(real_rows, "prompt") == 0
    of_prompt = {}
    for row in real_rows:
        assert of_prompt.setdefault(row.group, row.split) == row.split
    if len(real_rows) == 999:  # PandaLM: 170 prompts, so splitting by row leaks
        assert Counter(row.label for row in real_rows) == {0: 422, 1: 472, 2: 105}
        assert len(of_prompt) == 170
        by_row = [replace(row) for row in real_rows]
        assign_splits(by_row, "row", 0.1, 0.1)
        assert check_leaks(by_row, "row") > 50


@pytest.mark.parametrize("by", ["prompt", "row"])
def test_added_rows_move_none(real_rows, by):
    some = [replace(row, split="") for row in real_rows[::2]]
    both = [replace(row, split="") for row in reversed(real_rows)] + make_rows(200)
    assign_splits(some, by, 0.2, 0.2)
    assign_splits(both, by, 0.2, 0.2)
    after = {row.id: row.split for row in both}
    assert all(after[row.id] == row.split for row in some)


def test_shares_and_independence_of_val_frac():
    rows = make_rows(6000, repeats=1)
    assign_splits(rows, "prompt", 0.1, 0.2)
    counts = Counter(row.split for row in rows)
    assert abs(counts["val"] - 600) < 100 and abs(counts["test"] - 1200) < 150
    test_ids = {row.id for row in rows if row.split == "test"}
    assign_splits(rows, "prompt", 0.3, 0.2)
    assert {row.id for row in rows if row.split == "test"} == test_ids
    for bad in ((0.5, 0.5), (-0.1, 0.1), (float("nan"), 0.1)):
        with pytest.raises(ValueError, match="sum below 1"):
            assign_splits(rows, "prompt", *bad)
    with pytest.raises(ValueError, match="expected prompt or row"):
        assign_splits(rows, "prompts", 0.1, 0.1)


def test_leak_is_found():
    rows = make_rows(30)
    assign_splits(rows, "prompt", 0.3, 0.3)
    other_split = "val" if rows[0].split != "val" else "train"
    rows[1] = replace(rows[1], prompt=["QUESTION  0"], split=other_split, group="another")
    with pytest.raises(ValueError, match="1 prompts occur in more than one split"):
        check_leaks(rows, "prompt")
    assert check_leaks(rows, "row") == 1


def test_subsets_are_nested(real_rows):
    sizes = [1, len(real_rows) // 3, len(real_rows) // 2, len(real_rows)]
    kept = [{row.id for row in subset(real_rows, limit=size)} for size in sizes]
    assert [len(ids) for ids in kept] == sizes
    assert all(small <= large for small, large in zip(kept, kept[1:], strict=False))

    rows = make_rows(900)
    assign_splits(rows, "prompt", 0.2, 0.2)
    limited = subset(rows, limit=300)
    assert {row.split for row in limited} == {"train", "val", "test"}
    assert subset(rows[::-1], limit=300)[::-1] == limited  # whatever order rows come in
    train = [
        {row.id for row in subset(rows, train_frac=share) if row.split == "train"}
        for share in (0.1, 0.5, 1.0)
    ]
    assert train[0] < train[1] < train[2] and len(train[1]) == round(len(train[2]) / 2)
    assert [r for r in subset(rows, train_frac=0.1) if r.split != "train"] == [
        r for r in rows if r.split != "train"
    ]
    for wrong in ({"limit": 0}, {"train_frac": 0.0}, {"train_frac": 1.5}):
        with pytest.raises(ValueError, match="expected"):
            subset(rows, **wrong)


def test_shuffled_labels_keep_class_shares(real_rows):
    before = arena.data_fingerprint(real_rows)
    shuffled = arena.shuffle_labels(real_rows, seed=1)
    assert arena.data_fingerprint(real_rows) == before  # the originals are untouched
    for split in ("train", "val", "test"):
        old = [row.label for row in real_rows if row.split == split]
        new = [row.label for row in shuffled if row.split == split]
        assert Counter(old) == Counter(new)
    assert [row.label for row in shuffled] != [row.label for row in real_rows]
    assert shuffled == arena.shuffle_labels(real_rows, seed=1)
    assert shuffled != arena.shuffle_labels(real_rows, seed=2)


def test_fingerprints():
    rows = make_rows(50)
    assign_splits(rows, "prompt", 0.2, 0.2)
    split, data = split_fingerprint(rows), arena.data_fingerprint(rows)
    assert len(split) == len(data) == 16 and split != data
    assert split_fingerprint(rows[::-1]) == split
    relabelled = [replace(rows[0], label=None), *rows[1:]]
    assert arena.data_fingerprint(relabelled) != data
    assert split_fingerprint(relabelled) == split
    other_split = "test" if rows[0].split != "test" else "val"
    moved = [replace(rows[0], split=other_split), *rows[1:]]
    assert split_fingerprint(moved) != split and arena.data_fingerprint(moved) == data


# ---- writing and showing ----


def test_submission(tmp_path):
    path = tmp_path / "submission.csv"
    arena.write_submission(path, ["7", "8"], [[0.5, 0.25, 0.25], (0.0, 1.0, 0.0)])
    assert path.read_text().splitlines() == [
        "id,winner_model_a,winner_model_b,winner_tie",
        "7,0.5,0.25,0.25",
        "8,0.0,1.0,0.0",
    ]
    before = path.read_text()
    nan = float("nan")
    for ids, rows in [
        (["7"], []),
        (["7", "7"], [[1, 0, 0]] * 2),
        (["7"], [[0.5, 0.5]]),
        (["7"], [[2.0, -1.0, 0.0]]),
        (["7"], [[nan, nan, nan]]),
        (["7"], [[1.2, 0.3, 0.1]]),
    ]:
        with pytest.raises(ValueError):
            arena.write_submission(path, ids, rows)
    assert path.read_text() == before and os.listdir(tmp_path) == ["submission.csv"]


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "submission.csv"
    path.write_text("old")

    def full_disk(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(DiskFull, match="disk full while writing"):
        arena.write_submission(path, ["7"], [[1, 0, 0]])
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["submission.csv"]


def test_strip_control():
    assert records.strip_control("a\x1b[31mb\r\n\tc\x9b2Jd\u202ee\x7f\x00é") == "a[31mb\n\tc2Jdeé"
    records.strip_control("\ud83d").encode()


def test_nothing_heavy_is_imported():
    import subprocess

    code = (
        "import sys, data.arena, data.reviews; "
        "heavy = {'torch', 'numpy', 'pandas', 'pyarrow', 'datasets', 'transformers'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, check=True, cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
