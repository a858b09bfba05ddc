"""Rows as other programs write them: pandas, numpy, R, spreadsheets, the hub, LLaMA-Factory."""

import csv
import gzip
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

from commands import answers
from commands.evaluate import EvaluateConfig, SavedRun
from data import arena, corpora, documents, glue, instructions, records, texts, titles

TEXTS = [f"the {word} film {n}" for n, word in enumerate(("slow", "dull", "warm", "odd") * 6)]


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def json_lines(path: Path, rows: list[dict]) -> str:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def csv_file(path: Path, rows: list, delimiter: str = ",", quoting: int = csv.QUOTE_MINIMAL) -> str:
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter=delimiter, quoting=quoting).writerows(rows)
    return str(path)


def labelled(labels: list) -> list[dict]:
    return [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=False)]


# ------------------------------------------------------------------------------- labels


def test_a_number_is_no_place_where_classes_are_numbers(tmp_path):
    json_lines(tmp_path / "train.jsonl", labelled([1, 2, 3, 4] * 5))
    json_lines(tmp_path / "test.jsonl", labelled([1, 0]))
    with pytest.raises(ValueError, match="test.jsonl, line 2: class '0', expected one of 1, 2"):
        texts.load_rows(str(tmp_path), None)
    held_out = json_lines(tmp_path / "other.jsonl", labelled([0, 1, 1]))
    for classes in (("1", "2"), ("-1", "1"), ("0.5", "1", "1.5")):
        with pytest.raises(ValueError, match="line 1: class '0', expected one of"):
            texts.load_held_out(Path(held_out), classes)


def test_a_number_is_the_place_of_a_class_with_a_name_and_that_is_said(tmp_path):
    held_out = json_lines(tmp_path / "other.jsonl", labelled([0, "true", 1.0]))
    rows, notes = texts.load_held_out(Path(held_out), ("fake", "true"))
    assert [row.label for row in rows] == [0, 1, 1]
    assert notes == ["2 labels that are numbers, read as 0 fake, 1 true"]


def test_what_cannot_be_seen_makes_no_class(tmp_path):
    labels = ["n\u00e9gatif", "posi  tif", "ne\u0301gatif", "\ufeffposi tif", "posi\u00a0tif\u200b"]
    rows = labelled(labels * 4)
    classes = texts.load_rows(json_lines(tmp_path / "a.jsonl", rows), None)[1]
    assert classes == ("n\u00e9gatif", "posi tif")


@pytest.mark.parametrize("header", ["label\tsms", "sms\tcategory", '"class"\t"comment"'])
def test_the_first_line_of_a_tsv_is_no_class(header, tmp_path):
    first = header.strip('"').split("\t")[0].strip('"') in records.LABEL_FIELDS
    cells = [("ab"[n % 2], text) for n, text in enumerate(TEXTS)]
    lines = ["\t".join(pair if first else pair[::-1]) for pair in cells]
    path = write(tmp_path / "rows.tsv", "\n".join([header, *lines]))
    rows, classes, notes = texts.load_rows(path, None)
    assert classes == ("a", "b") and len(rows) == len(TEXTS)
    assert any("its first line" in note and "names the columns" in note for note in notes)
    path = write(tmp_path / "rows.tsv", "\n".join(["v1\tv2", *lines]))
    assert any("no other line" in note for note in texts.load_rows(path, None)[2])


def test_glue_reads_labels_as_spreadsheets_write_them(tmp_path):
    rows = [("Sentence", "label"), ("good", "1.0"), ("bad", "0.0")]
    path = Path(csv_file(tmp_path / "x.csv", rows))
    assert [row.label for row in glue.load_held_out(glue.TASKS["sst2"], path)[0]] == [1, 0]
    names = ("word", "sentence1", "sentence2", "start1", "end1", "start2", "end2", "label")
    rows = [names, ("play", "play it", "they play", 0, 4, 5, 9, "True")]
    (row,) = glue.load_held_out(glue.TASKS["wic"], Path(csv_file(tmp_path / "x.csv", rows)))[0]
    assert row.fields["sentence2"] == "they * play *"


def test_what_else_a_row_has_is_said_where_no_column_is_a_label(tmp_path):
    rows = [{"Text": text, "stars": n % 5} for n, text in enumerate(TEXTS)]
    path = json_lines(tmp_path / "x.jsonl", rows)
    assert not texts.has_labels(Path(path))
    own, _, notes = documents.load_documents(path, None)
    assert len(own) == len(TEXTS) and "other columns left out (stars)" in notes[0]
    path = json_lines(tmp_path / "y.jsonl", [{"text": text} for text in TEXTS])
    assert documents.load_documents(path, None)[2] == []


