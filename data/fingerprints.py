"""The fingerprints that a run's settings give today, from its rows alone: no model is opened.

    fingerprints_of("run_5_models.py", {"data": "pairs.csv", "split": "prompt", ...})

What experiments/ reads is read here with the same functions; tests/test_audit.py holds each system
to what its runs recorded.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Facts = dict[str, str]
BUILT_IN = {"reviews", "reviews_control", "reviews_text"}


class Unreachable(Exception):
    """The rows are not here, or only reading them as training does would tell."""


def fingerprints_of(script: str, config: Mapping[str, Any]) -> Facts:
    """data_fingerprint and split_fingerprint; Unreachable, in a line, where there are none."""
    if (read := READERS.get(script)) is None:
        raise Unreachable(f"the rows of {script} are not read again")
    source = config.get("data") or config.get("task")
    if source not in BUILT_IN and not Path(str(source)).exists():
        raise Unreachable(f"the rows of {source} are not here")
    try:
        return read(config)
    except (ValueError, OSError, KeyError, TypeError, ImportError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Unreachable(f"the rows cannot be read again: {said}") from None


def _chosen(rows: list, fingerprint: str, config: Mapping[str, Any], **more: Any) -> Facts:
    from data.rows import choose_rows

    return choose_rows(rows, fingerprint, config.get("limit"), **more)[1]


def _pairs(config: Mapping[str, Any]) -> Facts:
    from data import arena, reviews

    parts = config["val_frac"], config["test_frac"]
    if config["data"] in BUILT_IN:
        control = config["data"] == "reviews_control"
        rows, _ = reviews.load_review_pairs(control, val_frac=parts[0], test_frac=parts[1])
    else:
        read = arena.read_pairs(
            config["data"],
            skip_bad_rows=bool(config.get("skip_bad_rows")),
            minus_one=lambda: config.get("minus_one", "a"),  # which older runs took for granted
        )
        rows = read.rows
        arena.assign_splits(rows, config["split"], *parts)
    return _chosen(rows, arena.data_fingerprint(rows), config, key=arena.by_content)


def _gpt2(config: Mapping[str, Any]) -> Facts:
    from data import documents, texts

    source, parts = (config["task"], config["data"]), (config["val_frac"], config["test_frac"])
    if documents.models_text(*source):
        rows, *_ = documents.load_documents(*source, *parts, bool(config.get("detokenize")))
        return _chosen(rows, documents.data_fingerprint(rows), config)
    rows, *_ = texts.load_rows(*source, *parts)
    return _chosen(rows, texts.data_fingerprint(rows), config)


def _titles(config: Mapping[str, Any]) -> Facts:
    from data import titles

    every, _ = titles.load_titles(config["data"], config["limit"], config["data_seed"])
    _, held_out = titles.split_titles(every, config["val_frac"])
    return {
        "data_fingerprint": titles.titles_fingerprint(every),
        "split_fingerprint": titles.titles_fingerprint(held_out),
    }


def _instructions(config: Mapping[str, Any]) -> Facts:
    from data import instructions

    rows, _ = instructions.load_rows(config["data"], config["val_frac"], config["test_frac"])
    return _chosen(rows, instructions.data_fingerprint(rows), config)


READERS: dict[str, Callable[[Mapping[str, Any]], Facts]] = {
    "run_1_distilbert.py": _pairs,
    "run_2_appendprompt.py": _pairs,
    "run_5_models.py": _pairs,
    "finetune_gpt2.py": _gpt2,
    "train_headlines.py": _titles,
    "alpaca_sft.py": _instructions,
}
