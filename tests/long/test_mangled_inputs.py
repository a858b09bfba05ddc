"""Small valid files of every format, mangled by seeded mutations and given to what reads them.

MANGLED=2000 python -m pytest -s tests/long/test_mangled_inputs.py

A reader either refuses in a line that names the file, or returns rows: each row that is still whole
in the file is among them, or is counted in what the reader says. Nothing else, and not longer than
20 seconds of computing.
"""

import bz2
import contextlib
import csv
import gzip
import io
import json
import os
import pickle
import random
import re
import resource
import signal
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest
import yaml
from run_folders import classifier, write_run

import report
import run_2_appendprompt
import sweep
from commands import judge
from data import arena, corpora, documents, downloads, glue, instructions, texts, titles
from methods.batch_selection import IrreducibleLosses
from methods.clock import RTX_3090, Costs
from reports import compare, page, table  # noqa: F401, imported once for all cases
from settings import parse_settings

MANGLED = int(os.environ.get("MANGLED", "2000"))
SECONDS = 20  # of computing, whatever else the machine does
MOST_SECONDS = 600  # of waiting for something
ROWS = 24
WORDS = "a film plot good bad dull “quoted” naïve 日本 🙂 isn't 3,000 end".split()


def sentence(number: int, draw: random.Random) -> str:
    """With a mark by which the row is known again."""
    words = draw.choices(WORDS, k=draw.randint(3, 9))
    words.insert(draw.randint(0, len(words)), mark(number))
    return " ".join(words)


def mark(number: int) -> str:
    return f"mark{number:03d}x"


# ------------------------------------------------------------------------- valid files

DRAW = random.Random(0)
PAIRS = [
    {
        "id": str(n),
        "model_a": "m",
        "model_b": "n",
        "prompt": json.dumps([sentence(n, DRAW)]),
        "response_a": json.dumps([sentence(900, DRAW)]),
        "response_b": json.dumps(["b" + " c" * (n % 5)]),
        **{f"winner_{k}": int(n % 3 == i) for i, k in enumerate(("model_a", "model_b", "tie"))},
    }
    for n in range(ROWS)
]
WORDED = [
    {"prompt": sentence(n, DRAW), "response_a": "a", "response_b": "b", "winner": winner}
    for n, winner in enumerate(("model_a", "model_b", "tie (bothbad)") * (ROWS // 3))
]
CHOSEN = [
    {"prompt": sentence(n, DRAW), "chosen": f"good {n}", "rejected": f"bad {n}"}
    for n in range(ROWS)
]
CONVERSATIONS = [
    {
        f"conversation_{side}": [
            {"role": "user", "content": sentence(n, random.Random(n))},
            {"role": "assistant", "content": f"{side} {n}"},
        ]
        for side in "ab"
    }
    | {"label": n % 3}
    for n in range(ROWS)
]
LABELLED = [{"text": sentence(n, DRAW), "label": ("no", "yes")[n % 2]} for n in range(ROWS)]
TEXTS = [{"id": n, "text": sentence(n, DRAW)} for n in range(ROWS)]
ALPACA = [
    {"instruction": sentence(n, DRAW), "input": "", "output": f"answer {n}"} for n in range(ROWS)
]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": sentence(n, DRAW)},
            {"role": "assistant", "content": f"answer {n}"},
        ]
    }
    for n in range(ROWS)
]
BOOLQ = [
    {"question": sentence(n, DRAW), "passage": f"p{n}", "idx": n, "label": bool(n % 2)}
    for n in range(ROWS)
]
RTE = [
    {
        "index": n,
        "sentence1": sentence(n, DRAW),
        "sentence2": "s",
        "label": ("entailment", "not_entailment")[n % 2],
    }
    for n in range(ROWS)
]
ANSWERS = [row | {"model_response": f"reply {n}"} for n, row in enumerate(ALPACA)]


def delimited(rows: list[dict], delimiter: str = ",", quoted: bool = True) -> bytes:
    file = io.StringIO()
    how = {} if quoted else {"quoting": csv.QUOTE_NONE, "escapechar": "\\"}
    writer = csv.DictWriter(file, rows[0], delimiter=delimiter, lineterminator="\n", **how)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def json_lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def json_list(rows: list[dict]) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def parquet(rows: list[dict]) -> bytes:
    file = io.BytesIO()
    pandas.DataFrame(rows).to_parquet(file)
    return file.getvalue()


