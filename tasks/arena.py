"""Pairwise preferences: which of two responses would a person prefer?

Reads the layout of Kaggle's "LMSYS - Chatbot Arena Human Preference Predictions" (id, model_a,
model_b, prompt, response_a, response_b, winner_model_a, winner_model_b, winner_tie) from CSV, JSON
lines, parquet or the hub, repairs what can be repaired and counts it, and splits by prompt.

    rows, repairs = load_arena("train.csv")
    assign_splits(rows, by="prompt", val_frac=0.1, test_frac=0.1)
    check_leaks(rows, by="prompt")

Nothing here depends on a seed except `shuffle_labels`: splits and subsets are functions of hashes,
so rows that are added later move no earlier row.
"""

import csv
import difflib
import hashlib
import json
import math
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

CLASSES = ("A wins", "B wins", "tie")  # the order of labels and of probabilities
WINNER_COLUMNS = ("winner_model_a", "winner_model_b", "winner_tie")  # same order
TEXT_COLUMNS = ("prompt", "response_a", "response_b")

# a missing file with one of these is not looked for on the hub
_FILE_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet", ".zip", ".gz")

_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# C0 (all but \t and \n), DEL and C1; marks that reorder text; surrogates, which print() refuses
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


@dataclass(slots=True)
class PairRow:
    """One comparison; prompt, response_a and response_b have the same number of turns."""

    id: str
    prompt: list[str]
    response_a: list[str]
    response_b: list[str]
    label: int | None  # 0 A wins, 1 B wins, 2 tie; None in a file without winners
    group: str  # rows that intervals resample together (the prompt's hash)
    split: str  # train | val | test | "" (not assigned, or unlabelled)


class _BadRow(Exception):
    """One row that cannot be used: the column, and what is wrong with it."""

    def __init__(self, column: str, problem: str):
        super().__init__(problem)
        self.column, self.problem = column, problem


def load_arena(
    source: str,
    *,
    require_labels: bool = True,
    skip_bad_rows: bool = False,
    bad_rows_file: str | os.PathLike | None = None,
) -> tuple[list[PairRow], dict[str, int]]:
    """Read comparisons: a .csv, .jsonl, .json or .parquet file, a folder of parquet, or a hub id.

    A prompt or response is a list of turns, such a list as JSON text, or plain text (one turn).
    With require_labels=False the winner columns may be absent (Kaggle's test.csv) or blank.

    Returns the rows (split "") and the number of rows with each repair, zeros left out:
        null_turns           null among the turns, read as ""
        not_text             true, false or a number as a turn, read as JSON spells it
        both_null            both responses wholly null (kept: they have a label)
        empty_list           a prompt or response without turns, read as [""]
        ragged_turns         different numbers of turns, the shorter padded with ""
        empty_response       a response that is blank in all its turns (kept)
        plain_text           text that is not a JSON list, read as one turn
        surrogates_joined    two halves of one character, joined
        surrogates_replaced  half a character, replaced by U+FFFD
        row_number_ids       no id column, the row's number (from 1) serves
        bad_rows             left out by skip_bad_rows
    and the number of lines with nul_bytes (removed) or invalid_utf8 (replaced by U+FFFD).

    Raises ValueError (file, row, column, what was expected) for a row that cannot be used, unless
    skip_bad_rows: then such rows are left out, counted and written to bad_rows_file (CSV: row, id,
    column, problem). Missing columns, no usable row and an unreadable source always raise
    ValueError, a missing file FileNotFoundError.
    """
    rows: list[PairRow] = []
    repairs: Counter[str] = Counter()
    bad_rows: list[tuple[int, str, str, str]] = []
    row_of_id: dict[str, int] = {}
    has_labels: bool | None = None
    for number, (place, record) in enumerate(read_records(source, repairs), start=1):
        try:
            if isinstance(record, _BadRow):
                raise record
            if has_labels is None:
                has_labels = _check_columns(source, list(record), require_labels)
            row, repaired = _build_row(record, number, has_labels, require_labels)
            if row.id in row_of_id:
                other = row_of_id[row.id]
                problem = f"{_short(row.id)} is the id of row {other} already; ids must be unique"
                raise _BadRow("id", problem + ", predictions are joined by them")
        except _BadRow as bad:
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
            _write_csv(bad_rows_file, ("row", "id", "column", "problem"), bad_rows)
    if not rows:
        why = f"all {len(bad_rows)} rows are bad" if bad_rows else "it holds no rows"
        first = f" (row {bad_rows[0][0]}: {bad_rows[0][3]})" if bad_rows else ""
        raise ValueError(f"{source}: nothing to read, {why}{first}.")
    return rows, dict(repairs)


