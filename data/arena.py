"""Pairwise preferences: which of two responses would a person prefer?

Reads the layout of Kaggle's "LMSYS - Chatbot Arena Human Preference Predictions" (id, model_a,
model_b, prompt, response_a, response_b, winner_model_a, winner_model_b, winner_tie) and those of
data/layouts.py from CSV, JSON lines, parquet or the hub, repairs what can be repaired and counts
it, and splits by prompt.

    pairs = read_pairs("train.csv")                      # .rows, .repairs, .ties, .reading
    rows, repairs = load_arena("train.csv")
    assign_splits(rows, by="prompt", val_frac=0.1, test_frac=0.1)
    check_leaks(rows, by="prompt")

Nothing here depends on a seed except `shuffle_labels`: splits and subsets are functions of hashes,
so rows that are added later move no earlier row.
"""

import json
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from data.layouts import TIE, WINNER_COLUMNS, Layout, chosen_is_b, find_layout, respelt
from data.records import (
    BadRow,
    Records,
    id_of,
    is_hub_id,
    load_hub,
    read_records,
    repair_surrogates,
    require_object,
    short,
    strip_control,
)
from data.rows import fingerprint, normalised_text, split_of, stable_hash
from files import csv_text, write_text


@dataclass(slots=True)
class PairRow:
    """One comparison; prompt, response_a and response_b have the same number of turns."""

    id: str
    prompt: list[str]
    response_a: list[str]
    response_b: list[str]
    label: int | None  # 0 A wins, 1 B wins, 2 tie; None in a file without winners
    group: str  # rows that intervals resample together: hash of the prompt, or of its first turn
    split: str  # train | val | test | "" (not assigned, or unlabelled)
    soft: tuple[float, ...] | None = None  # probabilities of A, B, tie, where they are the label


class Pairs(NamedTuple):
    """What a file holds."""

    rows: list[PairRow]
    repairs: dict[str, int]
    ties: bool  # whether there are any, or a column for them: else there are two classes
    reading: str  # a line on how it was understood
    drawn: bool = False  # of chosen/rejected: sides are drawn, and a label says where chosen stands


def said_repairs(repairs: dict[str, int]) -> list[str]:
    """A line on what was repaired, for the console; none where nothing was."""
    named = ", ".join(f"{count} {name}" for name, count in sorted(repairs.items()))
    return [f"repaired: {named}"] if named else []


def load_arena(source: str, **options: Any) -> tuple[list[PairRow], dict[str, int]]:
    """Rows and repairs of `read_pairs`."""
    return read_pairs(source, **options)[:2]


def read_pairs(
    source: str,
    *,
    require_labels: bool = True,
    soft_labels: bool = False,
    skip_bad_rows: bool = False,
    bad_rows_file: str | os.PathLike | None = None,
    minus_one: Callable[[], str | None] = lambda: None,
) -> Pairs:
    """Read comparisons: a .csv, .jsonl, .json or .parquet file, a folder of parquet, or a hub id.

    A prompt or response is a list of turns, such a list as JSON text, plain text (one turn), or
    messages; data/layouts.py says which columns there may be.
    With require_labels=False the winner columns may be absent (Kaggle's test.csv) or blank; with
    soft_labels they may hold probabilities. Numbers from -1 to 1 are refused unless minus_one(),
    which is called where there are such, says whom -1 stands for: a or b.

    Returns the rows (split "") and the number of rows with each repair, zeros left out:
        null_turns           null among the turns, read as ""
        not_text             true, false or a number as a turn, read as JSON spells it
        both_null            both responses wholly null (kept: they have a label)
        empty_list           a prompt or response without turns, read as [""]
        ragged_turns         different numbers of turns, the shorter padded with ""
        empty_response       a response that is blank in all its turns (kept)
        plain_text           text that is not a JSON list, read as one turn
        python_lists         lists as Python prints them, not as JSON
        later_turns          turns of a conversation after the one judged (column turn), left out
        surrogates_joined    two halves of one character, joined
        surrogates_replaced  half a character, replaced by U+FFFD
        row_number_ids       no id column, the row's number (from 1) serves
        bad_rows             left out by skip_bad_rows
    and those of the file in records.REPAIRS.

    Raises ValueError (file, row, column, what was expected) for a row that cannot be used, unless
    skip_bad_rows: then such rows are left out, counted and written to bad_rows_file (CSV: row, id,
    column, problem). Missing columns, no usable row and an unreadable source always raise
    ValueError, a missing file FileNotFoundError.
    """
    rows: list[PairRow] = []
    repairs: Counter[str] = Counter()
    bad_rows: list[tuple[int, str, str, str]] = []
    row_of_id: dict[str, int] = {}
    layout: Layout | None = None
    for number, (place, record) in enumerate(_read(source, repairs), start=1):
        try:
            if isinstance(record, BadRow):
                raise record
            if layout is None:
                names = respelt(list(record))
                known = [names.get(name, name) for name in record]
                layout = find_layout(source, known, require_labels)
                layout.minus_one, layout.respelt = minus_one, names
            if layout.respelt:
                record = {layout.respelt.get(name, name): cell for name, cell in record.items()}
            row, repaired = _build_row(layout, record, number, place, require_labels, soft_labels)
            if row.id in row_of_id:
                other = row_of_id[row.id]
                problem = f"{short(row.id)} is the id of row {other} already; ids must be unique"
                raise BadRow("id", problem + ", predictions are joined by them")
        except BadRow as bad:
            if not skip_bad_rows:
                column = f", column {bad.column}" if bad.column else ""
                raise ValueError(
                    f"{place}{column}: {bad.problem}. "
                    "--skip_bad_rows would leave such rows out and list them in a file."
                ) from None
            row_id = record.get("id", "") if isinstance(record, dict) else ""
            bad_rows.append((number, strip_control(str(row_id)), bad.column, bad.problem))
            continue
        row_of_id[row.id] = number
        rows.append(row)
        repairs.update(repaired)
    if bad_rows:
        repairs["bad_rows"] = len(bad_rows)
        if bad_rows_file is not None:
            write_text(Path(bad_rows_file), csv_text(("row", "id", "column", "problem"), bad_rows))
    if not rows:
        why = f"all {len(bad_rows)} rows are bad" if bad_rows else "it holds no rows"
        first = f" (row {bad_rows[0][0]}: {bad_rows[0][3]})" if bad_rows else ""
        raise ValueError(f"{source}: nothing to read, {why}{first}.")
    layout.give_numbers_meaning(rows, require_labels)
    if repairs["later_turns"]:  # what was judged after one turn and after two shares its answers
        for row in rows:
            row.group = prompt_hash(row.prompt[:1])
    ties = layout.has_tie_column or any(
        row.label == TIE or (row.soft and row.soft[TIE]) for row in rows
    )
    return Pairs(rows, dict(repairs), ties, layout.said(ties), layout.kind == "chosen")


