"""Records in files and on the hub: every kind of file, read and repaired in one place.

    repairs = Counter()
    for place, record in read_records("rows.csv", repairs):     # place: "rows.csv, row 3 (line 4)"
        if isinstance(record, BadRow): ...                      # or a dict of named fields

    rows = load_hub("tatsu-lab/alpaca", advice="Give a file of Alpaca's rows as --data")

Text is UTF-8, or what its byte order mark says; lines end at newlines alone (U+2028 and form feeds
are text); .gz, .zst and .bz2 are unpacked on the way. Files whose name begins with a dot are passed
over. What had to be repaired is counted by name, see REPAIRS, for the record and the console.
"""

import csv
import io
import itertools
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from files import walk

COMPRESSED = (".gz", ".zst", ".bz2")
KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")  # of files with named fields
# Names of the columns that hold the text and the class of a row, the first that is there counts.
TEXT_FIELDS = ("text", "review", "sentence", "content", "document", "body", "message", "tweet")
LABEL_FIELDS = ("label", "sentiment", "class", "category", "labels", "target")
PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test",),
}
# Who speaks in a conversation, by the names that data sets have for it.
ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bing": "assistant",
    "system": "system",
}
# What is counted, in words for the console.
REPAIRS = {
    "nul_bytes": "lines with NUL bytes, which were removed",
    "invalid_utf8": "lines with bytes that are not UTF-8, replaced by U+FFFD",
    "surrogates_joined": "rows with two halves of one character, which were joined",
    "surrogates_replaced": "rows with half a character, replaced by U+FFFD",
    "utf16_files": "files in UTF-16 or UTF-32",
    "semicolon_files": "CSV files with semicolons between their cells",
    "tab_files": "CSV files with tabs between their cells",
    "quoted_cells": "cells between tabs in quotes, read as in CSV",
    "hidden_files": "hidden files (._name, .folder) passed over",
    "other_parts": "files passed over that are no training part",
}
LONGEST_LINE = 64 << 20  # characters; a longer one is cut there
# How a file begins that is no text, whatever it is called.
_BINARY = {
    b"PK\x03\x04": "a zip archive: unpack it first (of Excel: save it as CSV)",
    b"PAR1": "a parquet file: name it .parquet",
    b"\x1f\x8b": "compressed by gzip: name it .gz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: name it .zst",
    b"BZh": "compressed by bzip2: name it .bz2",
    b"%PDF": "a PDF, no text",
    b"version https://git-lfs": "only the name of one that git lfs keeps elsewhere: git lfs pull",
    b"\xd0\xcf\x11\xe0": "an old Office file: save it as CSV or text",
    b"ARROW1\x00\x00": "an Arrow file: write it as parquet",
    b"SQLite format 3": "a database: write its rows as CSV or parquet",
    b"\x80\x04\x95": "a pickle, which could run code: write its rows as CSV or parquet",
    b"\x80\x05\x95": "a pickle, which could run code: write its rows as CSV or parquet",
}
_MARKS = {  # the longer ones first: UTF-32's begins as UTF-16's does
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# C0 (all but \t and \n), DEL and C1; marks that reorder text; surrogates, which print() refuses
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


class BadRow(Exception):
    """One row that cannot be used: the column, and what is wrong with it."""

    def __init__(self, column: str, problem: str):
        super().__init__(f"field {column}: {problem}" if column else problem)
        self.column, self.problem = column, problem


Records = Iterator[tuple[str, dict | BadRow]]  # (place for messages, fields or what is wrong)


def said(repairs: Counter | dict[str, int]) -> list[str]:
    """A line for each repair, for the console."""
    return [f"{count:,} {REPAIRS.get(name, name)}" for name, count in sorted(repairs.items())]


# ------------------------------------------------------------------------------- files


def kind_of(path: Path, kinds: Sequence[str] = KINDS) -> str | None:
    """The suffix of `kinds` that a file has, behind which it may be compressed; None: another."""
    name = path.name.lower()
    bare = name
    for suffix in COMPRESSED:
        bare = bare.removesuffix(suffix)
    kind = Path(bare).suffix
    if kind == ".parquet" and bare != name:  # parquet compresses inside
        return None
    return kind if kind in kinds else None


def is_hidden(path: Path, root: Path) -> bool:
    """Whether a file below `root` is of its system or editor: ._x, .ipynb_checkpoints/x."""
    parts = path.relative_to(root).parts
    return any(part.startswith((".", "~$")) or part == "__MACOSX" for part in parts)


def files_below(folder: Path, kinds: Sequence[str], repairs: Counter) -> list[Path]:
    """Files of these kinds in a folder and below it, by name, without hidden ones. ValueError for
    what datasets.save_to_disk writes, whose JSON files hold no rows."""
    every = [path for path in walk(folder) if path.is_file()]
    files = sorted(path for path in every if kind_of(path, kinds))
    arrow = next((path for path in every if path.suffix == ".arrow"), None)
    if arrow and all(kind_of(path, kinds) == ".json" for path in files):
        raise ValueError(
            f"{folder}: its rows are in {arrow.name}, as datasets.save_to_disk writes them: write "
            "them as parquet (load_from_disk(FOLDER).to_parquet(FILE))"
        )
    hidden = [path for path in files if is_hidden(path, folder)]
    if hidden:
        repairs["hidden_files"] += len(hidden)
    return [path for path in files if path not in hidden]


def files_of_parts(folder: Path, kinds: Sequence[str], repairs: Counter) -> dict[str, list[Path]]:
    """Files of train, val and test by their names: train.csv, dev.tsv, test-00000-of-00002.parquet,
    in the folder or in its data/, as on the hub, or in folders of these names, train/0000.parquet.
    ValueError where a part is there in two kinds."""
    files = files_below(folder, kinds, repairs)
    parts: dict[str, list[tuple[str, Path]]] = {}
    for path in files:
        if found := part_of(path, folder):
            parts.setdefault(found[0], []).append((found[1], path))
    for own in parts.values():
        if len({(name, kind_of(path, kinds)) for name, path in own}) > 1:
            shown = [path.relative_to(folder).as_posix() for _, path in own]
            raise ValueError(f"{folder}: both {shown[0]} and {shown[-1]}: name one file")
    return {part: [path for _, path in parts[part]] for part in PARTS if part in parts}


def part_of(path: Path, folder: Path) -> tuple[str, str] | None:
    """Of a file below a folder, its part and what says so: its name, or the folder it lies in."""
    names = path.relative_to(folder).parts
    names = names[1:] if names[0] == "data" and len(names) > 1 else names
    for part, stems in PARTS.items():
        if len(names) > 1 and names[0].casefold() in stems:
            return part, names[0]
        one_of = re.compile(rf"({'|'.join(stems)})([-_.]\d.*)?\.", re.IGNORECASE)
        if len(names) == 1 and (found := one_of.match(names[0])):
            return part, found[1]
    return None


def require_one_part(data: str) -> None:
    """ValueError for a folder with several parts, where all rows of one are meant."""
    folder = Path(data)
    parts = files_of_parts(folder, (".txt", *KINDS), Counter()) if folder.is_dir() else {}
    if len(parts) > 1:
        raise ValueError(
            f"{data}: a folder with the parts {', '.join(parts)}: name the file of one"
        )


def _open_bytes(path: Path) -> BinaryIO:
    how = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}.get(path.suffix.lower())  # also .GZ
    if how is None:
        return open(path, "rb")
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression=how))