def read_json_row(line: str, place: str) -> PairRow:
    """One comparison without a winner from a JSON object; a missing prompt is empty."""
    try:
        record = _require_object(json.loads(line))
        if isinstance(record, _BadRow):
            raise record
        record = {"prompt": "", **record, "id": str(record.get("id", "0"))}
        return _build_row(record, 1, False, False)[0]
    except _BadRow as bad:
        column = f", field {bad.column}" if bad.column else ""
        raise ValueError(f"{place}{column}: {bad.problem}.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not valid JSON ({error}).") from None


def read_records(source: str, repairs: Counter) -> Iterator[tuple[str, dict | _BadRow]]:
    """Yield (place for messages, the row as a dict or what is wrong with it)."""
    path = Path(source)
    suffix = path.suffix.lower()
    if path.is_dir():
        files = sorted(path.rglob("*.parquet"))
        if not files:
            raise ValueError(f"{source}: a folder without .parquet files; name one file in it.")
        for file in files:
            yield from _read_parquet(file)
    elif path.is_file():
        if suffix == ".csv":
            yield from _read_csv(path, repairs)
        elif suffix in (".jsonl", ".json"):
            yield from _read_json(path, repairs)
        elif suffix == ".parquet":
            yield from _read_parquet(path)
        else:
            raise ValueError(
                f"{source}: expected .csv, .jsonl, .json or .parquet; unpack archives first."
            )
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", source) and suffix not in _FILE_SUFFIXES:
        yield from _read_hub(source)
    else:
        raise FileNotFoundError(f"{source}: no such file. {_where_to_get_data()}")


def _where_to_get_data() -> str:
    return (
        "Download train.csv from https://www.kaggle.com/competitions/lmsys-chatbot-arena/data and "
        "give its path to --data, or use --data reviews, which needs no network."
    )


def _read_lines(path: Path, repairs: Counter) -> Iterator[str]:
    """Lines of a UTF-8 file (BOM accepted), line ends kept, NUL and invalid bytes repaired."""
    with open(path, "rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError(f"{path}: the text is UTF-16; save it as UTF-8.")
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for line in file:
            if "\0" in line:
                repairs["nul_bytes"] += 1
                line = line.replace("\0", "")
            if not line.isascii() and _SURROGATE.search(line):
                repairs["invalid_utf8"] += 1
                line = _SURROGATE.sub("\ufffd", line)
            yield line


def _read_csv(path: Path, repairs: Counter) -> Iterator[tuple[str, dict | _BadRow]]:
    csv.field_size_limit(2**31 - 1)  # cells of a million characters occur; the default is 131,072
    # strict: without it a file that was cut off inside quotes ends in a row that looks whole
    reader = csv.reader(_read_lines(path, repairs), strict=True)
    header: list[str] | None = None
    number = 0
    while True:
        line = reader.line_num + 1
        number += header is not None
        place = f"{path}, row {number} (line {line})"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield place, _BadRow("", f"not valid CSV ({error}); is the file cut off?")
            continue
        if not cells:  # an empty line
            number -= header is not None
        elif header is None:
            header = [cell.strip() for cell in cells]
            twice = [name for name, count in Counter(header).items() if count > 1]
            if twice:
                raise ValueError(f"{path}: the header names column {_short(twice[0])} twice.")
        elif len(cells) != len(header):
            problem = f"expected {len(header)} cells as in the header, found {len(cells)}"
            yield place, _BadRow("" if len(cells) > len(header) else header[len(cells)], problem)
        else:
            yield place, dict(zip(header, cells, strict=True))


def _read_json(path: Path, repairs: Counter) -> Iterator[tuple[str, dict | _BadRow]]:
    """JSON lines; a .json file may also be one list of objects."""
    lines: Iterable[str] = _read_lines(path, repairs)
    if path.suffix.lower() == ".json":
        text = "".join(lines)
        if text.lstrip().startswith("["):
            try:
                records = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}: not valid JSON ({error}).") from None
            for number, record in enumerate(records, start=1):
                yield f"{path}, row {number}", _require_object(record)
            return
        lines = text.split("\n")
    number = 0
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        number += 1
        try:
            record = _require_object(json.loads(line))
        except (ValueError, RecursionError) as error:
            record = _BadRow("", f"not valid JSON ({error})")
        yield f"{path}, row {number} (line {line_number})", record


