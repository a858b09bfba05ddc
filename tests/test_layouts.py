"""data/layouts.py: each way in which people write down a preference is read as the same rows."""

import csv
import dataclasses
import json
import random
from pathlib import Path

import pytest

from data import arena, layouts
from data.arena import load_arena, read_pairs

HUMAN_LABEL = ("A", "B", "tie")


def contents(turns: int = 2, ties: bool = True, count: int = 12) -> list[tuple]:
    """(prompt turns, A's turns, B's turns, label)"""
    draw = random.Random(0)
    rows = []
    for n in range(count):
        texts = [
            [f"{side} {n} {draw.random():.3f} naïve\nline {turn}" for turn in range(turns)]
            for side in ("ask", "a", "b")
        ]
        rows.append((*texts, n % (3 if ties else 2)))
    return rows


def messages(asked, answered, role="role", content="content", user="user", assistant="assistant"):
    pairs = zip(asked, answered, strict=True)
    return [
        {role: who, content: text}
        for turn in pairs
        for who, text in zip((user, assistant), turn, strict=True)
    ]


def in_parts(conversation: list[dict]) -> list[dict]:
    """As lmarena's newer sets have them."""
    return [m | {"content": [{"type": "text", "text": m["content"]}]} for m in conversation]


def sides(prompt, a, b, **winner) -> dict:
    return {"prompt": prompt, "response_a": a, "response_b": b, **winner}


def flat(prompt, a, b, **winner) -> dict:
    return sides(prompt[0], a[0], b[0], **winner)


def conversations(prompt, a, b, **winner) -> dict:
    return {
        "conversation_a": messages(prompt, a),
        "conversation_b": messages(prompt, b),
        **winner,
    }


def write(path: Path, records: list[dict]) -> str:
    """JSON lines, a JSON list or CSV, in which lists are JSON text, by the name."""
    if path.suffix == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, records[0])
            writer.writeheader()
            for record in records:
                cells = {
                    k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in record.items()
                }
                writer.writerow(cells)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".parquet":
        import pandas

        pandas.DataFrame(records).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def as_read(rows) -> list[tuple]:
    return [(row.prompt, row.response_a, row.response_b, row.label) for row in rows]


# name → (row in that layout, of so many turns, the line that is said)
WORDS = {
    "model_a": ("model_a", "model_b", "tie"),
    "bothbad": ("model_a", "model_b", "tie (bothbad)"),
    "both_bad": ("model_a", "model_b", "both_bad"),
    "letters": ("A", "B", "tie"),
    "small letters": ("a", "b", "Tie"),
    "brackets": ("[[A]]", "[[B]]", "TIE"),
    "response_a": ("response_a", "response_b", "tie"),
    "spaces": (" Response A ", "Response B", "draw"),
    "names": ("gpt-x", "llama-y", "tie"),
}
NUMBERS = {
    "0 1 2": ((0, 1, 2), "0 A, 1 B, 2 tie"),
    "1.0": ((0.0, 1.0, 2.0), "0 A, 1 B, 2 tie"),
    "text": (("0", "1", "2.0"), "0 A, 1 B, 2 tie"),
}
MODELS = {"model_a": "gpt-x", "model_b": "llama-y"}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json", ".parquet"])
@pytest.mark.parametrize("form", [sides, conversations])
@pytest.mark.parametrize("spelling", WORDS)
def test_winners_in_words(tmp_path, spelling, form, suffix):
    rows = contents()
    records = [form(*texts, winner=WORDS[spelling][k], **MODELS) for *texts, k in rows]
    pairs = read_pairs(write(tmp_path / f"x{suffix}", records))
    assert as_read(pairs.rows) == rows and pairs.ties
    assert pairs.repairs == {"row_number_ids": len(rows)}
    assert pairs.reading.endswith(": the winner in winner")


@pytest.mark.parametrize("column", ["winner", "label", "preference"])
@pytest.mark.parametrize("spelling", NUMBERS)
def test_winners_as_numbers(tmp_path, spelling, column):
    rows = contents(turns=1)
    numbers, said = NUMBERS[spelling]
    records = [flat(*texts, **{column: numbers[k]}) for *texts, k in rows]
    for suffix in (".jsonl", ".csv"):
        pairs = read_pairs(write(tmp_path / f"x{suffix}", records))
        assert as_read(pairs.rows) == rows and pairs.ties
        assert pairs.reading == f"read as prompt, response_a, response_b: {column} {said}"