def zst(data: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(data, asbytes=True)


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, ids=np.arange(9), losses=np.ones(9), split_fingerprint="s")
    return file.getvalue()


# ------------------------------------------------------------------------------ readers

Output = tuple[Any, Any]  # what was read, and what was said of it


def read_pairs(path: Path) -> Output:
    return arena.load_arena(path, skip_bad_rows=zlib.crc32(path.read_bytes()) % 2 == 0)


def read_labelled(path: Path) -> Output:
    rows, classes, notes = texts.load_rows(str(path), None, 0.2, 0.2)
    return (rows, classes), notes


def read_corpus(path: Path) -> Output:
    source = corpora.open_source(str(path))
    return list(source.documents()), dict(source.repairs)


def read_documents(path: Path) -> Output:
    rows, _, notes = documents.load_documents(str(path), None, 0.2, 0.2)
    return rows, notes


def read_wikitext(path: Path) -> Output:
    rows, _, notes = documents.load_documents("wikitext2", str(path.parent))
    return rows, notes


def reader_of(task: str) -> Callable[[Path], Output]:
    def read(path: Path) -> Output:
        skip = zlib.crc32(path.read_bytes()) % 2 == 0
        (found,) = glue.find_tasks(task)
        rows, notes = glue.load_task(found, str(path.parent.parent), skip_bad_rows=skip)
        return rows, notes

    return read


def read_instructions(path: Path) -> Output:
    return instructions.load_rows(str(path))


def read_titles(path: Path) -> Output:
    return titles.load_titles(str(path), None, None)


def read_answers(path: Path) -> Output:
    return judge.read_answers(path, None), ""


def read_pickle(path: Path) -> Output:
    with open(path, "rb") as file:
        return downloads.read_losses(file, str(path)), ""


def read_table(path: Path) -> Output:
    return IrreducibleLosses.load(path.parent.parent, "s"), ""


def read_costs(path: Path) -> Output:
    return Costs.load(path), ""


def read_settings(path: Path) -> Output:
    return parse_settings(run_2_appendprompt.Config, ["--config", str(path)], "run_2.py"), ""


def read_sweep(path: Path) -> Output:
    words = ["--config", str(path), "--out", str(path.parent)]
    return str(sweep.Plan(sweep.parse_arguments(words))), ""


def read_run(path: Path) -> Output:
    """What report.py makes of a run folder, one of its commands a case."""
    run = next(p for p in path.parents if (p / "train").is_dir())
    commands = (["table"], ["compare", str(run.parent / "other")], ["page"])
    words = commands[zlib.crc32(path.read_bytes()) % 3]
    command = report.build_parser().parse_args([words[0], str(run), *words[1:]])
    return report.run_command(command), ""


def costs(folder: Path) -> bytes:
    RTX_3090.save(folder / "saved.json")
    return (folder / "saved.json").read_bytes()


def runs_of(name: str) -> Callable[[Path], bytes]:
    def make(folder: Path) -> bytes:
        for seed, run in enumerate(("run", "other")):
            write_run(folder / run, classifier(60, 0.5, seed), seed=seed)
        return (folder / "run" / name).read_bytes()

    return make