def _require_object(record: object) -> dict | _BadRow:
    if isinstance(record, dict):
        return record
    return _BadRow("", f"expected an object with named fields, found {_short(record)}")


def _read_parquet(path: Path) -> Iterator[tuple[str, dict]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for record in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", record
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a readable parquet file ({error}).") from None


def _read_hub(source: str) -> Iterator[tuple[str, dict]]:
    try:
        import datasets

        dataset = datasets.load_dataset(source, split="train")
    except Exception as error:  # whatever fails on the way, the user needs the same advice
        reason = strip_control(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
        raise ValueError(
            f"{source}: no such file here, and it could not be read from the hub ({reason}). "
            + _where_to_get_data()
        ) from None
    for number, record in enumerate(dataset, start=1):
        yield f"{source}, row {number}", record


def _check_columns(source: str, columns: list[str], require_labels: bool) -> bool:
    """Raise ValueError for missing columns; return whether the winners are there."""
    winners = [name for name in WINNER_COLUMNS if name in columns]
    wanted = TEXT_COLUMNS + (WINNER_COLUMNS if require_labels or winners else ())
    missing = [name for name in wanted if name not in columns]
    if not missing:
        return bool(winners)
    others = [name for name in columns if name not in wanted]  # not response_a for response_b
    near = [difflib.get_close_matches(name, others, n=1) for name in missing]
    hints = [
        f"{name} (nearest is {_short(match[0])})" if match else name
        for name, match in zip(missing, near, strict=True)
    ]
    message = f"{source}: missing columns: {', '.join(hints)}. Found: "
    message += ", ".join(_short(name) for name in columns[:20]) + "."
    if missing == list(WINNER_COLUMNS):
        message += " A file without winners (as Kaggle's test.csv) is for predict only."
    raise ValueError(message)


def _build_row(
    record: dict, number: int, has_labels: bool, require_labels: bool
) -> tuple[PairRow, set[str]]:
    """Return the row and the names of its repairs; raise _BadRow if it cannot be used."""
    repaired: set[str] = set()
    if "id" in record:
        row_id = record["id"]
        if isinstance(row_id, float) and row_id.is_integer():  # pandas turns ids into floats
            row_id = int(row_id)
        row_id = "" if row_id is None else _repair_surrogates(str(row_id), repaired).strip()
        if not row_id:
            raise _BadRow("id", "expected an id, found a blank")
    else:
        row_id = str(number)
        repaired.add("row_number_ids")
    prompt, response_a, response_b = turns = [
        _read_turns(record, column, repaired) for column in TEXT_COLUMNS
    ]
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
        [_repair_surrogates(turn or "", repaired) for turn in side] + [""] * (num_turns - len(side))
        for side in turns
    )
    if not all(any(turn.strip() for turn in side) for side in (response_a, response_b)):
        repaired.add("empty_response")
    label = _read_label(record, require_labels) if has_labels else None
    row = PairRow(row_id, prompt, response_a, response_b, label, prompt_hash(prompt), "")
    return row, repaired


def _read_turns(record: dict, column: str, repaired: set[str]) -> list[str | None]:
    if column not in record:
        raise _BadRow(column, "the field is missing")
    cell = record[column]
    if cell is None or cell != cell:  # null, or the NaN that pandas writes for it
        return []
    if isinstance(cell, str):
        if not cell.lstrip().startswith("["):
            repaired.add("plain_text")
            return [cell]
        try:
            cell = json.loads(cell, strict=False)  # raw line ends inside the strings are harmless
        except (ValueError, RecursionError) as error:
            raise _BadRow(
                column,
                f"starts as a JSON list but does not parse ({error}): {_short(cell)}; "
                'plain text that starts with "[" must be written as a JSON list of one text',
            ) from None
    if not isinstance(cell, list):
        raise _BadRow(column, f"expected text or a list of texts, found {_short(cell)}")
    turns: list[str | None] = []
    for turn in cell:
        if isinstance(turn, bool | int | float):  # PandaLM has [true] for the answer "True"
            repaired.add("not_text")
            turn = json.dumps(turn)
        if not isinstance(turn, str | None):
            raise _BadRow(column, f"expected a list of texts, found {_short(turn)} in it")
        turns.append(turn)
    return turns


def _read_label(record: dict, require_labels: bool) -> int | None:
    values = [record.get(column) for column in WINNER_COLUMNS]
    if not require_labels and all(value is None or value == "" for value in values):
        return None
    flags = []
    for column, value in zip(WINNER_COLUMNS, values, strict=True):
        if isinstance(value, str):
            words = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
            value = words.get(value.strip().lower(), value)
        if value not in (0, 1):  # True and 1.0 are equal to 1
            raise _BadRow(column, f"expected 0 or 1, found {_short(value)}")
        flags.append(int(value))
    if sum(flags) != 1:
        found = f"{sum(flags)} winners" if sum(flags) else "no winner"
        raise _BadRow("/".join(WINNER_COLUMNS), f"expected exactly one 1, found {found}: {flags}")
    return flags.index(1)


def _repair_surrogates(text: str, repaired: set[str]) -> str:
    if text.isascii() or not _SURROGATE.search(text):
        return text
    joined = _SURROGATE_PAIR.sub(
        lambda pair: pair[0].encode("utf-16-le", "surrogatepass").decode("utf-16-le"), text
    )
    if joined != text:
        repaired.add("surrogates_joined")
    whole = _SURROGATE.sub("\ufffd", joined)
    if whole != joined:
        repaired.add("surrogates_replaced")
    return whole


def _short(value: object) -> str:
    """repr for messages: one line, no control characters, at most 60 characters of content."""
    if isinstance(value, str):
        return ascii(value[:60]) + ("…" if len(value) > 60 else "")
    text = ascii(value)
    return text[:60] + ("…" if len(text) > 60 else "")


def stable_hash(*parts: str) -> str:
    """16 hex digits, the same on every machine and in every process."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass") + b"\xff")  # no UTF-8 text holds 0xff
    return digest.hexdigest()


def normalised_text(turns: Sequence[str]) -> str:
    """Text by which prompts are compared: case and white space folded, blank last turns dropped."""
    return "\n".join(" ".join(turn.split()).casefold() for turn in turns).rstrip("\n")


def prompt_hash(turns: Sequence[str]) -> str:
    """Stable hash of a prompt, blind to case, white space and padding."""
    return stable_hash("prompt", normalised_text(turns))


def split_of(key: str, val_frac: float, test_frac: float) -> str:
    """Return train, val or test: a pure function of the key and the two shares.

    Test takes the lowest hashes, validation the next: another val_frac moves no test row.
    """
    if not (val_frac >= 0 and test_frac >= 0 and val_frac + test_frac < 1):
        raise ValueError(
            f"val_frac {val_frac} and test_frac {test_frac}: expected shares with a sum below 1."
        )
    position = int(stable_hash("split", key), 16) / 2**64  # uniform in [0, 1)
    if position < test_frac:
        return "test"
    return "val" if position < test_frac + val_frac else "train"


def assign_splits(rows: Iterable[PairRow], by: str, val_frac: float, test_frac: float) -> None:
    """Set row.split from a hash of the prompt (by="prompt") or of id and content (by="row").

    By row, a prompt that occurs twice can be in train and in test: only for arms that repeat
    earlier experiments. Rows without a label get "".
    """
    if by not in ("prompt", "row"):
        raise ValueError(f"split {by!r}: expected prompt or row.")
    for row in rows:
        key = row.group if by == "prompt" else _row_hash(row)
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
            f"{len(leaks)} prompts occur in more than one split, e.g. {_short(leaks[0])} in "
            f"{', '.join(sorted(splits_of_prompt[leaks[0]]))}."
        )
    return len(leaks)


def subset(
    rows: Sequence[PairRow], limit: int | None = None, train_frac: float = 1.0
) -> list[PairRow]:
    """Keep fewer rows, in their order; a smaller subset is part of every larger one.

    limit: this many rows over all splits (None = all), those with the lowest hashes.
    train_frac: then this share of the training rows, again the lowest; 1.0 = all.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit}: expected at least 1 row (None = all rows).")
    if not 0 < train_frac <= 1:
        raise ValueError(f"train_frac {train_frac}: expected more than 0 and at most 1.")
    rows = list(rows)
    if (limit is None or limit >= len(rows)) and train_frac == 1.0:
        return rows
    # a salt of its own: with the hash of the splits, the lowest rows would all be test rows
    order = {row.id: (stable_hash("subset", _row_hash(row)), row.id) for row in rows}
    if limit is not None:
        kept = {row.id for row in sorted(rows, key=lambda row: order[row.id])[:limit]}
        rows = [row for row in rows if row.id in kept]
    train = sorted((row for row in rows if row.split == "train"), key=lambda row: order[row.id])
    dropped = {row.id for row in train[max(1, round(train_frac * len(train))) :]}
    return [row for row in rows if row.id not in dropped]