def test_two_numbers_are_a_and_b_without_ties(tmp_path):
    rows = contents(turns=1, ties=False)
    records = [flat(*texts, label=k) for *texts, k in rows]
    pairs = read_pairs(write(tmp_path / "x.jsonl", records))
    assert as_read(pairs.rows) == rows and not pairs.ties
    assert pairs.reading.endswith("label 0 A, 1 B; no ties")


@pytest.mark.parametrize("side, of", [("a", (-1, 1, 0)), ("b", (1, -1, 0))])
def test_minus_one_is_whom_it_is_said_to_be(tmp_path, side, of):
    """Nothing else can tell: 1 is the better answer to some, and the second one to others."""
    rows = contents(turns=1)
    path = write(tmp_path / "x.csv", [flat(*texts, label=of[k]) for *texts, k in rows])
    with pytest.raises(ValueError, match="--minus_one a, or b"):
        read_pairs(path)
    pairs = read_pairs(path, minus_one=lambda: side)
    assert as_read(pairs.rows) == rows
    said = "-1 A, 0 tie, 1 B" if side == "a" else "-1 B, 0 tie, 1 A"
    assert pairs.reading.endswith(f"label {said}")
    assert {row.label for row in read_pairs(path, require_labels=False).rows} == {None}


@pytest.mark.parametrize("numbers", [(1, 2), (-1, 0), (-1,), (-1, 0, 1, 2), (-1, 1)])
def test_numbers_that_could_mean_several_things_are_refused(tmp_path, numbers):
    texts = contents(turns=1, count=8)
    records = [flat(*row[:3], label=numbers[n % len(numbers)]) for n, row in enumerate(texts)]
    path = write(tmp_path / "x.jsonl", records)
    with pytest.raises(ValueError, match="several things") as error:
        read_pairs(path, skip_bad_rows=True)
    for place, number in enumerate(numbers, start=1):
        assert f"{number} ({path}, line {place})" in str(error.value)
    unlabelled = read_pairs(path, require_labels=False)  # for predict, which needs none
    assert {row.label for row in unlabelled.rows} == {None}


SPELT = {
    "capitals": {"prompt": "Prompt", "response_a": "Response_A", "response_b": "Response B"},
    "answers": {"response_a": "answer_a", "response_b": "answer_b", "winner": "Winner"},
    "outputs": {"response_a": "output_a", "response_b": "Output-B"},
}