# Path below a folder → its bytes (or what makes them, with the files beside it), and its reader.
FORMATS: dict[str, tuple[Any, Callable[[Path], Output]]] = {
    "pairs.csv": (delimited(PAIRS), read_pairs),
    "pairs.jsonl": (json_lines(PAIRS), read_pairs),
    "pairs.json": (json_list(PAIRS), read_pairs),
    "pairs.parquet": (parquet(PAIRS), read_pairs),
    "worded.csv": (delimited(WORDED), read_pairs),
    "chosen.jsonl": (json_lines(CHOSEN), read_pairs),
    "conversations.json": (json_list(CONVERSATIONS), read_pairs),
    "conversations.parquet": (parquet(CONVERSATIONS), read_pairs),
    "labels.csv": (delimited(LABELLED), read_labelled),
    "labels.tsv": (delimited(LABELLED, "\t", quoted=False), read_labelled),
    "labels.jsonl": (json_lines(LABELLED), read_labelled),
    "labels.parquet": (parquet(LABELLED), read_labelled),
    "texts.txt": ("\n\n".join(row["text"] for row in TEXTS).encode(), read_corpus),
    "texts.jsonl": (json_lines(TEXTS), read_corpus),
    "texts.csv": (delimited(TEXTS), read_corpus),
    "texts.jsonl.gz": (gzip.compress(json_lines(TEXTS), mtime=0), read_corpus),
    "texts.jsonl.zst": (zst(json_lines(TEXTS)), read_corpus),
    "texts.txt.bz2": (bz2.compress("\n\n".join(r["text"] for r in TEXTS).encode()), read_corpus),
    "documents.json": (json_list(TEXTS), read_documents),
    "documents.txt": ("\n\n".join(row["text"] for row in TEXTS).encode(), read_documents),
    "wiki/train.txt": ("\n".join(row["text"] for row in TEXTS).encode(), read_wikitext),
    "RTE/train.tsv": (delimited(RTE, "\t", quoted=False), reader_of("rte")),
    "BoolQ/train.jsonl": (json_lines(BOOLQ), reader_of("boolq")),
    "alpaca.json": (json_list(ALPACA), read_instructions),
    "chats.jsonl": (json_lines(CHATS), read_instructions),
    "titles.txt": ("\n".join(row["text"] for row in TEXTS).encode(), read_titles),
    "titles.csv": (delimited([{"title": row["text"]} for row in TEXTS]), read_titles),
    "answers.jsonl": (json_lines(ANSWERS), read_answers),
    "losses.pkl": (pickle.dumps({n: n / 7 for n in range(50)}, 4), read_pickle),
    "part_000000/losses.npz": (npz(), read_table),
    "costs.json": (
        lambda folder: (RTX_3090.save(folder / "c"), (folder / "c").read_bytes())[1],
        read_costs,
    ),
    "config.yaml": (yaml.safe_dump({"lr": 1e-3, "batch": 8, "model": "m"}).encode(), read_settings),
    "sweep.yaml": (
        yaml.safe_dump(
            {"script": "run_2_appendprompt.py", "seeds": [0, 1], "grid": {"lr": [1]}}
        ).encode(),
        read_sweep,
    ),
    "run/run.json": (runs_of("run.json"), read_run),
    "run/config.yaml": (runs_of("config.yaml"), read_run),
    "run/train/metrics/metrics.jsonl": (runs_of("train/metrics/metrics.jsonl"), read_run),
    "run/test/metrics/metrics.json": (runs_of("test/metrics/metrics.json"), read_run),
    "run/test/metrics/predictions.csv": (runs_of("test/metrics/predictions.csv"), read_run),
}


def prepare(name: str, folder: Path) -> bytes:
    """The valid bytes of a format, with the files beside it in place."""
    folder.mkdir(parents=True, exist_ok=True)
    content = FORMATS[name][0]
    content = content(folder) if callable(content) else content
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if name.startswith("RTE"):
        (folder / "RTE/dev.tsv").write_bytes(delimited(RTE[:4], "\t", quoted=False))
    if name.startswith("BoolQ"):
        (folder / "BoolQ/val.jsonl").write_bytes(json_lines(BOOLQ[:4]))
    if name.startswith("wiki"):
        for part in ("valid.txt", "test.txt"):
            (folder / "wiki" / part).write_text("a plain line\n")
    return content


# ---------------------------------------------------------------------------- mutations