# ------------------------------------------------------------------------------ columns

SPELT = {
    "texts": lambda path: [row.text for row in texts.load_rows(path, None)[0]],
    "corpora": lambda path: [text for _, text in corpora.open_source(path).documents()],
    "titles": lambda path: [title.text for title in titles.load_titles(path, None, None)[0]],
    "instructions": lambda path: [row.turns[0][0] for row in instructions.load_rows(path)[0]],
}


@pytest.mark.parametrize("name", SPELT)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_capitals_in_columns_are_read_by_all(name, suffix, tmp_path):
    rows = [{" Text": text, "Title": text, "LABEL": "ab"[n % 2]} for n, text in enumerate(TEXTS)]
    if name == "instructions":
        rows = [{"Instruction": text, "Output": text} for text in TEXTS]
    elif name == "titles":
        rows = [{"Title": row["Title"]} for row in rows]
    path = tmp_path / f"x.{suffix}"
    if suffix == "csv":
        csv_file(path, [list(rows[0]), *(row.values() for row in rows)])
    elif suffix == "jsonl":
        json_lines(path, rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert SPELT[name](str(path)) == TEXTS


@pytest.mark.parametrize("cell", [{"0": "a"}, ["a"], True, 3])
@pytest.mark.parametrize("name", ["texts", "corpora", "titles"])
def test_what_is_no_text_is_refused_by_all(name, cell, tmp_path):
    rows = [{"text": text, "label": "ab"[n % 2]} for n, text in enumerate(TEXTS)]
    path = json_lines(tmp_path / "x.jsonl", [*rows, {"text": cell, "label": "a"}])
    with pytest.raises(ValueError, match="line 25, field text: expected text, found"):
        SPELT[name](path)


def test_nan_is_null_for_all(tmp_path):
    rows = [{"text": text} for text in TEXTS] + [{"text": float("nan")}]
    path = json_lines(tmp_path / "x.jsonl", rows)
    assert SPELT["titles"](path) == TEXTS and SPELT["corpora"](path) == [*TEXTS, ""]
    row = {"id": float("nan"), "instruction": "a", "input": float("nan"), "output": "b"}
    (own,) = instructions.load_held_out(json_lines(tmp_path / "y.jsonl", [row]))[0]
    assert own.id == "row-1" and own.turns == (("a", "", "b"),)
    table = pyarrow.table({"id": [float("nan")], "x": [1.5]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    assert [row for _, row in records.read_records(tmp_path / "x.parquet", Counter())] == [
        {"id": None, "x": 1.5}
    ]


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_column_that_is_there_twice_is_refused(kind, tmp_path):
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        columns = [pyarrow.array(["a"]), pyarrow.array(["b"])]
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, ["text", "text"]), path)
    else:
        write(path, "text,text\na,b\n".replace(",", "," if kind == "csv" else "\t"))
    with pytest.raises(ValueError, match="names column 'text' twice"):
        list(records.read_records(path, Counter()))


# --------------------------------------------------------------------------------- cells


def test_spreadsheets_leave_rows_and_columns_of_separators(tmp_path):
    path = write(tmp_path / "x.csv", ",,,\ntext,label,,\na,b,,\n,,,\nc,d,,\n,,,\n")
    rows = [row for _, row in records.read_records(path, Counter())]
    assert [(row["text"], row["label"]) for row in rows] == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize("delimiter, name", [(";", "semicolon_files"), ("\t", "tab_files")])
def test_other_separators_of_csv_are_found_by_the_header(delimiter, name, tmp_path):
    cells = [("", "Response A", "winner"), ("0", 'say "no", or;\tno', "A")]
    path = csv_file(tmp_path / "x.csv", cells, delimiter)
    repairs: Counter = Counter()
    ((_, row),) = records.read_records(path, repairs)
    assert row == dict(zip(*cells, strict=True)) and repairs == {name: 1}


def test_quoted_cells_between_tabs(tmp_path):
    """pandas quotes what has quotes in it; R every text, and the names."""
    cells = [("instruction", "output"), ('say "hi"', "one\ttwo\nthree"), ('"so" he', '""')]
    repairs: Counter = Counter()
    path = csv_file(tmp_path / "r.tsv", cells, "\t", csv.QUOTE_ALL)
    rows = [tuple(row.values()) for _, row in records.read_records(path, repairs)]
    assert rows == cells[1:] and not repairs
    path = csv_file(tmp_path / "pandas.tsv", [cells[0], (cells[1][0], "plain"), cells[2]], "\t")
    rows = [tuple(row.values()) for _, row in records.read_records(path, repairs)]
    assert rows == [(cells[1][0], "plain"), cells[2]] and repairs == {"quoted_cells": 3}
    text = write(tmp_path / "text.tsv", 'a\tb\n"so" he\t"a" ""\n""x""\t"\n')
    rows = [tuple(row.values()) for _, row in records.read_records(text, repairs)]
    assert rows == [('"so" he', '"a" ""'), ('""x""', '"')] and repairs == {"quoted_cells": 3}


def votes(**cells) -> dict:
    return {"prompt": "p", "response_a": "a", "response_b": "b", "winner": "A"} | cells


NUMPY = {
    "texts": ("['one' \"it's\"\n 'three']", ["one", "it's", "three"]),
    "null": ("['one' None 'three']", ["one", "", "three"]),
    "pandas": ("['one', \"it's' 'there\", 'three']", ["one", "it's' 'there", "three"]),
    "messages": (
        "[{'content': 'one', 'role': 'user'}\n {'content': 'x', 'role': 'assistant'}\n"
        " {'content': 'two', 'role': 'user'}]",
        ["one", "two"],
    ),
}


@pytest.mark.parametrize("name", NUMPY)
def test_lists_as_numpy_prints_them_keep_their_items(name, tmp_path):
    cell, turns = NUMPY[name]
    answer = str([f"answer {n}" for n in range(len(turns))])
    answer = "last" if name == "messages" else answer
    row = votes(prompt=cell, response_a=answer, response_b=answer)
    (read,) = arena.load_arena(csv_file(tmp_path / "x.csv", [list(row), list(row.values())]))[0]
    assert read.prompt == turns


def test_a_pair_of_texts_is_no_pair_of_lists():
    answer = '["a", "b"] is a list'
    for text in (answer, "[sic]", '["x"]', "[1, 2]"):
        row = arena.read_json_row(
            json.dumps({"prompt": "[0]?", "response_a": text, "response_b": "b"}), "x"
        )
        assert (row.prompt, row.response_a) == (["[0]?"], [text])


# ------------------------------------------------------------------------------ winners


@pytest.mark.parametrize("winner", ["model_1", "Response 0", "assistant_2"])
def test_a_number_of_an_answer_without_numbers_is_refused(winner, tmp_path):
    path = json_lines(tmp_path / "x.jsonl", [votes(winner=winner)] * 2)
    with pytest.raises(ValueError, match="column winner: expected A, B or tie"):
        arena.load_arena(path)


def test_both_answers_are_of_one_spelling(tmp_path):
    row = {"prompt": "p", "output_1": "x", "answer_a": "a", "answer_b": "b", "output_2": "y"}
    (read,) = arena.load_arena(json_lines(tmp_path / "x.jsonl", [row | {"winner": "B"}]))[0]
    assert (read.response_a, read.response_b, read.label) == (["a"], ["b"], 1)


def test_turns_are_counted_from_one(tmp_path):
    said = [{"role": who, "content": "x"} for who in ("user", "assistant") * 2]
    row = {"conversation_a": said, "conversation_b": said, "winner": "A", "turn": 0}
    with pytest.raises(ValueError, match="column turn: expected the number"):
        arena.load_arena(json_lines(tmp_path / "x.jsonl", [row]))


def test_a_later_row_may_have_an_input_that_the_first_lacks(tmp_path):
    row = votes()
    row["instruction"] = row.pop("prompt")
    path = json_lines(tmp_path / "x.jsonl", [row, row | {"input": "of this", "system": "be brief"}])
    pairs = arena.read_pairs(path)
    assert [each.prompt[0] for each in pairs.rows] == ["p", "be brief\n\np\n\nof this"]
    assert "instruction + system + input" in pairs.reading


def test_an_id_in_capitals_is_the_id(tmp_path):
    row = votes(ID=7.0)
    pairs = arena.read_pairs(json_lines(tmp_path / "x.jsonl", [row]))
    assert pairs.rows[0].id == "7" and "row_number_ids" not in pairs.repairs


# ------------------------------------------------------------------------- instructions


@pytest.mark.parametrize("names", [("a", "b", "a", "a"), (None, None, 1.0, "1")])
def test_each_row_has_an_id_of_its_own(names, tmp_path):
    rows = [{"id": n, "instruction": f"{i}", "output": "x"} for i, n in enumerate(names)]
    read, notes = instructions.load_held_out(json_lines(tmp_path / "x.jsonl", rows))
    assert len({row.id for row in read}) == 4
    again = 2 if names[0] else 1
    assert notes == [f"{again} ids that occur again, which got a number"]
    # without ids there is nothing to say
    plain = [{"instruction": row["instruction"], "output": "x"} for row in rows]
    assert instructions.load_held_out(json_lines(tmp_path / "y.jsonl", plain))[1] == []


SAID = [("user", "Hi"), ("assistant", "Hello")]
CHATS = {
    "text": lambda m: json.dumps(m),
    "python": str,
    "numpy": lambda m: str(m).replace("}, {", "}\n {"),
    "list": lambda m: m,
}


@pytest.mark.parametrize("form", CHATS)
@pytest.mark.parametrize("names", [("role", "content", str), ("from", "value", str.upper)])
@pytest.mark.parametrize("field", ["messages", "Conversations", "conversation"])
def test_conversations_in_all_forms_are_the_same_row(form, names, field):
    who, what, case = names
    messages = [{who: case(role), what: text} for role, text in SAID]
    row = instructions.build_row({field: CHATS[form](messages)}, "place", 1)
    assert row.turns == (("Hi", "", "Hello"),)


def test_what_belongs_to_a_question_is_read_with_it():
    record = {"system": "Be brief.", "instruction": "Now?", "input": "it", "output": "Yes."}
    record |= {"history": [["Before?", "No."]]}
    row = instructions.build_row(record, "place", 1)
    assert row.system == "Be brief." and row.turns == (
        ("Before?", "", "No."),
        ("Now?", "it", "Yes."),
    )
    assert instructions.build_row(record | {"history": "of the idea"}, "place", 1).turns[1:] == ()
    with pytest.raises(ValueError, match="field history: expected a list of"):
        instructions.build_row(record | {"history": [["Before?"]]}, "place", 1)
    asked = [{"role": "user", "content": "Hi"}]
    said = [{"role": "assistant", "content": [{"type": "text", "text": "Ho"}]}]
    for form in CHATS.values():
        record = {"prompt": form(asked), "completion": form(said)}
        assert instructions.build_row(record, "place", 1).turns == (("Hi", "", "Ho"),)


# ------------------------------------------------------------------------ files, folders


def test_a_list_inside_an_object(tmp_path):
    rows = labelled(["a", "b"] * 9)
    for text in (json.dumps({"version": 1, "data": rows}), json.dumps({"train": rows}, indent=1)):
        assert len(texts.load_rows(write(tmp_path / "x.json", text), None)[0]) == len(rows)
    path = write(tmp_path / "x.json", json.dumps({"train": rows, "test": rows}, indent=1))
    with pytest.raises(ValueError, match="the lists 'train', 'test': write the rows of each to"):
        texts.load_rows(path, None)
    chat = {"messages": [{"role": role, "content": text} for role, text in SAID]}
    assert len(instructions.load_held_out(write(tmp_path / "y.json", json.dumps(chat)))[0]) == 1


@pytest.mark.parametrize("content", ['[{"text": "a"}]', "[\n", '{\n"text": "a"\n}'])
def test_a_list_is_no_lines(content, tmp_path):
    with pytest.raises(ValueError, match="no JSON lines, but one list, or an object over several"):
        list(records.read_records(write(tmp_path / "x.jsonl", content), Counter()))


def test_blank_texts_are_counted(tmp_path):
    rows = labelled(["a", "b"] * 9)
    rows[2]["text"] = " "
    assert texts.load_rows(json_lines(tmp_path / "x.jsonl", rows), None)[2] == [
        "1 texts that are blank"
    ]


def preference(path: str) -> tuple[int, list[str]]:
    pairs = arena.read_pairs(path)
    return len(pairs.rows), arena.said_repairs(pairs.repairs)


def alpaca(path: str) -> tuple[int, list[str]]:
    rows, notes = instructions.load_held_out(path)
    return len(rows), notes


@pytest.mark.parametrize(
    "read, row", [(preference, votes()), (alpaca, {"prompt": "a", "output": "b"})]
)
@pytest.mark.parametrize("name", ["{}.jsonl", "data/{}-00000-of-00001.jsonl", "{}/0000.jsonl"])
def test_of_a_folder_with_parts_training_reads_one(read, row, name, tmp_path):
    for part, count in (("train", 5), ("validation", 2), ("test", 3)):
        json_lines(
            tmp_path / name.format(part), [row | {"id": f"{part}-{i}"} for i in range(count)]
        )
    count, notes = read(str(tmp_path))
    assert count == 5 and any("2" in note and "part" in note for note in notes)
    with pytest.raises(ValueError, match="a folder with the parts train, val, test: name the file"):
        SavedRun(EvaluateConfig("run", str(tmp_path)))


@pytest.mark.parametrize("name", ["{}/0.jsonl", "{}/a.txt", "{}.txt"])
def test_parts_in_folders_of_their_own_are_kept_apart(name, tmp_path):
    for part, rows in (("train", TEXTS[:18]), ("dev", TEXTS[18:20]), ("test", TEXTS[20:])):
        if name.endswith("jsonl"):
            json_lines(tmp_path / name.format(part), [{"text": text} for text in rows])
        else:
            write(tmp_path / name.format(part), "\n\n".join(rows))
    rows, _, _ = documents.load_documents(str(tmp_path), None)
    assert [row.text.strip() for row in rows if row.split == "test"] == TEXTS[20:]
    assert [row.text.strip() for row in rows if row.split == "val"] == TEXTS[18:20]


def test_a_folder_of_arrow_files_says_what_to_do(tmp_path):
    write(tmp_path / "data-00000-of-00001.arrow", "x")
    write(tmp_path / "state.json", "{}")
    for read in (arena.read_pairs, instructions.load_rows, corpora.open_source):
        with pytest.raises(ValueError, match="save_to_disk writes them: write them as parquet"):
            read(str(tmp_path))


@pytest.mark.parametrize("read", [arena.read_pairs, instructions.load_rows, titles.load_titles])
@pytest.mark.parametrize("name", ["mine/rows.ndjson", "mine/rows.csv.zst", "mine/rows.xlsx"])
def test_a_missing_file_is_not_asked_of_the_hub(read, name):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read(name)


@pytest.mark.parametrize(
    "content", [b"\xd0\xcf\x11\xe0\xa1\xb1", b"SQLite format 3\0", b"\x80\x04\x95"]
)
def test_what_is_no_text_is_no_title(content, tmp_path):
    (tmp_path / "titles.xls").write_bytes(content)
    with pytest.raises(ValueError, match="the file is a"):
        titles.load_titles(str(tmp_path / "titles.xls"))


# ---------------------------------------------------------------------- GLUE, labels of people

FLAT = {
    "wsc": {"text": "the actor saw him", "span1_text": "the actor", "span2_text": "him"}
    | {"span1_index": 0, "span2_index": 3, "label": 1, "idx": 4},
    "multirc": {"paragraph": "p", "question": "q", "answer": "a", "label": 1}
    | {"idx": {"paragraph": 1, "question": 2, "answer": 3}},
}


@pytest.mark.parametrize("name", FLAT)
def test_superglue_as_the_hub_has_it_can_be_evaluated(name, tmp_path):
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([FLAT[name]]), path)
    (row,) = glue.load_held_out(glue.TASKS[name], path)[0]
    assert row.label == 1 and row.id == {"wsc": "test-4", "multirc": "test-1-2-3"}[name]
    for idx in (None, "{'paragraph': 1}", 3):
        bad = json_lines(tmp_path / "x.jsonl", [FLAT["multirc"] | {"idx": idx}])
        with pytest.raises(ValueError, match="line 1: field paragraph: expected a whole number"):
            glue.load_held_out(glue.TASKS["multirc"], Path(bad))


