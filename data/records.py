"""Records in files and on the hub: every kind of file, read and repaired in one place.

    repairs = Counter()
    for place, record in read_records("rows.csv", repairs):     # place: "rows.csv, row 3 (line 4)"
        if isinstance(record, BadRow): ...                      # or a dict of named fields

    rows = load_hub("tatsu-lab/alpaca", advice="Give a file of Alpaca's rows as --data")

Repairs are counted by name: nul_bytes (removed), invalid_utf8 (replaced by U+FFFD), in lines.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

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


def read_records(source: str, repairs: Counter) -> Records:
    """Rows of a .csv, .jsonl, .json or .parquet file, or of a folder of parquet files.

    FileNotFoundError where nothing is there, ValueError for other files; a row that cannot be read
    is yielded as a BadRow.
    """
    path = Path(source)
    suffix = path.suffix.lower()
    if path.is_dir():
        files = sorted(path.rglob("*.parquet"))
        if not files:
            raise ValueError(f"{source}: a folder without .parquet files; name one file in it.")
        for file in files:
            yield from _read_parquet(file)
    elif not path.is_file():
        raise FileNotFoundError(f"{source}: no such file.")
    elif suffix == ".csv":
        yield from _read_csv(path, repairs)
    elif suffix in (".jsonl", ".json"):
        yield from _read_json(path, repairs)
    elif suffix == ".parquet":
        yield from _read_parquet(path)
    else:
        raise ValueError(
            f"{source}: expected .csv, .jsonl, .json or .parquet; unpack archives first."
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


def _read_csv(path: Path, repairs: Counter) -> Iterator[tuple[str, dict | BadRow]]:
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
            yield place, BadRow("", f"not valid CSV ({error}); is the file cut off?")
            continue
        if not cells:  # an empty line
            number -= header is not None
        elif header is None:
            header = [cell.strip() for cell in cells]
            twice = [name for name, count in Counter(header).items() if count > 1]
            if twice:
                raise ValueError(f"{path}: the header names column {short(twice[0])} twice.")
        elif len(cells) != len(header):
            problem = f"expected {len(header)} cells as in the header, found {len(cells)}"
            yield place, BadRow("" if len(cells) > len(header) else header[len(cells)], problem)
        else:
            yield place, dict(zip(header, cells, strict=True))


def _read_json(path: Path, repairs: Counter) -> Iterator[tuple[str, dict | BadRow]]:
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
                yield f"{path}, row {number}", require_object(record)
            return
        lines = text.split("\n")
    number = 0
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        number += 1
        try:
            record = require_object(json.loads(line))
        except (ValueError, RecursionError) as error:
            record = BadRow("", f"not valid JSON ({error})")
        yield f"{path}, row {number} (line {line_number})", record


def require_object(record: object) -> dict | BadRow:
    if isinstance(record, dict):
        return record
    return BadRow("", f"expected an object with named fields, found {short(record)}")


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