@pytest.mark.parametrize("separator", [",", ";"])
@pytest.mark.parametrize("spelling", SPELT)
def test_columns_in_other_words_and_semicolons(tmp_path, spelling, separator):
    rows, names = contents(turns=1), SPELT[spelling]
    if separator == ";":  # names in one word, else it could be a text
        names = {name: other.replace(" ", "_") for name, other in names.items()}
    records = [flat(*texts, winner="AB-"[k].replace("-", "tie")) for *texts, k in rows]
    with open(tmp_path / "x.csv", "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow([names.get(name, name) for name in records[0]])
        writer.writerows(record.values() for record in records)
    pairs = read_pairs(tmp_path / "x.csv")
    assert as_read(pairs.rows) == rows
    assert all(f"{other} for {name}" in pairs.reading for name, other in names.items())
    assert pairs.repairs.get("semicolon_files", 0) == (separator == ";")


def test_a_column_that_is_there_keeps_its_name(tmp_path):
    rows = contents(turns=1)
    records = [flat(*texts, winner="AAB"[k], answer_a="x", Winner="B") for *texts, k in rows]
    pairs = read_pairs(write(tmp_path / "x.csv", records))
    assert [row.response_a for row in pairs.rows] == [row[1] for row in rows]
    assert [row.label for row in pairs.rows] == ["AAB".index("AAB"[k]) // 2 for *_, k in rows]
    assert " for " not in pairs.reading
    one = arena.read_json_row('{"Prompt": "p", "answer_a": "x", "answer_b": "y"}', "here")
    assert (one.prompt, one.response_a, one.response_b) == (["p"], ["x"], ["y"])


def test_kaggles_columns_without_the_third(tmp_path):
    rows = contents(turns=1, ties=False)
    records = [
        flat(*texts, winner_model_a=int(k == 0), winner_model_b=int(k == 1)) for *texts, k in rows
    ]
    pairs = read_pairs(write(tmp_path / "x.csv", records))
    assert as_read(pairs.rows) == rows and not pairs.ties
    records = [record | {"winner_tie": 0} for record in records]
    pairs = read_pairs(write(tmp_path / "x.csv", records))  # the column says that ties can be
    assert as_read(pairs.rows) == rows and pairs.ties and "no ties" not in pairs.reading


# ---- chosen and rejected

CHOSEN = {
    "texts": lambda p, c, r: {"prompt": p[0], "chosen": c[0], "rejected": r[0]},
    "question": lambda p, c, r: {"question": p[0], "chosen": c[0], "rejected": r[0]},
    "messages": lambda p, c, r: {"chosen": messages(p, c), "rejected": messages(p, r)},
    "messages and prompt": lambda p, c, r: {
        **{"prompt": p[0], "chosen": messages(p, c), "rejected": messages(p, r)},
    },
    "prompt and answers as messages": lambda p, c, r: {
        "prompt": [{"role": "user", "content": p[0]}],
        "chosen": [{"role": "assistant", "content": c[0]}],
        "rejected": [{"role": "assistant", "content": r[0]}],
    },
    "prompt as messages, answers as texts": lambda p, c, r: {
        **{"prompt": [{"role": "user", "content": p[0]}], "chosen": c[0], "rejected": r[0]},
    },
    "prompt as text, answers as messages": lambda p, c, r: {
        "prompt": p[0],
        "chosen": [{"role": "assistant", "content": c[0]}],
        "rejected": [{"role": "assistant", "content": r[0]}],
    },
    "from and value": lambda p, c, r: {
        "chosen": messages(p, c, "from", "value", "human", "gpt"),
        "rejected": messages(p, r, "from", "value", "human", "gpt"),
    },
    "transcripts": lambda p, c, r: {
        "chosen": f"\n\nHuman: {p[0]}\n\nAssistant: {c[0]}",
        "rejected": f"\n\nHuman: {p[0]}\n\nAssistant: {r[0]}",
    },
    "a message each": lambda p, c, r: {  # LLaMA-Factory's
        "conversations": [{"from": "human", "value": p[0]}],
        "chosen": {"from": "gpt", "value": c[0]},
        "rejected": {"from": "gpt", "value": r[0]},
    },
    "as Python prints them": lambda p, c, r: {
        "chosen": str(messages(p, c)),
        "rejected": str(messages(p, r)),
    },
    "lists of one": lambda p, c, r: {"prompt": p, "chosen": c, "rejected": r},
}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize("form", CHOSEN)
def test_chosen_and_rejected_in_each_form_are_the_same_rows(tmp_path, form, suffix):
    rows = contents(turns=1, count=40)
    records = [CHOSEN[form](*texts) for *texts, _ in rows]
    pairs = read_pairs(write(tmp_path / f"x{suffix}", records))
    wanted = read_pairs(write(tmp_path / "y.jsonl", [CHOSEN["texts"](*row[:3]) for row in rows]))
    assert as_read(pairs.rows) == as_read(wanted.rows) and not pairs.ties
    assert pairs.reading == (
        "read as chosen/rejected: the side drawn by a hash of each row; no ties"
    )
    for row, (prompt, chosen, rejected, _) in zip(pairs.rows, rows, strict=True):
        assert row.prompt == prompt and {row.label} <= {0, 1}
        assert (row.response_a, row.response_b)[row.label] == chosen
        assert (row.response_b, row.response_a)[row.label] == rejected


def test_what_belongs_to_a_prompt_is_read_with_it(tmp_path):
    """Without its input an instruction would be another one."""
    answers = {"chosen": "good", "rejected": "bad"}
    for fields, wanted, said in (
        ({"instruction": "Translate.", "input": "ja"}, "Translate.\n\nja", "instruction + input, "),
        ({"instruction": "Sing.", "input": ""}, "Sing.", "instruction + input, "),
        ({"system": "Be brief.", "question": "Why?"}, "Be brief.\n\nWhy?", "question + system, "),
        ({"system": None, "prompt": "Why?"}, "Why?", "prompt + system, "),
        ({"input": "other", "prompt": "Why?"}, "Why?", ""),
    ):
        pairs = read_pairs(write(tmp_path / "x.jsonl", [fields | answers]))
        assert pairs.rows[0].prompt == [wanted]
        assert pairs.reading.startswith(f"read as {said}chosen/rejected")
    kaggle = dict(zip(layouts.WINNER_COLUMNS, (1, 0, 0), strict=True)) | {"system": "Be brief."}
    (row,) = read_pairs(write(tmp_path / "x.jsonl", [sides("p", "a", "b", **kaggle)])).rows
    assert row.prompt == ["p"]


def test_lists_as_pandas_writes_them_into_csv_are_read_and_counted(tmp_path):
    rows = contents(count=6)
    records = [
        {name: str(value) for name, value in form(*texts, winner="AB"[k % 2]).items()}
        for form in (sides, conversations)
        for *texts, k in rows
    ]
    for half in (records[:6], records[6:]):
        found, repairs = load_arena(write(tmp_path / "x.csv", half))
        assert [row[:3] for row in as_read(found)] == [row[:3] for row in rows]
        assert repairs["python_lists"] == 6


def test_sides_are_a_function_of_the_row(tmp_path):
    records = [CHOSEN["texts"](*row[:3]) for row in contents(turns=1, count=1000)]
    rows = load_arena(write(tmp_path / "x.jsonl", records))[0]
    assert 440 < sum(row.label for row in rows) < 560  # 500 ± 3.8 standard deviations
    some = random.Random(1).sample(range(1000), 300)
    cut = load_arena(write(tmp_path / "y.csv", [{"id": n, **records[n]} for n in some]))[0]
    assert as_read(cut) == as_read(rows[n] for n in some)


def test_conversations_of_several_turns_share_what_came_before(tmp_path):
    asked, shared = ["one?", "two?"], "the first answer"
    record = {
        "chosen": messages(asked, [shared, "good"]),
        "rejected": messages(asked, [shared, "bad"]),
    }
    (row,) = load_arena(write(tmp_path / "x.jsonl", [record]))[0]
    assert row.prompt == asked
    assert (row.response_a, row.response_b)[row.label] == [shared, "good"]


@pytest.mark.parametrize(
    ("first", "winner", "values"),
    [
        (1, "preference", (1, 2)),
        (1, "preference", (1.0, 2.0)),
        (1, "winner", ("output_1", "Output 2")),
        (0, "better_response_id", (0, 1)),
        (0, "winner", ("response_0", "response_1")),
        (1, "label", ("A", "B")),
    ],
)
def test_answers_with_numbers(tmp_path, first, winner, values):
    noun = "output" if first else "response"
    records = [
        {"instruction": "q", f"{noun}_{first}": "a", f"{noun}_{first + 1}": "b", winner: value}
        for value in (*values, values[0])
    ]
    for name in ("x.jsonl", "x.csv"):
        rows = load_arena(write(tmp_path / name, records))[0]
        assert [(row.response_a, row.response_b) for row in rows] == [(["a"], ["b"])] * 3
        assert [row.label for row in rows] == [0, 1, 0]


@pytest.mark.parametrize("values", [(0, 1), (0, 1, 2), (1, "B"), (1, "tie")])
def test_numbers_that_do_not_fit_those_of_the_answers_are_refused(tmp_path, values):
    records = [sides("q", "a", "b", winner=value) for value in values]
    records = [
        {name.replace("_a", "_1").replace("_b", "_2"): cell for name, cell in record.items()}
        for record in records
    ]
    with pytest.raises(ValueError, match="could mean several things.*Write A, B and tie"):
        load_arena(write(tmp_path / "x.jsonl", records))


def test_of_more_than_two_answers_none_is_chosen(tmp_path):
    record = {"prompt": "q", "answer_1": "a", "answer_2": "b", "answer_3": "c", "winner": 1}
    with pytest.raises(ValueError, match="missing columns: response_a"):
        load_arena(write(tmp_path / "x.jsonl", [record]))


def test_turns_after_the_judged_one_are_left_out(tmp_path):
    asked, answers = ["one?", "two?"], (["a", "b"], ["c", "d"])
    records = [
        conversations(asked, *answers, winner="model_a") | {"turn": 1},
        conversations(asked, *answers, winner="tie") | {"turn": 2},
        conversations(["one?"], ["a"], ["c"], winner="model_b") | {"turn": 1},
    ]
    rows, repairs = load_arena(write(tmp_path / "x.jsonl", records))
    assert [row.prompt for row in rows] == [asked[:1], asked, asked[:1]]
    assert [row.response_b for row in rows] == [["c"], ["c", "d"], ["c"]]
    assert repairs["later_turns"] == 1
    # or an answer to the first turn would be known from training, and asked for in the test
    assert len({row.group for row in rows}) == 1
    arena.assign_splits(rows, "prompt", 0.2, 0.2)
    assert arena.check_leaks(rows, "prompt") == 0
    known = [dataclasses.replace(row, split="test") for row in rows[1:2]]
    assert arena.extra_rows(rows, known) == ([], 3)
    other = sides(["one?"], ["a"], ["b"], winner="A")
    others = load_arena(write(tmp_path / "y.jsonl", [other]))[0]
    assert arena.extra_rows(others, known) == ([], 1)


def test_a_system_message_stands_in_front_of_the_first_question(tmp_path):
    system = [{"role": "system", "content": "Be brief."}]
    record = {
        "conversation_a": system + messages(["p", "q"], ["a", "b"]),
        "conversation_b": system + messages(["p", "q"], ["c", "d"]),
        "winner": "model_b",
    }
    (row,) = load_arena(write(tmp_path / "x.jsonl", [record]))[0]
    assert (row.prompt, row.response_a, row.label) == (["Be brief.\n\np", "q"], ["a", "b"], 1)


def test_content_in_parts_and_a_conversation_that_ends_early(tmp_path):
    record = conversations(["p", "q"], ["a", "b"], ["c", "d"], winner="tie")
    record = {
        "conversation_a": in_parts(record["conversation_a"]),
        "conversation_b": in_parts(record["conversation_b"])[:3],
        "winner": "tie",
    }
    (row,), repairs = load_arena(write(tmp_path / "x.jsonl", [record]))
    assert (row.prompt, row.response_a, row.response_b) == (["p", "q"], ["a", "b"], ["c", ""])
    assert repairs["ragged_turns"] == 1


def test_an_answer_that_begins_with_a_bracket_is_text(tmp_path):
    texts = ("Name two.", '["apple", "pear"]', "[Verse 1] la")
    for record in (sides(*texts, winner="A"), dict(zip(("prompt", *layouts.CHOSEN), texts,
                                                        strict=True))):  # fmt: skip
        for suffix in (".jsonl", ".csv"):
            (row,) = load_arena(write(tmp_path / f"x{suffix}", [record]))[0]
            assert sorted([*row.response_a, *row.response_b]) == sorted(texts[1:])


# ---- faults

GOOD = conversations(["p"], ["a"], ["b"], winner="A")
BAD = {
    "another winner": (GOOD | {"winner": "model_c"}, "winner", "found 'model_c'"),
    "blank winner": (GOOD | {"winner": ""}, "winner", "found a blank"),
    "no winner": ({k: v for k, v in GOOD.items() if k != "winner"}, "winner", "found a blank"),
    "number": (GOOD | {"winner": 3}, "winner", "found 3"),
    "true": (GOOD | {"winner": True}, "winner", "found True"),
    "huge": (GOOD | {"winner": 10**400}, "winner", "expected A, B or tie"),
    "text": (GOOD | {"conversation_a": "p a"}, "conversation_a", "expected a list of messages"),
    "null": (GOOD | {"conversation_b": None}, "conversation_b", "expected a list of messages"),
    "role": (
        GOOD | {"conversation_a": [{"role": "tool", "content": "x"}]},
        "conversation_a",
        "message 1: expected user or assistant, found 'tool'",
    ),
    "turns": (
        GOOD | {"conversation_a": messages(["p"], ["a"])[::-1]},
        "conversation_a",
        "message 1: assistant out of turn",
    ),
    "image": (
        GOOD | {"conversation_a": [{"role": "user", "content": [{"type": "image", "image": "x"}]}]},
        "conversation_a",
        "a part of type 'image'",
    ),
    "two prompts": (
        GOOD | {"conversation_b": messages(["other"], ["b"])},
        "conversation_a/conversation_b",
        "found two in turn 1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_fault_names_file_line_and_column_or_is_listed(tmp_path, name):
    record, column, problem = BAD[name]
    path = write(tmp_path / "x.jsonl", [GOOD, record, GOOD])
    with pytest.raises(ValueError) as error:
        load_arena(path)
    assert f"{path}, line 2, column {column}: " in str(error.value)
    assert problem in str(error.value) and len(str(error.value)) < 400
    rows, repairs = load_arena(path, skip_bad_rows=True, bad_rows_file=tmp_path / "bad.csv")
    assert len(rows) == 2 and repairs["bad_rows"] == 1
    assert problem in (tmp_path / "bad.csv").read_text()


@pytest.mark.parametrize(
    "columns",
    [
        ["prompt", "response_a"],
        ["prompt", "response_a", "response_b", "winner_tie"],
        ["conversation_a", "conversation_b"],
        ["prompt", "chosen"],
        ["text", "label"],
    ],
)
def test_other_columns_are_refused_with_the_layouts_that_are_known(tmp_path, columns):
    path = write(tmp_path / "x.jsonl", [dict.fromkeys(columns, "x")])
    with pytest.raises(ValueError, match="missing columns: ") as error:
        load_arena(path, skip_bad_rows=True)
    for name in ("response_a", "conversation_a", "chosen", "winner_model_a", "tie", "0, 1, 2"):
        assert name in str(error.value)


def test_for_predict_a_column_of_another_meaning_is_no_winner(tmp_path):
    path = write(tmp_path / "x.jsonl", [sides("p", "a", "b", label="batch 7")])
    (row,), _ = load_arena(path, require_labels=False)
    assert row.label is None
    with pytest.raises(ValueError, match="line 1, column label: expected A, B or tie"):
        load_arena(path)


def test_what_is_missing_is_named_by_the_nearest_layout(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"prompt": "p", "chosn": "a", "rejected": "b"}])
    with pytest.raises(ValueError, match="missing columns: chosen .nearest is 'chosn'.. Found"):
        load_arena(path)
    path = write(tmp_path / "x.jsonl", [{"conversation_a": [], "winner": "A"}])
    with pytest.raises(ValueError, match="missing columns: conversation_b"):
        load_arena(path)


def test_without_a_prompt_texts_are_refused_and_say_what_is_expected(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"chosen": "good", "rejected": "bad"}])
    with pytest.raises(ValueError, match=r"line 1, column chosen.*Human: … Assistant: …"):
        load_arena(path)


