"""data/records.py through every source that reads files: one rule of reading for all of them."""

import bz2
import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from commands import judge
from data import arena, corpora, documents, glue, instructions, records, texts, titles

TEXTS = [f"the {word} film" for word in ("slow", "dull", "bright", "sad", "warm", "odd") * 4]
TEXTS = [f"{text} {number}" for number, text in enumerate(TEXTS)]


def arena_rows(path: Path) -> tuple[list[str], str]:
    rows, repairs = arena.load_arena(str(path))
    return [row.response_a[0] for row in rows], "; ".join(records.said(repairs))


def glue_rows(path: Path) -> tuple[list[str], str]:
    rows, notes = glue.load_task(glue.TASKS["boolq"], str(path.parents[1]))
    return [row.fields["question"] for row in rows if row.id.startswith("train")], "; ".join(notes)


def labelled(path: Path) -> tuple[list[str], str]:
    rows, _, notes = texts.load_rows(str(path), None)
    return [row.text for row in rows], "; ".join(notes)


def language(path: Path) -> tuple[list[str], str]:
    rows, _, notes = documents.load_documents(str(path), None)
    return [row.text.strip() for row in rows], "; ".join(notes)


def corpus(path: Path) -> tuple[list[str], str]:
    source = corpora.open_source(str(path))
    rows = [text.strip() for _, text in source.documents()]
    return rows, "; ".join(records.said(source.repairs))


def alpaca(path: Path) -> tuple[list[str], str]:
    rows, notes = instructions.load_rows(str(path), 0.2, 0.2)
    return [row.turns[0][2] for row in rows], "; ".join(notes)


def headlines(path: Path) -> tuple[list[str], str]:
    rows, notes = titles.load_titles(str(path), None, None)
    return [row.text for row in rows], "; ".join(notes)


def answers(path: Path) -> tuple[list[str], str]:
    rows = judge.read_answers(path, None)
    return [row["model_response"] for row in sorted(rows, key=lambda row: int(row["id"]))], ""


# source: where its file lies, a record for a text, what reads it
JSON_SOURCES = {
    "arena": (
        "pairs.jsonl",
        lambda text, n: {
            "id": str(n),
            "prompt": f"why {n}",
            "response_a": text,
            "response_b": "b",
            "winner_model_a": 1,
            "winner_model_b": 0,
            "winner_tie": 0,
        },
        arena_rows,
    ),
    "glue": (
        "BoolQ/train.jsonl",
        lambda text, n: {"question": text, "passage": f"film {n}", "label": n % 2 == 0, "idx": n},
        glue_rows,
    ),
    "texts": ("rows.jsonl", lambda text, n: {"text": text, "label": "ab"[n % 2]}, labelled),
    "documents": ("rows.jsonl", lambda text, n: {"text": text}, language),
    "corpora": ("rows.jsonl", lambda text, n: {"text": text}, corpus),
    "instructions": (
        "rows.jsonl",
        lambda text, n: {"instruction": f"write {n}", "output": text},
        alpaca,
    ),
    "titles": ("rows.jsonl", lambda text, n: {"title": text}, headlines),
    "answers": (
        "answers.jsonl",
        lambda text, n: {"id": n, "instruction": "x", "output": "y", "model_response": text},
        answers,
    ),
}
UNCOUNTED = ("answers",)  # what it reads, our own commands wrote


@pytest.fixture(params=JSON_SOURCES)
def source(request, tmp_path):
    """(name, write(texts) → path, read(path))"""
    file, record, read = JSON_SOURCES[request.param]
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)

    def write(rows: list[str], encoding: str = "utf-8", replace: tuple = ("", "")) -> Path:
        lines = [json.dumps(record(text, n), ensure_ascii=False) for n, text in enumerate(rows)]
        text = "\n".join(lines).replace(*replace) if replace[0] else "\n".join(lines)
        path.write_bytes(text.encode(encoding))
        if request.param == "glue":
            (tmp_path / "BoolQ/val.jsonl").write_text(json.dumps(record("val", 99)))
        return path

    return request.param, write, read