def open_text(path: Path, repairs: Counter) -> TextIO:
    """A file of text, unpacked and decoded; ValueError for what is none.

    Bytes that are not UTF-8 come as lone surrogates, which `lines` replaces and counts.
    """
    file = _open_bytes(path)
    head = file.peek(4096)[:4096]
    for start, what in _BINARY.items():
        if head.startswith(start):
            raise ValueError(f"{path}: the file is {what}.")
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    if encoding is not None:
        repairs["utf16_files"] += 1
        return io.TextIOWrapper(file, encoding=encoding, errors="replace", newline="")
    nuls = max(head[::2].count(0), head[1::2].count(0))
    if nuls > len(head) // 8 and nuls > 1:  # every second byte of Latin letters
        raise ValueError(
            f"{path}: the text seems to be UTF-16 without a byte order mark; save it as UTF-8."
        )
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def lines(path: Path, repairs: Counter) -> Iterator[str]:
    """Lines of a text file with their ends, \\n, \\r\\n or \\r; NUL and invalid bytes repaired."""
    try:
        with open_text(path, repairs) as file:
            while line := file.readline(LONGEST_LINE):
                if "\0" in line:
                    repairs["nul_bytes"] += 1
                    line = line.replace("\0", "")
                if not line.isascii() and _SURROGATE.search(line):
                    repairs["invalid_utf8"] += 1
                    line = _SURROGATE.sub("\ufffd", line)
                yield line
    except (OSError, EOFError) as error:
        if path.name.lower().endswith(COMPRESSED) and path.is_file():
            raise ValueError(f"{path}: cannot be unpacked, is it cut off? ({error})") from None
        raise


