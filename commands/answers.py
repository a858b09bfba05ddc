"""Files of answers, and of what people think of them: what `judge` reads."""

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import console
import core
from commands.generate import Answerer
from commands.opening import OpenConfig, weights_files
from data import instructions
from data.layouts import TIE, WORDS, A, B, winner_word
from data.records import BadRow, id_of, read_records
from data.rows import stable_hash, subset
from evaluation.questions import Answer
from files import read_json, read_yaml

FIELDS = ("instruction", "output", "model_response")  # of a line of an answers file


def answers_of_run(config: Any, world: core.World, other: str | None = None) -> Path:
    """The answers of --run_folder, or of another run, to its test rows, written once. ValueError
    for other rows by now."""
    folder = other or config.run_folder
    run = Path(folder)
    try:
        settings = read_yaml(run / "config.yaml")
        data, fractions = settings["data"], (settings["val_frac"], settings["test_frac"])
        template, limit = settings["template"], settings["limit"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{run}: no run of alpaca_sft.py ({error})") from None
    try:
        rows, _ = instructions.load_rows(config.data or data, *fractions)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. Where the rows are now: --data") from None
    was = read_json(run / "run.json").get("data_fingerprint")
    if was not in (None, now := instructions.data_fingerprint(rows)):
        raise ValueError(
            f"{config.data or data} has other rows than those of the run (fingerprint {now}, not "
            f"{was}): --data names the file that the run was made with"
        )
    rows = [row for row in subset(rows, limit) if row.split == "test"]
    rows = subset(rows, config.limit)
    if not rows:
        raise ValueError(f"{run}: it has no test rows to answer")
    base = None if other else config.base
    opening = OpenConfig(folder, config.weights, base, config.device)
    facts = {
        "decoding": config.record(),
        "rows": [row.id for row in rows],
        "template": template,
        "weights": weights_files(opening),
    }
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]
    file = run / f"test/analysis/answers_{name}.jsonl"
    if not world.from_rank_0(file.exists()):
        Answerer(opening, config, template, world).write(rows, file)
    return file