def read_json_row(line: str, place: str) -> PairRow:
    """One comparison without a winner from a JSON object; a missing prompt is empty."""
    try:
        record = require_object(json.loads(line))
        if isinstance(record, BadRow):
            raise record
        names = respelt(list(record))
        record = {names.get(name, name): cell for name, cell in record.items()}
        record = {"prompt": "", **record, "id": str(record.get("id", "0"))}
        layout = Layout(place, "sides", "prompt", None)
        return _build_row(layout, record, 1, place, False, False)[0]
    except BadRow as bad:
        column = f", field {bad.column}" if bad.column else ""
        raise ValueError(f"{place}{column}: {bad.problem}.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not valid JSON ({error}).") from None


def _read(source: str, repairs: Counter) -> Records:
    """The records of a file, or of a set on the hub where the name is no file's."""
    if Path(source).exists():
        return read_records(source, repairs)
    if not is_hub_id(source):
        raise FileNotFoundError(f"{source}: no such file. {_where_to_get_data()}")
    rows = load_hub(source, advice=_where_to_get_data(), split="train")
    return ((f"{source}, row {number}", record) for number, record in enumerate(rows, start=1))


def _where_to_get_data() -> str:
    return (
        "Download train.csv from https://www.kaggle.com/competitions/lmsys-chatbot-arena/data and "
        "give its path to --data, or use --data reviews, which needs no network."
    )


def _build_row(
    layout: Layout, record: dict, number: int, place: str, require_labels: bool, soft_labels: bool
) -> tuple[PairRow, set[str]]:
    """Return the row and the names of its repairs; raise BadRow if it cannot be used."""
    repaired: set[str] = set()
    if "id" in record:
        row_id = id_of(record["id"], repaired)
        if not row_id:
            raise BadRow("id", "expected an id, found a blank")
    else:
        row_id = str(number)
        repaired.add("row_number_ids")
    prompt, response_a, response_b = turns = layout.texts(record, repaired)
    if all(side and all(turn is None for turn in side) for side in (response_a, response_b)):
        repaired.add("both_null")
    if any(None in side for side in turns):
        repaired.add("null_turns")
    if not all(turns):
        repaired.add("empty_list")
    num_turns = max(1, *map(len, turns))
    if len(set(map(len, turns))) > 1:
        repaired.add("ragged_turns")
    prompt, response_a, response_b = (
        [repair_surrogates(turn or "", repaired) for turn in side] + [""] * (num_turns - len(side))
        for side in turns
    )
    if not all(any(turn.strip() for turn in side) for side in (response_a, response_b)):
        repaired.add("empty_response")
    label, soft = layout.winner_of(record, place, require_labels, soft_labels)
    if layout.kind == "chosen":
        label = int(chosen_is_b(prompt, response_a, response_b))
        if label:
            response_a, response_b = response_b, response_a
    group = prompt_hash(prompt)
    return PairRow(row_id, prompt, response_a, response_b, label, group, "", soft), repaired


def prompt_hash(turns: Sequence[str]) -> str:
    """Stable hash of a prompt, blind to case, white space and padding."""
    return stable_hash("prompt", normalised_text(turns))