def text_lines(path: Path, repairs: Counter) -> Iterator[str]:
    """As `lines`, each ended by \\n alone, the last one perhaps not."""
    for line in lines(path, repairs):
        yield line.replace("\r\n", "\n").replace("\r", "\n")


# ----------------------------------------------------------------------------- records


def read_records(
    source: str | Path, repairs: Counter, columns: Sequence[str] | None = None
) -> Records:
    """Rows of a .csv, .tsv, .jsonl, .json or .parquet file, or of all such files below a folder.

    columns: of a parquet file, to leave others unread; those that it lacks are left out.
    FileNotFoundError where nothing is there, ValueError for other files; a row that cannot be read
    is yielded as a BadRow.
    """
    path = Path(source)
    if path.is_dir():
        files = files_below(path, KINDS, repairs)
        parts = files_of_parts(path, KINDS, Counter())
        if len(parts) > 1 and "train" in parts:  # as the hub is read
            repairs["other_parts"] += len(files) - len(parts["train"])
            files = parts["train"]
        kinds = {kind_of(file) for file in files}
        if not files:
            raise ValueError(f"{source}: a folder without {', '.join(KINDS)} files.")
        if len(kinds) > 1:
            raise ValueError(
                f"{source}: a folder of {' and '.join(sorted(kinds))} files; name one file in it."
            )
    elif not path.is_file():
        raise FileNotFoundError(f"{source}: no such file.")
    else:
        files = [path]
    for file in files:
        yield from _read_file(file, repairs, columns)


def first_row(path: Path) -> tuple[str, dict] | None:
    """Place and fields of the first row of a file of rows: enough to know wrong columns by, before
    what is slow to import. None for an empty file and for other kinds; ValueError for a bad row."""
    if not path.is_file() or kind_of(path) is None:
        return None
    place, record = next(iter(read_records(path, Counter())), (str(path), {}))
    if isinstance(record, BadRow):
        raise ValueError(f"{place}: {record}")
    return (place, record) if record else None


def _read_file(path: Path, repairs: Counter, columns: Sequence[str] | None) -> Records:
    kind = kind_of(path)
    if kind == ".csv":
        return _read_csv(path, repairs)
    if kind == ".tsv":
        return _read_tsv(path, repairs)
    if kind in (".jsonl", ".ndjson", ".json"):
        return _read_json(path, repairs)
    if kind == ".parquet":
        return _read_parquet(path, columns)
    raise ValueError(
        f"{path}: expected {', '.join(KINDS)} (the text ones plain or {', '.join(COMPRESSED)}); "
        "unpack archives first."
    )


_CELL = r"\"?[\w. -]*\"?"  # a column's name; that of pandas' index is empty


def _read_csv(path: Path, repairs: Counter, delimiter: str | None = None) -> Records:
    """delimiter: None finds it out by the header."""
    csv.field_size_limit(2**31 - 1)  # cells of a million characters occur; the default is 131,072
    text = iter(lines(path, repairs))
    first = next(text, "")
    if delimiter is None:
        # ; as spreadsheets write it where a comma stands in numbers
        others = {";": "semicolon_files", "\t": "tab_files"}
        is_other = (d for d in others if re.fullmatch(rf"\ufeff?{_CELL}({d}{_CELL})+\s*", first))
        delimiter = next(is_other, ",")
        if delimiter in others:
            repairs[others[delimiter]] += 1
    # strict: without it a file that was cut off inside quotes ends in a row that looks whole
    reader = csv.reader(itertools.chain([first], text), delimiter=delimiter, strict=True)
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
            yield place, BadRow("", f"not valid CSV ({error}); is the file cut off?")
            continue
        # an empty line, or one of separators alone, which spreadsheets leave behind the rows
        if not cells or (len(cells) > 1 and not any(cell.strip() for cell in cells)):
            number -= header is not None
        elif header is None:
            header = _names(path, cells)
        elif len(cells) != len(header):
            problem = f"expected {len(header)} cells as in the header, found {len(cells)}"
            yield place, BadRow("" if len(cells) > len(header) else header[len(cells)], problem)
        else:
            yield place, dict(zip(header, cells, strict=True))


def _names(path: Path, cells: Sequence[str]) -> list[str]:
    """The names of columns; ValueError where one stands twice: the first column would be lost."""
    names = [cell.strip() for cell in cells]
    if re.match("<(!doctype|html|head|body)", names[0], re.IGNORECASE):
        raise ValueError(f"{path}: a web page, as of an error or a login: fetch the file itself.")
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise ValueError(f"{path}: the header names column {short(twice[0])} twice.")
    return names


