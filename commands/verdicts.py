"""What a command says of the run whose weights it opens."""

import sys
from pathlib import Path

from evaluation import outcomes
from files import read_json


def note_failures(folder: str | Path) -> None:
    """A line where the run has a verdict that fails it; folder: of the run, or of its weights."""
    place = Path(folder)
    run = place.parents[2] if place.parent.name == "weights" else place
    verdicts = read_json(run / "run.json").get("verdicts")
    for verdict in verdicts if isinstance(verdicts, list) else []:
        if outcomes.kind_of(str(verdict)) in outcomes.FAILED:
            print(f"note: {folder}: {verdict}", file=sys.stderr, flush=True)