def test_half_a_character_is_replaced_and_counted(source):
    name, write, read = source
    rows, notes = read(write([*TEXTS, "a film @@"], replace=("@@", "\\ud83d")))
    assert sorted(rows)[0] == "a film \ufffd" and len(rows) == len(TEXTS) + 1
    assert name in UNCOUNTED or "1 rows with half a character" in notes


def test_utf_16_is_read_by_its_mark(source):
    name, write, read = source
    wanted, _ = read(write([*TEXTS, "café"]))
    rows, notes = read(write([*TEXTS, "café"], "utf-16"))
    assert rows == wanted and (name in UNCOUNTED or "1 files in UTF-16" in notes)


def test_bytes_that_are_not_utf8_are_counted(source):
    name, write, read = source
    rows, notes = read(write([*TEXTS, "café"], "latin-1"))
    assert "caf\ufffd" in rows
    assert name in UNCOUNTED or "1 lines with bytes that are not UTF-8" in notes


def test_other_separators_than_newlines_end_no_line(source):
    _, write, read = source
    odd = "a\u2028b\x85c\x0cd\x1ee"
    rows, _ = read(write([*TEXTS, odd]))
    assert odd in rows and len(rows) == len(TEXTS) + 1


def test_a_byte_order_mark_is_no_part_of_the_first_field(source):
    _, write, read = source
    assert read(write(TEXTS, "utf-8-sig"))[0] == read(write(TEXTS))[0]


@pytest.mark.parametrize("name", sorted({*JSON_SOURCES} - {"glue"}))
@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_compressed_files_are_read_by_all(name, suffix, compress, tmp_path):
    file, record, read = JSON_SOURCES[name]
    text = "\n".join(json.dumps(record(text, n)) for n, text in enumerate(TEXTS)).encode()
    (tmp_path / file).write_bytes(text)
    packed = tmp_path / f"{file}{suffix}"
    packed.write_bytes(compress(text))
    assert read(packed)[0] == read(tmp_path / file)[0]
    packed.write_bytes(compress(text)[:-20])
    with pytest.raises(ValueError, match="is it cut off"):
        read(packed)


def test_a_line_that_is_no_object_is_named(source):
    name, write, read = source
    path = write(TEXTS)
    with open(path, "a") as file:
        file.write("\n[1]\n")
    with pytest.raises(ValueError, match=rf"line {len(TEXTS) + 1}: expected an object"):
        read(path)


# ------------------------------------------------------------------------------ folders