def test_labels_of_people_as_pandas_writes_them(tmp_path, capsys):
    rows = [{"id": "1"}, {"id": "2.0"}, {"id": "003"}]
    path = csv_file(tmp_path / "x.csv", [("id", "human"), ("1.0", 1), ("2.0", 5), ("003", 3)])
    asked = SimpleNamespace(labels=path, against=None)
    assert answers.read_labels(asked, rows).tolist() == [1, 5, 3]
    assert "the highest label" in capsys.readouterr().out
    path = csv_file(tmp_path / "x.csv", [("id", "winner"), ("1", "Response A"), ("2.0", "[[B]]")])
    asked = SimpleNamespace(labels=path, against="other")
    assert answers.read_labels(asked, rows).tolist()[:2] == [100, 0]
    assert "note" not in capsys.readouterr().out


def test_capitals_in_the_ending_of_a_compressed_file(tmp_path):
    (tmp_path / "X.CSV.GZ").write_bytes(gzip.compress(b"text,label\na,b\n"))
    ((_, row),) = records.read_records(tmp_path / "X.CSV.GZ", Counter())
    assert row == {"text": "a", "label": "b"}


def test_labelled_rows_without_a_training_part_are_not_modelled(tmp_path):
    json_lines(tmp_path / "mails/rows.jsonl", labelled(["a", "b"]))
    assert not documents.models_text(str(tmp_path), None)
    with pytest.raises(ValueError, match="no training part"):
        texts.load_rows(str(tmp_path), None)
