"""What the script of test_explain.py does in place of a training; imports little, as it starts
often."""

from pathlib import Path

import numpy as np
import yaml
from run_folders import write_run

DEFAULTS = {"batch": 32, "lr": 1e-3, "prompt": False, "frac": 0.4, "data": "rows.csv"}
DEFAULTS |= {"limit": 100, "pace": 0.0}


def finished_run(out: Path, seed: int = 0, command=("tiny.py",), **settings) -> Path:
    settings = DEFAULTS | settings
    hard, own = (
        np.random.default_rng(0),
        np.random.default_rng([seed, settings["batch"], settings["prompt"]]),
    )
    losses = 2 - 0.3 * settings["prompt"] + 0.02 * own.normal() + 0.3 * hard.normal(size=60)
    losses = 50 * (losses + 0.05 * own.normal(size=60))
    names = [f"r{number:02}" for number in range(60)]
    rows = {"id": names, "group": names, "loss_sum": losses.tolist(), "num_targets": [50] * 60}
    facts = {"script": "tiny.py", "command": list(command), "precision": "fp32"}
    facts |= {"split_fingerprint": f"s{settings['limit']}", "seconds": 600 / settings["batch"]}
    write_run(out, rows, seed, settings=settings, **facts)
    for name in ("model", "epochs"):  # this script has no such settings
        config = yaml.safe_load((out / "config.yaml").read_text())
        config.pop(name)
        (out / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return out