FOLDERS = {
    "documents": ("text.txt", "\n\n".join(TEXTS), language),
    "corpora": ("text.txt", "\n\n".join(TEXTS), corpus),
    "texts": ("train.csv", "text,label\n" + "".join(f"{t},{t[:5]}\n" for t in TEXTS), labelled),
    "instructions": (
        "rows.csv",
        "instruction,output\n" + "".join(f"write {t},{t}\n" for t in TEXTS),
        alpaca,
    ),
    "arena": (
        "rows.csv",
        "id,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie\n"
        + "".join(f"{n},why {n},{t},b,1,0,0\n" for n, t in enumerate(TEXTS)),
        arena_rows,
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_hidden_files_of_a_folder_are_passed_over_and_said(name, tmp_path):
    file, content, read = FOLDERS[name]
    content = content.replace("the s", "x the s") if name == "texts" else content
    (tmp_path / "clean").mkdir()
    (tmp_path / "clean" / file).write_text(content)
    wanted, _ = read(tmp_path / "clean")
    (tmp_path / "clean" / f"._{file}").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
    (tmp_path / "clean/.ipynb_checkpoints").mkdir()
    (tmp_path / f"clean/.ipynb_checkpoints/{file}").write_text("nothing")
    rows, notes = read(tmp_path / "clean")
    assert rows == wanted and "2 hidden files" in notes


def test_hidden_files_are_no_class_and_no_text(tmp_path):
    for n, text in enumerate(TEXTS):
        folder = tmp_path / "train" / ("pos" if n % 2 else "neg")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{n}.txt").write_text(text)
        (folder / f"._{n}.txt").write_bytes(b"\0\5\26\7")
    (tmp_path / "train/.ipynb_checkpoints").mkdir()
    (tmp_path / "train/.ipynb_checkpoints/0.txt").write_text("nothing")
    rows, classes, notes = texts.load_rows(str(tmp_path), None)
    assert classes == ("negative", "positive") and len(rows) == len(TEXTS)
    assert "hidden files" in "; ".join(notes)


def test_parts_are_found_as_the_hub_has_them(tmp_path):
    """data/train-00000-of-00002.parquet, as a data set's repository is cloned."""
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "data").mkdir()
    for part, rows in (("train-00000-of-00002", TEXTS[:9]), ("train-00001-of-00002", TEXTS[9:20])):
        table = pyarrow.table({"text": rows, "label": [n % 2 for n in range(len(rows))]})
        pyarrow.parquet.write_table(table, tmp_path / f"data/{part}.parquet")
    table = pyarrow.table({"text": TEXTS[20:], "label": [0, 1, 0, 1]})
    pyarrow.parquet.write_table(table, tmp_path / "data/validation-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    rows, classes, _ = texts.load_rows(str(tmp_path), None)
    assert classes == ("0", "1") and texts.has_labels(tmp_path)
    assert [row.text for row in rows if row.split == "val"] == TEXTS[20:]
    assert {row.split for row in rows} == {"train", "val", "test"}
    own, _, _ = documents.load_documents(str(tmp_path), None)
    assert [row.text for row in own if row.split == "val"] == TEXTS[20:]


def test_one_part_in_two_kinds_is_refused(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,b\n")
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": "b"}\n')
    with pytest.raises(ValueError, match="both train.csv and train.jsonl"):
        texts.load_rows(str(tmp_path), None)


# -------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"PK\x03\x04 and so on", "a zip archive"),
        (b"PAR1 and so on", "name it .parquet"),
        (gzip.compress(b"text", mtime=0), "name it .gz"),
        ("a film\n".encode("utf-16-le") * 9, "UTF-16 without a byte order mark"),
        ("a film\n".encode("utf-16-be") * 9, "UTF-16 without a byte order mark"),
    ],
)
def test_what_is_no_text_is_named(content, problem, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        list(records.lines(tmp_path / "a.txt", Counter()))


def test_a_few_nul_bytes_are_removed_and_counted(tmp_path):
    repairs: Counter = Counter()
    (tmp_path / "a.txt").write_bytes(b"one\0\ntwo\nthr\0ee\r\n")
    assert list(records.text_lines(tmp_path / "a.txt", repairs)) == ["one\n", "two\n", "three\n"]
    assert repairs == {"nul_bytes": 2}


def test_tab_separated_rows_have_their_header(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text('instruction\toutput\nsay "x\ty\nshort\n')
    first, second = records.read_records(path, Counter())
    assert first[1] == {"instruction": 'say "x', "output": "y"}
    assert "line 3" in second[0] and "expected 2 cells" in str(second[1])


# ------------------------------------------------------------------- labels as people have them


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    "header",
    ["text\tlabel", "sentence\tlabel", "idx\ttext\tlabel", "Label\tText", "label\tsentence"],
)
def test_a_header_of_tabs_names_the_columns(header, tmp_path):
    names = header.casefold().split("\t")
    lines = [header]
    for n, text in enumerate(TEXTS):
        cells = {"idx": str(n), "text": text, "sentence": text, "label": "ab"[n % 2]}
        lines.append("\t".join(cells[name] for name in names))
    rows, classes, _ = texts.load_rows(write(tmp_path / "rows.tsv", "\n".join(lines)), None)
    assert classes == ("a", "b") and sorted(row.text for row in rows) == sorted(TEXTS)


def test_without_a_header_the_label_is_found_on_either_side(tmp_path):
    sides = {}
    for name, line in (("last", "{1}\t{0}\n"), ("first", "{0}\t{1}\n")):
        text = "".join(line.format("ab"[n % 2], text) for n, text in enumerate(TEXTS))
        sides[name] = texts.load_rows(write(tmp_path / f"{name}.tsv", text), None)
    assert sides["last"][0] == sides["first"][0]
    assert sides["first"][2] == ["first.tsv: the label stands in front of the text"]


def test_as_many_classes_as_rows_are_refused(tmp_path):
    text = "".join(f"{text}\t{text}!\n" for text in TEXTS)
    with pytest.raises(ValueError, match="24 different labels in 24 training rows"):
        texts.load_rows(write(tmp_path / "rows.tsv", text), None)


def labels(path: Path, values: list) -> str:
    rows = [{"text": text, "label": value} for text, value in zip(TEXTS, values, strict=False)]
    return write(path, "\n".join(map(json.dumps, rows)))


def test_spellings_of_one_label_are_one_class(tmp_path):
    values = [1, 1.0, "1", "1.0", 0, "0", 0.0, "0.0"] * 3
    assert texts.load_rows(labels(tmp_path / "a.jsonl", values), None)[1] == ("0", "1")
    values = ["pos", "Pos", "neg", "pos"] * 6
    _, classes, notes = texts.load_rows(labels(tmp_path / "b.jsonl", values), None)
    assert classes == ("neg", "pos") and "pos and Pos" in notes[0]


@pytest.mark.parametrize("missing", [None, "", "NaN", float("nan")])
def test_rows_without_a_label_are_named_and_counted(missing, tmp_path):
    values = ["a", "b", missing, "a", missing, "b"] * 2
    with pytest.raises(ValueError, match=r"line 3: expected a label .* in 4 of 12 rows"):
        texts.load_rows(labels(tmp_path / "a.jsonl", values), None)


def test_the_minus_one_of_unlabelled_test_rows_is_no_class(tmp_path):
    labels(tmp_path / "train.jsonl", [0, 1] * 10)
    labels(tmp_path / "test.jsonl", [-1, -1])
    with pytest.raises(ValueError, match=r"test.jsonl, line 1: expected a label .* 2 of 2 rows"):
        texts.load_rows(str(tmp_path), None)
    labels(tmp_path / "test.jsonl", [0, 7])
    with pytest.raises(ValueError, match="test.jsonl, line 2: class '7', expected one of 0, 1"):
        texts.load_rows(str(tmp_path), None)
    # where it is one of the classes, as in scales from -1 to 1, it stays
    labels(tmp_path / "train.jsonl", [-1, 0, 1] * 7)
    labels(tmp_path / "test.jsonl", [-1, 0])
    assert texts.load_rows(str(tmp_path), None)[1] == ("-1", "0", "1")


# --------------------------------------------------------------------- what people bring


def test_a_book_in_one_piece_is_cut_into_passages(tmp_path):
    book = " ".join(f"Then the {text} ended {n}." for n, text in enumerate(TEXTS * 60))
    rows, separated, notes = documents.load_documents(write(tmp_path / "book.txt", book), None)
    assert separated and {row.split for row in rows} == {"train", "val", "test"}
    assert "cut into" in notes[0] and max(len(row.text) for row in rows) <= documents.PASSAGE
    assert "".join(row.text for row in rows) == book
    unbroken = ",".join(map(str, range(3000)))  # no place to cut at
    rows, _, _ = documents.load_documents(write(tmp_path / "x.txt", unbroken), None)
    assert "".join(row.text for row in rows) == unbroken


def test_equal_documents_are_read_once_and_that_is_said(tmp_path):
    text = "\n\n".join([*TEXTS, TEXTS[0].upper(), TEXTS[1]])
    rows, _, notes = documents.load_documents(write(tmp_path / "a.txt", text), None)
    assert len(rows) == len(TEXTS) and notes == ["2 documents that occur again are read once"]


@pytest.mark.parametrize(
    ("asked", "answered"),
    [("prompt", "completion"), ("question", "answer"), ("instruction", "response")],
)
def test_other_names_of_instructions_are_read(asked, answered, tmp_path):
    rows = "\n".join(json.dumps({asked: f"write {n}", answered: t}) for n, t in enumerate(TEXTS))
    own, _ = instructions.load_rows(write(tmp_path / "a.jsonl", rows))
    assert [row.turns[0][0] for row in own[:2]] == ["write 0", "write 1"]
    assert own[0].turns[0][2] == TEXTS[0]


def test_rows_without_labels_are_for_language_modelling(tmp_path):
    write(tmp_path / "a.csv", "id,text\n" + "".join(f"{n},{t}\n" for n, t in enumerate(TEXTS)))
    write(tmp_path / "a.tsv", "text\n" + "".join(f"{t}\n" for t in TEXTS))
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder/train.jsonl", "\n".join(json.dumps({"text": t}) for t in TEXTS))
    write(tmp_path / "folder/test.jsonl", json.dumps({"text": "another"}))
    for name in ("a.csv", "a.tsv", "folder"):
        assert not texts.has_labels(tmp_path / name)
        rows, _, _ = documents.load_documents(str(tmp_path / name), None)
        own = [row.text for row in rows if row.text != "another"]
        assert sorted(own) == sorted(TEXTS)
    assert [row.text for row in rows if row.split == "test"] == ["another"]


def test_the_hub_reader_reads_a_folder_that_is_shaped_as_the_hubs_are(tmp_path):
    import pyarrow
    import pyarrow.parquet

    for config in ("plain", "other"):
        (tmp_path / config).mkdir()
        table = pyarrow.table({"text": [f"{config} {text}" for text in TEXTS]})
        pyarrow.parquet.write_table(table, tmp_path / config / "train-00000-of-00001.parquet")
    configs = "".join(
        f"- config_name: {config}\n  data_files:\n  - split: train\n    path: {config}/train-*\n"
        for config in ("plain", "other")
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    rows = records.load_hub(str(tmp_path), "other", advice="", split="train")
    assert rows["text"][0] == f"other {TEXTS[0]}"
    with pytest.raises(OSError, match=r"\(none\) could not be read from the hub \(.*\). Take x"):
        records.load_hub(str(tmp_path), "none", advice="Take x", split="train")


# ------------------------------------------------------------------------- mangled files


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_two_rows_that_ran_into_one_are_no_row(tmp_path, name):
    """JSON would take the last value of a name and say nothing of the first."""
    line = '{"text": "first", "label": 1, "text": "second"}'
    path = tmp_path / name
    path.write_text(f"[{line}]" if name == "rows.json" else line)
    problem = "the field 'text' is there twice"
    if name == "rows.json":
        with pytest.raises(ValueError, match=problem) as refused:
            list(records.read_records(path, Counter()))
        assert name in str(refused.value)
    else:
        ((_, row),) = records.read_records(path, Counter())
        assert isinstance(row, records.BadRow) and problem in str(row)


def test_a_damaged_parquet_file_is_named(tmp_path):
    import pandas

    path = tmp_path / "rows.parquet"
    pandas.DataFrame({"text": ["a film"] * 50}).to_parquet(path)
    content = path.read_bytes()
    for place in range(4, len(content) - 8, 7):
        path.write_bytes(content[:place] + bytes(9) + content[place + 9 :])
        try:
            list(records.read_records(path, Counter()))
        except ValueError as error:
            assert "rows.parquet" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("content", [b"lr: \xff\xfe", b"lr: " + b"[" * 5000, b"- a\n", b"lr: {"])
def test_settings_that_cannot_be_read_name_their_file(tmp_path, content):
    from settings import Settings, parse_settings
    from sweeps.plan import read_yaml

    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(SystemExit, match="own.yaml"):
        parse_settings(Settings, ["--config", str(path)])
    with pytest.raises(SystemExit, match="own.yaml"):
        read_yaml(str(path))
