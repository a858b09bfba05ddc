"""What a command says of the run whose weights it opens."""

import sys
from pathlib import Path

from evaluation import outcomes
from files import read_json


def run_of(folder: str | Path) -> Path:
    """The run folder; folder: of the run, or of its weights."""
    place = Path(folder).absolute()
    return place.parents[2] if place.parent.name == "weights" else place


def note_failures(folder: str | Path) -> None:
    """A line where the run has a verdict that fails it; folder: of the run, or of its weights."""
    verdicts = read_json(run_of(folder) / "run.json").get("verdicts")
    for verdict in verdicts if isinstance(verdicts, list) else []:
        if outcomes.kind_of(str(verdict)) in outcomes.FAILED:
            print(f"note: {folder}: {verdict}", file=sys.stderr, flush=True)