def flip(data: bytearray, draw: random.Random) -> bytearray:
    for _ in range(draw.choice((1, 1, 2, 8))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return data


def cut(data: bytearray, draw: random.Random) -> bytearray:
    return data[: draw.randrange(len(data))]


def stretch_of(data: bytearray, draw: random.Random) -> slice:
    start = draw.randrange(len(data))
    return slice(start, start + draw.choice((1, 7, 60, 400)))


def repeat(data: bytearray, draw: random.Random) -> bytearray:
    part = stretch_of(data, draw)
    return data[: part.stop] + data[part] * draw.choice((1, 3, 50)) + data[part.stop :]


def leave_out(data: bytearray, draw: random.Random) -> bytearray:
    part = stretch_of(data, draw)
    return data[: part.start] + data[part.stop :]


PUT_IN = (
    *(b"\0", b"\xff\xfe", b'"', b"'", b"\n", b"\r", b",", b"\t", b"\\", b"{", b"#", b":", b"- "),
    *(b"\\ud83d", b"\xe2\x80\xa8", b"\x85", b"\x0c", b"\xef\xbb\xbf", b"nan", b"null", b"\x1b[2J"),
    *(b"[" * 100_000, b"a" * 300_000, b" " * 5000, b"&a [*a]", b"!!python/object:os.system"),
)
HUGE = (b"1e400", b"9" * 5000, b"-1", b"NaN", b"Infinity", b"1" + b"0" * 30, b"1e308")


def put_in(data: bytearray, draw: random.Random) -> bytearray:
    what = draw.choice(PUT_IN)
    place = draw.randrange(len(data))
    return data[:place] + what + data[place:]


def mix_encodings(data: bytearray, draw: random.Random) -> bytearray:
    text = bytes(data).decode("utf-8", "replace")
    if draw.random() < 0.4:
        return bytearray(text.encode(draw.choice(("utf-16", "utf-16-le", "utf-8-sig", "utf-32"))))
    part = stretch_of(bytearray(len(text)), draw)
    code = draw.choice(("latin-1", "utf-16-be", "cp1252", "cp437"))
    other = text[part].encode(code, "replace")
    return bytearray(text[: part.start].encode() + other + text[part.stop :].encode())


def swap_fields(data: bytearray, draw: random.Random) -> bytearray:
    separator = draw.choice((b"\n", b",", b"\t", b'"', b" "))
    parts = bytes(data).split(separator)
    one, other = draw.randrange(len(parts)), draw.randrange(len(parts))
    parts[one], parts[other] = parts[other], parts[one]
    return bytearray(separator.join(parts))


def make_huge(data: bytearray, draw: random.Random) -> bytearray:
    numbers = list(re.finditer(rb"\d+", data))
    huge = draw.choice(HUGE)
    if not numbers:
        return flip(data, draw)
    found = draw.choice(numbers)
    return data[: found.start()] + huge + data[found.end() :]


def change_line_ends(data: bytearray, draw: random.Random) -> bytearray:
    return data.replace(b"\n", draw.choice((b"\r\n", b"\r", b"\n\n", b"\x0b\n")))


MUTATIONS = (
    *(flip, cut, repeat, leave_out, put_in, mix_encodings, swap_fields, make_huge),
    change_line_ends,
)


# ----------------------------------------------------------------------------- judging


def marks_in(value: Any) -> set[str]:
    """The rows that are somewhere in what a reader returned."""
    text = value if isinstance(value, str) else repr(value)
    return set(re.findall(r"mark\d\d\dx", text))


def whole_rows(name: str, data: bytes) -> set[str]:
    """The marks that can still be read in a file, without its reader."""
    with contextlib.suppress(Exception):
        if name.endswith(".gz"):
            data = gzip.decompress(data)
        elif name.endswith(".zst"):
            data = pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd").read()
        elif name.endswith(".bz2"):
            data = bz2.decompress(data)
    if name.endswith(".parquet"):
        with contextlib.suppress(Exception):
            return marks_in(pandas.read_parquet(io.BytesIO(data)).to_csv())
        return set()
    found = marks_in(data.decode("utf-8", "replace"))
    for code in ("utf-16", "utf-32"):
        if data[:4].startswith((b"\xff\xfe", b"\xfe\xff")):
            found |= marks_in(data.decode(code, "replace"))
    return found


def rows_with(lost: set[str], name: str, data: bytes) -> int:
    """How many rows of a file hold these marks: two that a mutation joined are one bad row."""
    text = data.decode("utf-8", "replace")
    found = len(lost)
    if name.endswith(".jsonl"):
        found = sum(bool(marks_in(line) & lost) for line in text.split("\n"))
    elif name.endswith(".csv"):
        with contextlib.suppress(csv.Error):
            rows = csv.reader(io.StringIO(text.replace("\0", ""), newline=""))
            found = sum(bool(marks_in(row) & lost) for row in rows)
    return min(len(lost), found)


def counted(said: Any) -> int:
    """The sum of all numbers in what a reader says."""
    text = json.dumps(said) if not isinstance(said, str) else said
    return sum(int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", text))


REFUSALS = (ValueError, OSError, ModuleNotFoundError)


def judge_one(name: str, path: Path, data: bytes) -> tuple[str, str]:
    """(ok, refused, or what is wrong; details), in a process that may hang or crash."""
    try:
        rows, said = FORMATS[name][1](path)
    except (*REFUSALS, SystemExit) as refusal:
        text = str(refusal)
        plain = type(refusal) in (ValueError, OSError, FileNotFoundError, SystemExit)
        # a run by its folder, a task of GLUE by the folder of the tasks
        above = (f"{path.parents[2].name}: ", str(path.parents[1]))
        places = (path.name, path.parent.name, *above, "run_2.py: ", "sweep.py: ")
        if not any(place in text for place in places):
            return "names no file", f"{type(refusal).__name__}: {text[:300]}"
        if not text.strip() or len(text) > 2500 or "Traceback" in text or not plain:
            return "no clear line", f"{type(refusal).__name__}: {text[:300]}"
        return "refused", text[:300]
    except BaseException:
        return "traceback", traceback.format_exc()[-1500:]
    lost = whole_rows(name, data) - marks_in(rows) - {mark(900)}
    if FORMATS[name][1] in (read_run, read_settings, read_sweep) or not lost:
        return "ok", ""
    if rows_with(lost, name, data) <= counted(said):
        return "ok, counted", ""
    return "lost rows", f"{sorted(lost)[:3]} of {len(lost)}; said: {said}"


def in_a_fork(action: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    """Its outcome; a hang and a crash are outcomes."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        os.write(write, json.dumps(action())[:60_000].encode())
        os._exit(0)
    os.close(write)
    end, content = time.monotonic() + MOST_SECONDS, b""
    os.set_blocking(read, False)
    while time.monotonic() < end:
        with contextlib.suppress(BlockingIOError):
            part = os.read(read, 65536)
            content += part
            if not part:
                break
        time.sleep(0.002)
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(read)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return "hang", f"longer than {SECONDS} s"
    return tuple(json.loads(content)) if content else ("crash", f"exit code {status}")


def mangled(folder: Path) -> Iterator[SimpleNamespace]:
    """The cases, each a format, mutations and a seed, and the bytes that come of them."""
    originals = {name: prepare(name, folder / str(n)) for n, name in enumerate(FORMATS)}
    for number in range(MANGLED):
        draw = random.Random(number)
        name = list(FORMATS)[number % len(FORMATS)]
        data, names = bytearray(originals[name]), []
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            mutation = draw.choice(MUTATIONS)
            names.append(mutation.__name__)
            data = mutation(data, draw) or bytearray(b"\n")
        path = folder / str(list(FORMATS).index(name)) / name
        yield SimpleNamespace(number=number, name=name, how=names, data=bytes(data), path=path)


def test_valid_files_are_read_whole(tmp_path):
    for number, name in enumerate(FORMATS):
        data = prepare(name, tmp_path / str(number))
        path = tmp_path / str(number) / name
        path.write_bytes(data)
        outcome, details = in_a_fork(lambda n=name, p=path, d=data: judge_one(n, p, d))
        assert outcome in ("ok", "ok, counted"), (name, outcome, details)


def test_mangled_files_are_read_or_refused_in_a_line(tmp_path):
    outcomes: Counter[str] = Counter()
    faults = []
    for case in mangled(tmp_path):
        case.path.write_bytes(case.data)
        outcome, details = in_a_fork(lambda c=case: judge_one(c.name, c.path, c.data))
        outcomes[outcome] += 1
        if outcome not in ("ok", "ok, counted", "refused"):
            faults.append(f"{case.number} {case.name} {','.join(case.how)}: {outcome}: {details}")
            print(f"\n{faults[-1]}", flush=True)
    print(f"\n{MANGLED} mangled files: {dict(outcomes)}")
    if faults:
        pytest.fail(f"{len(faults)} faults", pytrace=False)