def test_probabilities_are_for_extra_rows_alone(tmp_path):
    shares = dict(zip(layouts.WINNER_COLUMNS, (0.6, 0.3, 0.1), strict=True))
    sure = dict(zip(layouts.WINNER_COLUMNS, (0, 1, 0), strict=True))
    rounded = dict(zip(layouts.WINNER_COLUMNS, (0.33, 0.33, 0.33), strict=True))
    records = [sides("p", "a", "b", **winners) for winners in (shares, sure, rounded)]
    for suffix in (".jsonl", ".csv"):
        path = write(tmp_path / f"x{suffix}", records)
        with pytest.raises(ValueError, match="probabilities are for --extra_train"):
            load_arena(path)
        first, second, third = read_pairs(path, soft_labels=True).rows
        assert first.label == 0 and first.soft == pytest.approx((0.6, 0.3, 0.1))
        assert second.label == 1 and second.soft is None
        assert third.soft == pytest.approx((1 / 3,) * 3)
    for wrong in ((0.6, 0.3, 0.3), (1.2, -0.2, 0), (0.6, "", 0.4), (float("nan"), 0.5, 0.5)):
        record = sides("p", "a", "b", **dict(zip(layouts.WINNER_COLUMNS, wrong, strict=True)))
        path = write(tmp_path / "y.jsonl", [record])
        with pytest.raises(ValueError, match="or probabilities with sum 1"):
            read_pairs(path, soft_labels=True)