def read_answers(file: Path, limit: int | None) -> list[dict[str, Any]]:
    """Lines of an answers file with id, group and prompt; ValueError (file, line, field).

    Where a line has no prompt, as in older files, it is made of the instruction and the input.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; alpaca_sft.py generate --data writes one")
    rows = []
    for number, (place, row) in enumerate(read_records(file, Counter()), start=1):
        if isinstance(row, BadRow):
            raise ValueError(f"{place}: {row}")
        for name in FIELDS:
            if not isinstance(row.get(name), str):
                raise ValueError(f"{place}, field {name}: expected text")
        texts = (row["instruction"], row.get("input", ""))
        own = stable_hash("instruction", *texts)
        prompt = row.get("prompt", instructions.format_prompt(*texts))
        if not isinstance(prompt, str):
            raise ValueError(f"{place}, field prompt: expected text")
        rows.append(
            {
                "id": id_of(row.get("id"), set()) or str(number),
                "group": str(row.get("group", own)),
                "input": "",
            }
            | {k: v for k, v in row.items() if k in (*FIELDS, "input")}
            | {"prompt": prompt, "decoding": row.get("decoding"), "is_cut": "cut_tokens" in row}
            | {"weights": row["weights"] if isinstance(row.get("weights"), str) else None}
        )
    if not rows:
        raise ValueError(f"{file}: it holds no answers")
    return subset_of(rows, limit)


def subset_of(rows: list[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    order = sorted(range(len(rows)), key=lambda i: stable_hash("subset", rows[i]["group"]))
    return [rows[i] for i in sorted(order[:limit])]


def answer_of(row: dict[str, str]) -> Answer:
    return Answer(row["id"], row["prompt"], row["output"], row["model_response"])


def asked_of(row: dict[str, str]) -> str:
    """What a preference run reads: one instruction as people ask it, without the template that it
    has never seen; a conversation as the answering model read it."""
    texts = (row["instruction"], row["input"])
    if row["prompt"] in (instructions.format_prompt(*texts, t) for t in instructions.TEMPLATES):
        return "\n\n".join(text for text in texts if text)
    return row["prompt"]


def matched(one: list[dict], other: list[dict], files: Sequence[Path]) -> tuple[list, list]:
    """The lines of both files, by id; ValueError unless they answer the same rows."""
    by_id = {row["id"]: row for row in other}
    if len(by_id) < len(other) or len({row["id"] for row in one}) < len(one):
        raise ValueError(f"{files[0]} and {files[1]}: an id occurs twice, so they do not match")
    if by_id.keys() != {row["id"] for row in one}:
        both = sum(row["id"] in by_id for row in one)
        raise ValueError(
            f"{files[0]} and {files[1]} do not answer the same rows: {both} of {len(one)} and "
            f"{len(other)} ids are in both"
        )
    pairs = [(row, by_id[row["id"]]) for row in one]
    for a, b in pairs:
        if (a["instruction"], a["input"]) != (b["instruction"], b["input"]):
            raise ValueError(f"{files[0]} and {files[1]}: row {a['id']} asks something else there")
    return [a for a, _ in pairs], [b for _, b in pairs]


# ------------------------------------------------------------------------- human labels


def check_sources(config: Any) -> None:
    """OSError and ValueError for labels, or answers to be held against, that cannot be read: before
    an answer is written or paid for."""
    if config.labels is not None:
        labels_in(config)
    if config.against is not None and not Path(config.against).exists():
        raise FileNotFoundError(f"--against {config.against}: no run folder, nor a file of answers")


def labels_in(config: Any) -> list[tuple[str, float]]:
    """(id, 0 to 100) of each line of --labels. ValueError (file, line, field)."""
    found = []
    for place, row in read_records(Path(config.labels), Counter()):
        if isinstance(row, BadRow):
            raise ValueError(f"{place}: {row}")
        value, winner = row.get("human"), winner_word(row.get("winner"))
        if config.against and winner:
            value = {A: 100.0, B: 0.0, TIE: 50.0}.get(WORDS.get(winner), math.nan)
        try:
            value = float(value)
        except (TypeError, ValueError):
            value = math.nan
        if not 0 <= value <= 100:
            other = ", or winner: A, B or tie" * bool(config.against)
            raise ValueError(f"{place}: expected human, a number from 0 to 100{other}")
        found.append((id_of(row.get("id"), set()), value))
    return found


def read_labels(config: Any, rows: Sequence[dict]) -> np.ndarray | None:
    """(rows,) from 0 to 100, NaN where no one judged, the mean where several did; None without
    --labels. ValueError (file, line, field)."""
    if config.labels is None:
        return None
    found: dict[str, list[float]] = {row["id"]: [] for row in rows}
    judged = {(row["id"], row.get("prompt"), row.get("model_response")) for row in rows}
    if len(found) < len(judged):
        raise ValueError(
            f"--labels: {len(judged) - len(found):,} of the answers have an id that another answer "
            "has, so that it is not known which of them people judged"
        )
    strange = 0
    for name, value in labels_in(config):
        name = name if name in found else name.removesuffix(".0")  # as pandas writes whole numbers
        if name in found:
            found[name].append(value)
        else:
            strange += 1
    if not any(found.values()):
        raise ValueError(f"{config.labels}: no line has the id of a row that is judged")
    if strange:
        console.say(f"note: {strange} labels of {config.labels} are of other rows, and left out")
    highest = max(itertools.chain.from_iterable(found.values()))
    if highest <= 10:
        console.say(
            f"note: the highest label of {config.labels} is {highest:g}: they are read as of 0 to "
            "100, as the judge's scores are"
        )
    each_row = [found[row["id"]] for row in rows]
    return np.array([np.mean(each) if each else math.nan for each in each_row])