def name_in(record: Iterable[str], names: Sequence[str]) -> str | None:
    """The field of a record that is the first of these names to be there, in whatever case."""
    own = list(record)
    plain = {str(name).strip().casefold(): name for name in reversed(own)}
    there = (name if name in own else plain.get(name.casefold()) for name in names)
    return next((name for name in there if name is not None), None)


def field_of(record: dict, names: Sequence[str], place: str) -> Any:
    """The value of the first of these fields that a record has; ValueError names those it has."""
    name = name_in(record, names)
    if name is None:
        own = ", ".join(strip_control(str(name))[:30] for name in list(record)[:10])
        raise ValueError(f"{place}: no field {' or '.join(names)}; it has {own}")
    return record[name]


def text_of(record: dict, names: Sequence[str], place: str) -> str | None:
    """The text in the first of these fields that a record has, None for null. ValueError for what
    is neither: a number or a list would be one as Python prints it."""
    text = field_of(record, names, place)
    if text is not None and not isinstance(text, str):
        name = strip_control(str(name_in(record, names)))
        raise ValueError(f"{place}, field {name}: expected text, found {type(text).__name__}")
    return text


def label_name(value: str | int | float | None) -> str:
    """A label as text: 1 for 1.0 and "1.0", which spreadsheets make of it; "" for NaN and null.
    What cannot be seen makes no class: accents in two ways, spaces, marks without a width."""
    text = "" if value is None else unicodedata.normalize("NFC", str(value))
    text = " ".join(re.sub("[\u200b\u2060\ufeff]", "", text).split())
    if text.casefold() == "nan":
        return ""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text)


def id_of(value: Any, repaired: set[str]) -> str:
    """An id as text: 1 for 1.0, which pandas makes of whole numbers beside a blank; "" for null."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else repair_surrogates(str(value), repaired).strip()


def tsv_cells(path: Path, repairs: Counter) -> Iterator[tuple[str, list[str]]]:
    """(place, cells between tabs) of each line that is not blank; quotes are text, many are never
    closed."""
    for number, line in enumerate(lines(path, repairs), start=1):
        text = line.rstrip("\r\n")
        if text.strip():
            yield f"{path}, line {number}", text.split("\t")


# in quotes, with one of them inside, twice: nobody writes so but where quotes are part of the form
_QUOTED = re.compile(r'"(?:[^"]|"")*""(?:[^"]|"")*"')


def _read_tsv(path: Path, repairs: Counter) -> Records:
    _, first = next(tsv_cells(path, Counter()), ("", []))
    if first and all(re.fullmatch(r'"[^"]+"', cell) for cell in first):  # as R writes it
        yield from _read_csv(path, repairs, "\t")
        return
    header: list[str] = []
    for place, cells in tsv_cells(path, repairs):
        if not header:
            header = _names(path, cells)
        elif len(cells) != len(header):
            problem = f"expected {len(header)} cells between tabs, found {len(cells)}"
            if sum(cell.count('"') for cell in cells) % 2:
                problem += " (quotes are text here: a cell with a line end needs a CSV file)"
            yield place, BadRow("", problem)
        else:
            for column, cell in enumerate(cells):
                if _QUOTED.fullmatch(cell):  # as pandas writes it
                    repairs["quoted_cells"] += 1
                    cells[column] = cell[1:-1].replace('""', '"')
            yield place, dict(zip(header, cells, strict=True))


def _read_json(path: Path, repairs: Counter) -> Records:
    """JSON lines; a .json file may also be one list of objects, or one object that holds it."""
    rows: Iterator[str] = lines(path, repairs)
    if kind_of(path) == ".json":
        text = "".join(rows)
        if (whole := _one_value(path, text)) is not None:
            for number, record in enumerate(whole, start=1):
                yield f"{path}, row {number}", _repaired(require_object(record), repairs)
            return
        rows = iter(text.split("\n"))
    for number, line in enumerate(rows, start=1):
        if line.strip():
            if number == 1 and (line.lstrip().startswith("[") or line.strip() == "{"):
                raise ValueError(
                    f"{path}: no JSON lines, but one list, or an object over several lines. A list "
                    "is read from a file whose name ends with .json"
                )
            yield f"{path}, line {number}", read_json_object(line, repairs)


# what a file's one object may call its list of rows
ROWS = ("data", "rows", "examples", *itertools.chain.from_iterable(PARTS.values()))


def _one_value(path: Path, text: str) -> list | None:
    """The rows of a file that is one list, or one object around a list; None for JSON lines."""
    if text.lstrip().startswith("["):
        try:
            return _loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not valid JSON ({error}).") from None
    try:
        whole = _loads(text)
    except (ValueError, RecursionError):  # lines
        return None
    if not isinstance(whole, dict):
        return None
    lists = [name for name, value in whole.items() if name.casefold() in ROWS and _is_rows(value)]
    if len(lists) > 1:
        raise ValueError(
            f"{path}: one object with the lists {', '.join(map(short, lists))}: write the rows of "
            "each to a file of its own"
        )
    return whole[lists[0]] if lists else [whole]


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def read_json_object(line: str, repairs: Counter) -> dict | BadRow:
    """The object that a line of JSON holds."""
    try:
        record = require_object(_loads(line))
    except (ValueError, RecursionError) as error:
        return BadRow("", f"not valid JSON ({error})")
    return _repaired(record, repairs) if "\\u" in line else record


def _loads(text: str) -> Any:
    """NaN, which pandas' rows have for a blank, is null. ValueError where a name stands twice."""
    constants = {"NaN": None, "Infinity": math.inf, "-Infinity": -math.inf}
    return json.loads(text, object_pairs_hook=_each_name_once, parse_constant=constants.get)


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """ValueError where a name stands twice, as where two rows have run into one: the first value
    would be lost."""
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise ValueError(f"the field {short(twice)} is there twice")
    return record


