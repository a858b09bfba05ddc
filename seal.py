"""What a run's files were when it ended, so that `report.py audit` names what has changed since.

    write_record(folder, record)     # run.json; of a run that is over with the hashes of its files
    amend(folder, name, text)        # a command adds to a file of a run that is over

This finds slips: a file of another run, an edit, a torn copy. It is no signature: whoever writes
the files can write their hashes.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from files import read_json, sha256, write_text

SEALED = (
    "config.yaml",
    "baseline/metrics/metrics.json",
    "baseline/metrics/predictions.csv",
    "train/metrics/metrics.jsonl",
    "test/metrics/metrics.json",
    "test/metrics/predictions.csv",
)


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """run.json, with a digest of itself, and unless the run goes on with the SHA-256 of its files,
    by name."""
    record = {key: value for key, value in record.items() if key not in ("files", "digest")}
    if record["status"] != "running":
        there = [name for name in SEALED if (folder / name).is_file()]
        record["files"] = {name: sha256(folder / name) for name in there}
    record["digest"] = digest_of(record)
    write_text(folder / "run.json", json.dumps(record, indent=1))


def hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digest_of(record: dict[str, Any]) -> str:
    """16 hex digits of what a record says, without the digest in it."""
    rest = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


def amend(folder: Path, name: str, text: str) -> None:
    """Write a file of a run that is over, and its new hash; where the old one did not fit any more,
    that stays to be seen."""
    record = read_json(folder / "run.json")
    sealed = amended(record, name, (folder / name).read_bytes(), text.encode())
    write_text(folder / name, text)
    if sealed:
        write_text(folder / "run.json", json.dumps(sealed, indent=1))


def amended(record: dict[str, Any], name: str, old: bytes, new: bytes) -> dict[str, Any] | None:
    """The record after a file has changed from old to new; None where it does not know the old."""
    known = record.get("files")
    if record.get("digest") != digest_of(record) or not isinstance(known, dict):
        return None
    if known.get(name) != hash_of(old):
        return None
    record = record | {"files": known | {name: hash_of(new)}}
    return record | {"digest": digest_of(record)}