def assign_splits(rows: Iterable[PairRow], by: str, val_frac: float, test_frac: float) -> None:
    """Set row.split from a hash of the prompt (by="prompt") or of id and content (by="row").

    By row, a prompt that occurs twice can be in train and in test: only for arms that repeat
    earlier experiments. Rows without a label get "".
    """
    if by not in ("prompt", "row"):
        raise ValueError(f"split {by!r}: expected prompt or row.")
    for row in rows:
        key = row.group if by == "prompt" else row_hash(row)
        row.split = "" if row.label is None else split_of(key, val_frac, test_frac)


def check_leaks(rows: Iterable[PairRow], by: str) -> int:
    """Return how many prompts occur in more than one split; with by="prompt" raise if any does.

    Compares the texts, not row.group, so that it does not trust what it checks.
    """
    splits_of_prompt: dict[str, set[str]] = {}
    for row in rows:
        splits_of_prompt.setdefault(normalised_text(row.prompt), set()).add(row.split)
    leaks = [prompt for prompt, splits in splits_of_prompt.items() if len(splits - {""}) > 1]
    if leaks and by == "prompt":
        raise ValueError(
            f"{len(leaks)} prompts occur in more than one split, e.g. {short(leaks[0])} in "
            f"{', '.join(sorted(splits_of_prompt[leaks[0]]))}."
        )
    return len(leaks)


def extra_rows(rows: Sequence[PairRow], known: Iterable[PairRow]) -> tuple[list[PairRow], int]:
    """Rows of another file for training, and how many are left out: those whose prompt is among the
    `known` ones of validation or test."""

    def prompts(row: PairRow) -> set[str]:
        return {row.group, prompt_hash(row.prompt)}  # two where rows are grouped by first turns

    held_out = set().union(*(prompts(row) for row in known if row.split in ("val", "test")))
    kept = [replace(row, id=f"extra-{row.id}", split="train") for row in rows]
    kept = [row for row in kept if not prompts(row) & held_out]
    return kept, len(rows) - len(kept)


def comparison(row: PairRow) -> tuple[tuple[str, ...], int | None]:
    """What was compared, whichever side it stood on, and the winner as seen from there."""
    texts = (row.prompt, row.response_a, row.response_b)
    prompt, first, second = map(normalised_text, texts)
    if first > second:
        return (prompt, second, first), exchanged_row(row).label
    return (prompt, first, second), row.label


def shuffle_labels(rows: Sequence[PairRow], seed: int) -> list[PairRow]:
    """The control: new rows with labels permuted within each split, so that class shares stay.

    Whatever a model scores on these above the class shares is a leak in the procedure.
    """
    shuffled = [replace(row) for row in rows]
    generator = random.Random(seed)
    for split in ("train", "val", "test"):
        members = [row for row in shuffled if row.split == split]
        labels = [(row.label, row.soft) for row in members]
        generator.shuffle(labels)
        for row, label in zip(members, labels, strict=True):
            row.label, row.soft = label
    return shuffled


def exchanged_row(row: PairRow) -> PairRow:
    """The same comparison with A and B exchanged."""
    label = None if row.label is None else (1, 0, 2)[row.label]
    return replace(row, response_a=row.response_b, response_b=row.response_a, label=label)


def row_hash(row: PairRow) -> str:
    return stable_hash("row", row.id, *row.prompt, *row.response_a, *row.response_b)


def by_content(row: PairRow) -> str:
    """Key of data.rows.subset: each row by itself."""
    # a salt of its own: with the hash of the splits, the lowest rows would all be test rows
    return stable_hash("subset", row_hash(row))


def data_fingerprint(rows: Iterable[PairRow]) -> str:
    """16 hex digits of SHA-256 over ids, texts and labels, in their order."""
    return fingerprint(
        [row.id, row.prompt, row.response_a, row.response_b, row.label, *(row.soft or ())]
        for row in rows
    )


def write_submission(
    path: str | os.PathLike, ids: Sequence[str], probabilities: Sequence[Sequence[float]]
) -> None:
    """Write Kaggle's submission.csv: id,winner_model_a,winner_model_b,winner_tie.

    probabilities: (rows, 3) in the order A wins, B wins, tie; every row sums to 1.
    Raises ValueError for other shapes, for ids that occur twice, for values that are no
    probabilities. The file appears whole or not at all.
    """
    if len(ids) != len(probabilities):
        raise ValueError(f"{len(ids)} ids but {len(probabilities)} rows of probabilities.")
    if len(set(ids)) != len(ids):
        raise ValueError("submission: an id occurs twice.")
    lines = []
    for row_id, row in zip(ids, probabilities, strict=True):
        values = [float(value) for value in row]
        # 0.01: sums of probabilities that were rounded to bf16 pass, logits do not
        if len(values) != 3 or min(values) < 0 or not math.isclose(sum(values), 1, abs_tol=0.01):
            raise ValueError(f"id {row_id}: expected 3 probabilities with sum 1, found {values}.")
        lines.append((row_id, *values))
    write_text(Path(path), csv_text(("id", *WINNER_COLUMNS), lines))