def _repaired(record: dict | BadRow, repairs: Counter) -> dict | BadRow:
    """The record with half characters, which JSON can spell, joined or replaced in its texts."""
    if isinstance(record, BadRow):
        return record
    names: set[str] = set()
    whole = _repair_below(record, names)
    repairs.update(names)
    return whole


def _repair_below(value: Any, names: set[str]) -> Any:
    if isinstance(value, str):
        return repair_surrogates(value, names)
    if isinstance(value, dict):
        return {
            _repair_below(key, names): _repair_below(inner, names) for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_repair_below(inner, names) for inner in value]
    return value


def require_object(record: object) -> dict | BadRow:
    if isinstance(record, dict):
        return record
    return BadRow("", f"expected an object with named fields, found {short(record)}")


def _read_parquet(path: Path, columns: Sequence[str] | None) -> Records:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(path)
        schema = file.schema_arrow
        _names(path, schema.names)
        plain = {name.casefold() for name in columns or ()}
        wanted = [name for name in schema.names if name.strip().casefold() in plain]
        floats = [column.name for column in schema if pyarrow.types.is_floating(column.type)]
        for batch in file.iter_batches(batch_size=256, columns=wanted or None):
            for record in batch.to_pylist():
                number += 1
                for name in floats:  # pandas' NaN is null
                    if name in record and record[name] != record[name]:
                        record[name] = None
                yield f"{path}, row {number}", record
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a readable parquet file ({reason}).") from None


def is_file_name(source: str) -> bool:
    """Whether what is not there must be a file, and is no set on the hub."""
    kinds = (".txt", ".zip", ".xz", ".xlsx", ".xls", *KINDS, *COMPRESSED)
    return source.startswith((".", "/", "~")) or source.lower().endswith(kinds)


def is_hub_id(source: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", source)) and not is_file_name(source)


def load_hub(name: str, /, *config: str | None, advice: str, **options: Any) -> Any:
    """datasets.load_dataset; OSError with what went wrong and the advice, in one line."""
    try:
        import datasets

        return datasets.load_dataset(name, *config, **options)
    except Exception as error:  # whatever fails on the way, the user needs the same advice
        reason = strip_control(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
        part = options.get("name") or next(filter(None, config), None)
        which = f"{name} ({part})" if part else name
        raise OSError(f"{which} could not be read from the hub ({reason}). {advice}") from None


def repair_surrogates(text: str, repaired: set[str]) -> str:
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


def short(value: object) -> str:
    """repr for messages: one line, no control characters, at most 60 characters of content."""
    if isinstance(value, str):
        return ascii(value[:60]) + ("…" if len(value) > 60 else "")
    text = ascii(value)
    return text[:60] + ("…" if len(text) > 60 else "")


def strip_control(text: str) -> str:
    """Remove what could steer a terminal (escapes, carriage returns, bidi marks); keep \\n, \\t."""
    return _CONTROL.sub("", text)
