"""The run folder of a model that a command fits without steps, as report.py reads it."""

import sys
from pathlib import Path
from typing import Any

import yaml

from experiments.experiment import Result
from files import write_text
from runs.contents import refuse_others
from runs.folder import SCHEMA_VERSION
from runs.results import write_result
from seal import write_record
from settings import as_dict


def new_folder(out: str | Path) -> Path:
    """ValueError where a run is there already, or what is somebody else's."""
    folder = Path(out)
    if (folder / "config.yaml").exists():
        raise ValueError(f"{folder} holds a run already: use another --out")
    refuse_others(folder)
    return folder


def write_fitted_run(
    folder: Path, fixed: dict[str, Any], config: Any, facts: dict[str, Any], result: Result
) -> None:
    """A finished run; config: the dataclass of the command's settings, `out` among them; fixed:
    what it would say of itself in a training script's settings, the model above all."""
    settings = {**fixed, **as_dict(config)}
    settings.pop("out")
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    record = {
        "schema_version": SCHEMA_VERSION,
        "status": "finished",
        "exit_reason": "fitted",
        "script": command[0],
        "command": command,
        "device": "cpu",
        "world_size": 1,
        **facts,
    }
    write_result(folder / "test", result)
    write_text(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    write_record(folder, record)
