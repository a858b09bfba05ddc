"""What a run writes into its folder, by name: whose a folder is, what --fresh deletes, what a kill
left behind.

Other files may lie in the folder and below it; nothing here touches them.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from files import read_json, read_yaml, remove, write_text

_ANALYSIS = (
    r"(worst_rows|samples|attention|answers_\w+)\.jsonl(\.part)?|inspect\.json"
    r"|judge(_pairs)?\.(csv|json)"
)
# Folder → names there that are written by a run, by its page and by commands. Pictures are told by
# what is in them.
OWN = {
    "": r"config\.yaml|run\.json|diff\.patch|(extra_)?bad_rows\.csv|report\.html",
    "report": r"page\.md",
    "tensorboard": r"events\.out\.tfevents\..+",
    "wandb": r"latest-run|(offline-)?run-.+|debug.*\.log|settings",
    "inspect": r"inspect\.(txt|json)",
    "mlm/test/metrics": r"metrics\.json",
    "baseline/metrics": r"metrics\.json|predictions\.csv",
    "baseline/analysis": _ANALYSIS,
    "test/metrics": r"metrics\.json|predictions\.csv",
    "test/analysis": _ANALYSIS,
    "train/metrics": r"metrics\.jsonl",
    "train/analysis": _ANALYSIS,
    "train": r"tokenizer\.json",
    "train/weights": r"(step_\d{8}|best|final)(\.\d*(old|damaged))?|(best|last)\.ckpt",
}
PICTURES = ("report", "inspect", "baseline/analysis", "test/analysis", "train/analysis")
# What a run may write at the top of its folder: in one that is no run it is somebody else's.
NAMES = (
    *("config.yaml", "run.json", "diff.patch", "bad_rows.csv", "report.html"),
    *("report", "tensorboard", "wandb", "baseline", "train", "test"),
)
# Of every config.yaml that a training script wrote.
SETTINGS = {"model", "data", "epochs", "batch", "micro_batch", "seed", "max_length", "save_every"}
BEGINS_ANEW = "--fresh: an earlier run is being deleted"


def is_run(folder: Path) -> bool:
    """Whether a run wrote this folder."""
    if "schema_version" in read_json(folder / "run.json"):
        return True
    with contextlib.suppress(ValueError):
        return read_yaml(folder / "config.yaml").keys() >= SETTINGS
    return False


def refuse_others(folder: Path) -> None:
    """ValueError for a folder that is no run and holds names that a run would write."""
    if is_run(folder):
        return
    if names := [name for name in NAMES if os.path.lexists(folder / name)]:
        raise ValueError(
            f"{folder} is no run, and holds {', '.join(names)}, where a run would write: use "
            "another --out"
        )


def has_begun(folder: Path) -> bool:
    """Whether a run trained here; one that ended before (a mistyped path) protects nothing."""
    tasks = (run.parent for run in folder.glob("*/run.json"))  # of a suite
    places = [place for place in OWN if place.startswith(("baseline", "train"))]
    return any(True for each in (folder, *tasks) for _ in own_paths(each, places))


def own_paths(folder: Path, places: list[str] | None = None) -> Iterator[Path]:
    """Files and folders of weights that a run wrote, half-written ones (.tmp) too."""
    for place in OWN if places is None else places:
        with contextlib.suppress(OSError):
            for path in sorted((folder / place).iterdir()):
                name = re.sub(r"\.\d*tmp$", "", path.name)
                own = re.fullmatch(OWN[place], name)
                picture = place in PICTURES and name.endswith(".png")
                if own or picture and _is_own_picture(path):
                    yield path


def _is_own_picture(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return b"Software\0ablate" in file.read(4096)
    except OSError:
        return False


def delete_run(folder: Path) -> None:
    """Remove what a run wrote. A kill in the midst of it is seen by what run.json says."""
    record = folder / "run.json"
    facts = {"schema_version": 1, "status": "failed", "exit_reason": BEGINS_ANEW}
    write_text(record, json.dumps(facts))
    for path in own_paths(folder):
        if path != record:
            _remove(path)
    for place in sorted(OWN, reverse=True):
        for empty in (folder / place, *(folder / place).parents):
            if folder in empty.parents:
                with contextlib.suppress(OSError):  # not empty, or not there
                    empty.rmdir()
    _remove(record)


def _remove(path: Path) -> None:
    """Delete what is ours; of weights what their manifest names, for somebody may have put
    something beside."""
    names = read_json(path / "manifest.json").get("files")
    if not isinstance(names, dict):
        if problem := remove(path):
            raise problem
        return
    for name in [*names, "manifest.json"]:
        (path / name).unlink(missing_ok=True)
    for below in sorted((each for each in path.rglob("*") if each.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            below.rmdir()
    with contextlib.suppress(OSError):
        path.rmdir()


def sweep(folder: Path) -> None:
    """Remove what writes that were killed left. Only for the one who holds the folder's lock."""
    for path in own_paths(folder):
        if path.name.endswith("tmp"):
            remove(path)