def shuffle_labels(rows: Sequence[PairRow], seed: int) -> list[PairRow]:
    """The control: new rows with labels permuted within each split, so that class shares stay.

    Whatever a model scores on these above the class shares is a leak in the procedure.
    """
    shuffled = [replace(row) for row in rows]
    generator = random.Random(seed)
    for split in ("train", "val", "test"):
        members = [row for row in shuffled if row.split == split]
        labels = [row.label for row in members]
        generator.shuffle(labels)
        for row, label in zip(members, labels, strict=True):
            row.label = label
    return shuffled


def _row_hash(row: PairRow) -> str:
    return stable_hash("row", row.id, *row.prompt, *row.response_a, *row.response_b)


def split_fingerprint(rows: Iterable[PairRow]) -> str:
    """16 hex digits of SHA-256 over which id is in which split, in whatever order rows come."""
    pairs = sorted((row.id, row.split) for row in rows)
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]


def data_fingerprint(rows: Iterable[PairRow]) -> str:
    """16 hex digits of SHA-256 over ids, texts and labels, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        fields = [row.id, row.prompt, row.response_a, row.response_b, row.label]
        digest.update(json.dumps(fields).encode() + b"\n")
    return digest.hexdigest()[:16]


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
    _write_csv(path, ("id", *WINNER_COLUMNS), lines)


def _write_csv(path: str | os.PathLike, header: Sequence[str], lines: Iterable[Sequence]) -> None:
    """Written aside, then renamed: a reader never sees half a file."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def strip_control(text: str) -> str:
    """Remove what could steer a terminal (escapes, carriage returns, bidi marks); keep \\n, \\t."""
    return _CONTROL.sub("", text)
